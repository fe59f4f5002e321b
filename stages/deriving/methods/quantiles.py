"""Exact quantiles of each dimension, out of core: order statistics found digit by digit.

A floating-point number is read as a whole number of the same order, and one pass for each of its
bytes (four, or eight of float64) counts how many rows that agree so far go on with each byte. So the
k-th smallest value is found exactly, in memory that does not hang on the number of rows. Between two
order statistics it is interpolated in float64 as numpy's default ("linear") does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.deriving.derivation import Summary
from stillroom.stages.deriving.table import Batch, Table, as_matrix
from stillroom.storage.errors import SignalError

Float64s = NDArray[np.float64]
_VALUES = 256
_LIMIT_BYTES = 2**29
"""Of the counts of one pass."""


def words_of(values: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the order of float32 or float64 values, as wide; 0.0 and -0.0 are one."""
    bits = (values + values.dtype.type(0)).view(f"u{values.itemsize}")
    sign = bits.dtype.type(1 << (8 * values.itemsize - 1))
    return np.asarray(np.where(bits & sign, ~bits, bits | sign))


def values_of(words: NDArray[Any]) -> NDArray[Any]:
    """The values of `words_of`."""
    sign = words.dtype.type(1 << (8 * words.itemsize - 1))
    bits = np.where(words & sign, words & ~sign, ~words)
    return np.asarray(bits, words.dtype).view(f"f{words.itemsize}")


def _counted(
    batch: Batch, prefix: NDArray[Any], byte: int, dtype: str, labelled: bool
) -> NDArray[np.int64]:
    """(C, t, d, 256): of rows that begin as (C, t, d) `prefix` does, how many have each next byte."""
    given = as_matrix(batch.values("features"), "features").astype(dtype)
    words, word = words_of(given), prefix.dtype.type
    labels = batch.column("label") if labelled else np.zeros(len(words), np.int64)
    classes, targets, width = prefix.shape
    found = np.zeros((classes, targets, width * _VALUES), np.int64)
    shift = 8 * (words.itemsize - 1 - byte)
    for each in np.unique(labels).tolist():
        rows = words[labels == each] if labelled else words
        cell = (rows >> word(shift) & word(_VALUES - 1)).astype(np.int64)
        cell += np.arange(width) * _VALUES
        known = rows >> word(shift + 8) if byte else np.zeros_like(rows)
        counted: dict[bytes, int] = {}
        for target in range(targets):
            begins = prefix[each, target].tobytes()
            if begins in counted:  # ranks that lie close together part late
                found[each, target] = found[each, counted[begins]]
                continue
            counted[begins] = target
            same = known == prefix[each, target]
            found[each, target] = np.bincount(cell[same], minlength=width * _VALUES)
    return found.reshape(classes, targets, width, _VALUES)


def _summed(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _order_statistics(table: Table, ranks: NDArray[np.int64], labelled: bool) -> Float64s:
    """(C, t, d): the value of each rank (C, t) from 0 in each class and dimension."""
    width = table.width("features")
    need = ranks.size * width * _VALUES * 8
    if need > _LIMIT_BYTES:
        raise SignalError(
            f"quantiles of {width:,} dimensions at {ranks.size:,} ranks take {need:,} bytes of counts, "
            f"the limit is {_LIMIT_BYTES:,}. Ask for fewer quantiles at a time, or of fewer classes"
        )
    kind = table.take(np.zeros(1, np.int64), "features").dtype
    dtype = "f4" if kind in (np.float16, np.float32) else "f8"
    prefix = np.zeros((*ranks.shape, width), f"u{dtype[1]}")
    rest = np.repeat(ranks[:, :, None], width, axis=2)
    for byte in range(prefix.itemsize):
        work = partial(_counted, prefix=prefix, byte=byte, dtype=dtype, labelled=labelled)
        counts = table.fold(work, _summed, "features").cumsum(axis=-1)
        digit = (counts <= rest[..., None]).sum(axis=-1)
        before = np.take_along_axis(counts, np.maximum(digit - 1, 0)[..., None], -1)[..., 0]
        rest = rest - np.where(digit > 0, before, 0)
        last = np.minimum(digit, _VALUES - 1).astype(prefix.dtype)
        prefix = (prefix << prefix.dtype.type(8)) | last
    return values_of(prefix).astype(np.float64)


def _quantiles(
    table: Table, *, at: tuple[float, ...], labelled: bool, classes: int | None
) -> dict[str, Any]:
    known = table.classes("label", classes) if labelled else 1
    labels = table.column("label") if labelled else np.zeros(len(table), np.int64)
    counts = np.bincount(labels, minlength=known)
    where = np.array(at) * np.maximum(counts - 1, 0)[:, None]
    low = np.floor(where).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0)[:, None])
    found = _order_statistics(table, np.concatenate([low, high], axis=1), labelled)
    below, above = found[:, : len(at)], found[:, len(at) :]
    share = (where - low)[:, :, None]
    # From the nearer side, as numpy does, so that equal neighbours give themselves.
    gap = above - below
    values = np.where(share < 0.5, below + gap * share, above - gap * (1 - share))
    values[counts == 0] = np.nan
    given = {"at": np.array(at), "counts": counts.astype(np.int64), "quantiles": values}
    return given if labelled else {**given, "counts": counts[0], "quantiles": values[0]}


def quantiles(
    features: str,
    at: Sequence[float],
    *,
    label: str | None = None,
    classes: int | None = None,
    name: str = "quantiles",
) -> Summary:
    """Exact quantiles (0 to 1) of each of d dimensions: `quantiles` (q, d) float64, `at` (q,), `counts`.

    With a label of each class: `quantiles` (C, q, d), NaN where a class has no rows; `counts` (C,).
    Equal to numpy.quantile of the decoded rows in float64. Four passes, of float64 eight.
    """
    wanted = tuple(float(q) for q in at)
    if not wanted or not all(0 <= q <= 1 for q in wanted):
        raise ValueError(f"quantiles lie from 0 to 1, at least one; found {wanted}")
    function = partial(_quantiles, at=wanted, labelled=label is not None, classes=classes)
    return Summary(
        name, function, {"features": features}, {} if label is None else {"label": label}
    )
