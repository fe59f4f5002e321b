"""What the tests of the loader look at batches with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from stillroom.stages.feeding.ahead import NAME

ROWS = 60
KEYS = [f"r{i}" for i in range(ROWS)]


def places(feed: Any) -> list[list[int]]:
    """The rows of every batch of an epoch."""
    return [batch["batch.index"].tolist() for batch in feed]


def flat(batches: Sequence[Sequence[int]]) -> list[int]:
    return [place for batch in batches for place in batch]


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two batches are the same bit by bit."""
    return list(one) == list(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == NAME]
