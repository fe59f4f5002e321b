"""Temperature scaling: the one number by which logits are divided so that they fit labels best.

Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", arXiv 1706.04599. The
mean negative log-likelihood is convex in 1 / T, so its optimum is the one root of its derivative:
found by Newton's method kept inside a bracket, one pass a step, to rtol 1e-10.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.deriving.derivation import Summary
from stillroom.stages.deriving.table import Batch, Table
from stillroom.storage.errors import SignalError

Float64s = NDArray[np.float64]
_EXACT = 1e-12
_STEPS = 100


def _likelihood(batch: Batch, beta: float) -> Float64s:
    """(4,): sums over rows of the negative log-likelihood at 1 / T = beta, of its two derivatives, and
    of how far the labels lie below the largest logits."""
    logits, labels = batch.matrix("logits"), batch.column("label")
    logits -= logits.max(axis=1, keepdims=True)
    powers = np.exp(beta * logits)
    total = powers.sum(axis=1)
    chosen = logits[np.arange(len(labels)), labels]
    mean = (powers * logits).sum(axis=1) / total
    second = (powers * logits**2).sum(axis=1) / total - mean**2
    likelihood = np.log(total) - beta * chosen
    slopes = (mean - chosen).sum(), np.maximum(second, 0).sum()
    return np.array([likelihood.sum(), *slopes, -chosen.sum()])


def _summed(parts: Sequence[Float64s]) -> Float64s:
    return np.asarray(np.sum(parts, axis=0))


def _temperature(table: Table) -> dict[str, Any]:
    classes = table.width("logits")
    table.classes("label", classes)

    def at(beta: float) -> Float64s:
        return table.fold(partial(_likelihood, beta=beta), _summed, "logits") / len(table)

    if at(0.0)[1] >= 0:
        raise SignalError(
            f"signal {table.name('logits')!r} says no more of the labels than chance: no temperature "
            "above 0 fits them best. Are labels and classes numbered alike?"
        )
    first = now = at(1.0)
    if first[3] <= 0:
        raise SignalError(
            f"signal {table.name('logits')!r} tells every one of the {len(table):,} labels: the "
            "likelihood rises for ever as the temperature falls. Choose rows that the teacher was not "
            "trained on: keys=..."
        )
    low, high, beta = 0.0, np.inf, 1.0
    for _ in range(_STEPS):
        low, high = (beta, high) if now[1] < 0 else (low, beta)
        step = beta - now[1] / now[2] if now[2] > 0 else np.inf
        middle = 2 * beta if np.isinf(high) else (low + high) / 2
        if np.isinf(high):
            step = min(step, 4 * beta)
        following = step if low < step < high else middle
        if abs(following - beta) <= _EXACT * beta or now[1] == 0:
            break
        beta = following
        now = at(beta)
    return {
        "temperature": np.float64(1 / beta),
        "nll_before": np.float64(first[0]),
        "nll": np.float64(now[0]),
        "count": np.int64(len(table)),
    }


def temperature(logits: str, label: str, *, name: str = "temperature") -> Summary:
    """`temperature` T, and the mean negative log-likelihood in nats before (`nll_before`, T = 1) and
    at it (`nll`); `count` rows. Choose held-out rows: derive(..., keys=...).

    `label`: whole numbers below the number of logits. Divide by T with `calibrated`.
    """
    return Summary(name, _temperature, {"logits": logits}, {"label": label})
