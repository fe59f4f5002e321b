"""Live answers beside each other: the same rows asked of a loaded teacher in several ways, and how far
its answers are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.worker.answers import as_values
from stillroom.stages.worker.asking import Asked, Asking

Array = NDArray[Any]
SLACK = 64 * float(np.finfo(np.float32).eps)
"""Of a row's largest value: float32 sums in another order, where no live difference was seen."""


def as_answered(asked: Asked) -> dict[str, Any]:
    """The signals of a batch, unchecked."""
    return {name: as_values(given) for name, given in asked.answered.items()}


def live(
    asking: Asking,
    places: NDArray[np.int64],
    sizes: Sequence[int] = (),
    *,
    reverse: bool = False,
    read: Callable[[Asked], Mapping[str, Any]] = as_answered,
) -> dict[str, list[Any]]:
    """The rows of every signal in the order of the places, asked for in batches of these sizes.

    In reverse the last row is asked for first.
    """
    found: dict[str, list[Any]] = {}
    for asked in asking.each(places[::-1] if reverse else places, sizes):
        for name, values in read(asked).items():
            found.setdefault(name, []).extend(values)
    return {name: rows[::-1] for name, rows in found.items()} if reverse else found


def fields(array: Array) -> Iterator[Array]:
    """An array, or each field of a record."""
    for name in array.dtype.names or (None,):
        yield array if name is None else array[name]


def difference(one: Array, other: Array) -> float:
    """Largest absolute difference of any numbers; infinite for NaN and for other lengths."""
    if one.shape != other.shape:
        return float("inf")
    largest = 0.0
    for a, b in zip(fields(one), fields(other), strict=True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            gap = np.where(a == b, 0.0, np.abs(a - b))
        largest = max(largest, float(np.where(np.isnan(gap), np.inf, gap).max(initial=0.0)))
    return largest


def magnitude(array: Array) -> float:
    """The largest absolute value that is finite."""
    found = 0.0
    for field in fields(array):
        values = field.astype(np.float64)
        found = max(found, float(np.abs(values[np.isfinite(values)]).max(initial=0.0)))
    return found
