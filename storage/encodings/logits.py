"""What the encodings of logits share: their softmax in float64, what is refused, what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.storage.encodings.part import Array
from stillroom.storage.errors import SignalError

FLOOR = -60.0
"""Log-probability that stands for none: e**-60 is 9e-27, below float32's resolution."""
_BLOCK_VALUES = 2**20
"""Logits that are widened to float64 at once: a shard of them would not fit into memory."""


@dataclass(frozen=True)
class Softmax:
    """Some rows of logits, all in float64."""

    logits: Array
    """(n, classes)"""
    weights: Array
    """(n, classes): exp(logits - top), so that the largest is 1."""
    mass: Array
    """(n, 1): sums of the weights."""
    total: Array
    """(n, 1): log-sum-exp of the logits."""


def check_logits(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], most: str) -> None:
    """Logits: floating point, fewer than 2**32 classes on the last axis; else SignalError."""
    if dtype.kind != "f" or not shape:
        raise SignalError(f"signal {name!r} of {dtype} and row shape {shape} is no row of logits")
    if shape[-1] >= 2**32:
        raise SignalError(
            f"signal {name!r}: {most} needs fewer than 2**32 classes, found {shape[-1]}"
        )


def class_dtype(classes: int) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and uint32 that holds every class.

    >>> class_dtype(256).name, class_dtype(257).name
    ('uint8', 'uint16')
    """
    return np.min_scalar_type(classes - 1)


def blocks(values: Array) -> Iterator[slice]:
    """Consecutive rows of (n, classes) values, a few at a time."""
    step = max(_BLOCK_VALUES // max(values.shape[-1], 1), 1)
    return (slice(start, start + step) for start in range(0, len(values), step))


def softmax(values: Array) -> Softmax:
    """The softmax of (n, classes) logits. -inf is a class without probability.

    Row by row, so that other rows beside it never change a row's numbers. SignalError where logits
    are no distribution.
    """
    logits = np.ascontiguousarray(values, np.float64)
    top = logits.max(axis=-1, keepdims=True)
    if not (np.abs(top) < np.finfo(np.float32).max).all():
        raise SignalError(f"logits with NaN or a maximum of {np.abs(top).max()} have no softmax")
    weights = np.exp(logits - top)
    mass = weights.sum(axis=-1, keepdims=True)
    return Softmax(logits, weights, mass, top + np.log(mass))


def divergence(values: Array, decoded: Array) -> dict[str, float]:
    """Mean KL(teacher || decoded) in nats, and the mean difference of probabilities (L1)."""
    classes = values.shape[-1]
    teacher, student = values.reshape(-1, classes), decoded.reshape(-1, classes)
    kl = l1 = 0.0
    for some in blocks(teacher):
        p, q = log_softmax(teacher[some]), log_softmax(student[some])
        possible = p > -np.inf
        gain = np.where(possible, np.where(possible, p, 0.0) - q, 0.0)
        kl += float((np.exp(p) * gain).sum())
        l1 += float(np.abs(np.exp(p) - np.exp(q)).sum())
    count = max(len(teacher), 1)
    return {"kl": max(kl, 0.0) / count, "l1": l1 / count}


def log_softmax(logits: Array) -> Array:
    """Log-probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
