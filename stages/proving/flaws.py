"""A teacher that is wrong in a known way on known rows: what methods that doubt it must find."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.deriving.derivation import RowWise


def doubtful(rows: ArrayRows, classes: tuple[int, int], *, share: float, seed: int) -> ArrayRows:
    """The same rows with a column `wrong`: 1 for this share of those of two classes, else 0."""
    read = rows.read(np.arange(len(rows)), rows.columns)
    drawn = np.random.default_rng(seed).random(len(rows)) < share
    wrong = np.isin(np.asarray(read["label"]), classes) & drawn
    return ArrayRows(rows.keys, **read, wrong=wrong.astype(np.int64))


def swapped(signal: str, classes: tuple[int, int], *, name: str = "flawed") -> RowWise:
    """The signal `logits`: a teacher's, with those of two classes exchanged where a row is `wrong`."""
    function = partial(_swapped, classes=list(classes))
    return RowWise(name, function, {"logits": signal}, ("logits",), {"wrong": "wrong"})


def _swapped(*, logits: Any, wrong: Any, classes: list[int]) -> dict[str, Any]:
    mirrored = logits.copy()
    mirrored[:, classes] = logits[:, classes[::-1]]
    return {"logits": np.where(wrong[:, None] == 1, mirrored, logits)}
