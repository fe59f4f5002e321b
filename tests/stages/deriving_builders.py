"""Caches to derive from: two teachers' logits and features of every row, in several segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, Rows, teach
from stillroom.storage import Cache, Snapshot

CLASSES, WIDTH = 4, 6


def features(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """(rows, 6) float32 around a centre for each class, far from 0."""
    random = np.random.default_rng(seed)
    centres = 30 + 4 * random.standard_normal((CLASSES, WIDTH))
    noise = random.standard_normal((rows, WIDTH)) * np.linspace(0.5, 2, WIDTH)
    found: NDArray[np.float32] = (centres[labels(rows)] + noise).astype("f4")
    return found


def labels(rows: int) -> NDArray[np.int64]:
    """(rows,) the class of each row."""
    return (np.arange(rows) * 7 + np.arange(rows) // 5) % CLASSES


def source(rows: int = 90, *, edited: tuple[int, ...] = (), first: int = 0) -> ArrayRows:
    """Rows 0, 1, ... with `x` and `label`; those edited have another `x`."""
    x = features(rows)
    x[list(edited)] += 1
    keys = list(range(rows))[first:]
    return ArrayRows(keys, x=x[first:], label=labels(rows)[first:])


def said(x: NDArray[np.float32]) -> dict[str, Any]:
    """Bit for bit the same in any batch."""
    scores = (x[:, :CLASSES] - x[:, 1:5]) / 4
    return {"feature": x, "logits": scores, "tokens": [row[: 1 + int(row[0]) % 3] for row in x]}


def other(x: NDArray[np.float32]) -> dict[str, Any]:
    """A second opinion."""
    return {"scores": np.sin(x[:, :CLASSES])}


def first_teacher(**changes: Any) -> FunctionTeacher:
    """`feature`, `logits` and the ragged `tokens`."""
    return FunctionTeacher("one", said, ("x",), ("feature", "logits", "tokens"), **changes)


def second_teacher(**changes: Any) -> FunctionTeacher:
    """`scores`."""
    return FunctionTeacher("two", other, ("x",), ("scores",), **changes)


def cached(
    folder: Path, rows: Rows | None = None, *, shard_rows: int = 20, **changes: Any
) -> Snapshot:
    """Both teachers' answers to the rows, in this process."""
    rows = source() if rows is None else rows
    how: dict[str, Any] = {"runner": LocalRunner(), "batch_size": 16, "shard_rows": shard_rows}
    cache = Cache.at(folder)
    teach(cache, rows, first_teacher(**changes), **how)
    return teach(cache, rows, second_teacher(), **how)


def in_pieces(folder: Path, pieces: int = 3, shard_rows: int = 7) -> Snapshot:
    """The same answers in another layout: rows came in pieces, the last rows first."""
    for piece in range(1, pieces + 1):
        rows = source(first=90 - 90 * piece // pieces)
        found = cached(folder, rows, shard_rows=shard_rows)
    return found


def by_key(snapshot: Snapshot, name: str) -> Any:
    """A signal of all rows in the order of their keys."""
    from stillroom.storage import Reader

    return Reader(snapshot, [name]).gather(sorted(snapshot.keys.to_pylist()))[name]
