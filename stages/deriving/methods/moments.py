"""Counts, means and covariances, of all rows or of each class: exact, in one pass.

Blocks are merged by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances" (1979): means and sums of squares around them, in float64, so that a
mean far from 0 costs no digits. Against numpy on all rows at once: rtol 1e-10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.deriving.derivation import Summary
from stillroom.stages.deriving.table import Batch, Table
from stillroom.storage.errors import SignalError

Float64s = NDArray[np.float64]
_LIMIT_BYTES = 2**30
"""Of covariances of all classes together; a few such arrays are held at once."""


@dataclass(frozen=True)
class Moments:
    """Of C classes in d dimensions."""

    counts: NDArray[np.int64]
    """(C,)"""
    means: Float64s
    """(C, d); zeros where a class has no rows."""
    squares: Float64s | None
    """(C, d, d): sums of the outer products of differences from the mean; None: not asked for."""


def moments_of(values: Float64s, labels: NDArray[Any], classes: int, squares: bool) -> Moments:
    """Of the (n, d) rows of one block."""
    width = values.shape[1]
    counts = np.bincount(labels, minlength=classes)
    means = np.zeros((classes, width))
    scatter = np.zeros((classes, width, width)) if squares else None
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(counts)
    for each in np.flatnonzero(counts):
        rows = values[order[ends[each] - counts[each] : ends[each]]] if classes > 1 else values
        means[each] = rows.mean(axis=0)
        if scatter is not None:
            rows = rows - means[each]
            means[each] += rows.mean(axis=0)  # what rounding left of it
            scatter[each] = rows.T @ rows
    return Moments(counts.astype(np.int64), means, scatter)


def merged(parts: Sequence[Moments]) -> Moments:
    """Of all rows of these together."""
    counts, means, squares = parts[0].counts, parts[0].means, parts[0].squares
    for part in parts[1:]:
        total = np.maximum(counts + part.counts, 1)
        gap = part.means - means
        gap[(counts == 0) | (part.counts == 0)] = 0
        share = (part.counts / total)[:, None]
        if squares is not None and part.squares is not None:
            weight = (counts * (part.counts / total))[:, None]
            outer = (gap * weight)[:, :, None] * gap[:, None, :]
            squares = squares + part.squares + outer
        means = np.where((counts == 0)[:, None], part.means, means + gap * share)
        counts = counts + part.counts
    return Moments(counts, means, squares)


def _of_block(batch: Batch, classes: int, squares: bool, labelled: bool) -> Moments:
    values = batch.matrix("features")
    labels = batch.column("label") if labelled else np.zeros(len(values), np.int64)
    return moments_of(values, labels, classes, squares)


def table_moments(table: Table, classes: int | None, squares: bool) -> Moments:
    """One pass over the table; `classes` None: one class of all rows.

    SignalError where the covariances would take more than a GiB.
    """
    width = table.width("features")
    need = (classes or 1) * width**2 * 8
    if squares and need > _LIMIT_BYTES:
        raise SignalError(
            f"covariances of {classes or 1:,} classes in {width:,} dimensions take {need:,} bytes, the "
            f"limit is {_LIMIT_BYTES:,}. Ask for means alone (covariances=False), or project the signal "
            "to fewer dimensions first: pca(), projected()"
        )
    work = partial(_of_block, classes=classes or 1, squares=squares, labelled=classes is not None)
    return table.fold(work, merged, "features")


def _moments(table: Table) -> dict[str, Any]:
    found = table_moments(table, None, squares=True)
    assert found.squares is not None
    count = int(found.counts[0])
    covariance = found.squares[0] / (count - 1) if count > 1 else found.squares[0] * np.nan
    return {"count": np.int64(count), "mean": found.means[0], "covariance": covariance}


def _class_moments(table: Table, *, classes: int | None, covariances: bool) -> dict[str, Any]:
    known = table.classes("label", classes)
    found = table_moments(table, known, covariances)
    means = np.where((found.counts == 0)[:, None], np.nan, found.means)
    arrays: dict[str, Any] = {"counts": found.counts, "means": means}
    if found.squares is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = found.squares / (found.counts - 1)[:, None, None]
        spread[found.counts < 2] = np.nan
        inner = max(int(found.counts.sum() - (found.counts > 0).sum()), 1)
        arrays |= {"covariances": spread, "within": found.squares.sum(axis=0) / inner}
    return arrays


def moments(features: str, *, name: str = "moments") -> Summary:
    """Of a signal of one shape, flattened to d: `count`, `mean` (d,), `covariance` (d, d).

    float64; the covariance divides by count - 1.
    """
    return Summary(name, _moments, {"features": features})


def class_means(
    features: str, label: str, *, classes: int | None = None, name: str = "class_means"
) -> Summary:
    """`counts` (C,) and `means` (C, d) float64 of each class; NaN where a class has no rows.

    `label`: a column of the data set, or a cached signal, of whole numbers from 0; `classes` is C
    where the largest label does not tell it.
    """
    function = partial(_class_moments, classes=classes, covariances=False)
    return Summary(name, function, {"features": features}, {"label": label})


def class_moments(
    features: str, label: str, *, classes: int | None = None, name: str = "class_moments"
) -> Summary:
    """As `class_means`, with `covariances` (C, d, d) and their pooled one, `within` (d, d).

    Those of a class divide by its rows - 1 (NaN for fewer than two rows); `within` divides by all
    rows less the classes that have some.
    """
    function = partial(_class_moments, classes=classes, covariances=True)
    return Summary(name, function, {"features": features}, {"label": label})
