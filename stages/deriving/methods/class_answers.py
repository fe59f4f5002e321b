"""What a teacher answers on average for the rows of each label, as probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.deriving.derivation import Summary
from stillroom.stages.deriving.methods.moments import Moments, merged, moments_of
from stillroom.stages.deriving.table import Batch, Table


def class_answers(logits: str, label: str, *, name: str = "class_answers") -> Summary:
    """`counts` (C,) and `answers` (C, C) float64: the mean softmax of the logits over each label's rows.

    Uniform for a label that no row has. `label`: a column of the data set, or a cached signal, of
    whole numbers below C.
    """
    return Summary(name, _class_answers, {"logits": logits}, {"label": label})


def _class_answers(table: Table) -> dict[str, Any]:
    classes = table.classes("label", table.width("logits"))
    found = table.fold(partial(_of_block, classes=classes), merged, "logits")
    answers = np.where(found.counts[:, None] == 0, 1 / classes, found.means)
    return {"counts": found.counts, "answers": answers}


def _of_block(batch: Batch, classes: int) -> Moments:
    likely = softmax(batch.matrix("logits"))
    return moments_of(likely, batch.column("label"), classes, squares=False)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Over the last axis."""
    likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(likely / likely.sum(axis=-1, keepdims=True))
