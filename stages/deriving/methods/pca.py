"""Principal components of all rows, or of each class: by covariance, or by subspace iteration.

Up to 1,024 dimensions the covariance is made in one pass and taken apart exactly. Above, a random
subspace is multiplied by the covariance pass after pass, without that matrix ever being made
(Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4 applied to the covariance): memory is
d * (components + 10) for each class, whatever the number of rows.

A component's sign is chosen so that its first entry of the largest size is positive. Components of
equal variance span a space in which any basis is as good; which one is given is then not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.deriving.derivation import Summary
from stillroom.stages.deriving.methods.moments import table_moments
from stillroom.stages.deriving.table import Batch, Table
from stillroom.storage.errors import SignalError

Float64s = NDArray[np.float64]
_WIDEST = 1024
"""Dimensions up to which the covariance itself is made."""
_MORE = 10
"""Directions beyond those that are asked for, which makes the subspace settle sooner."""
_PASSES = 40
_SETTLED = 1e-10
"""Relative change of the variances at which the iteration ends."""
_NOTHING = 1e-12
"""Of the largest variance: what is less is rounding."""
_ALIKE = 1e-6
"""Entries whose sizes differ by less, relatively, are taken for equally large."""
SOLVERS = ("auto", "covariance", "subspace")


def signed(components: Float64s) -> Float64s:
    """(k, d) rows with the sign that makes their first entry of the largest size positive."""
    size = np.abs(components)
    first = (size >= size.max(axis=1, keepdims=True) * (1 - _ALIKE)).argmax(axis=1)
    sign = np.where(components[np.arange(len(components)), first] < 0, -1.0, 1.0)
    return np.asarray(components * sign[:, None])


def _finished(
    vectors: Float64s, variances: Float64s, residuals: Float64s, rows: int, components: int
) -> tuple[Float64s, Float64s, Float64s]:
    """Components as rows, largest first; those without variance are zeros, not noise."""
    order = np.argsort(-variances, kind="stable")[:components]
    kept = np.maximum(variances[order], 0.0)
    real = (kept > _NOTHING * kept.max(initial=0.0)) & (np.arange(len(kept)) < rows - 1)
    directions = np.where(real[:, None], signed(vectors[:, order].T), 0.0)
    return directions, np.where(real, kept, 0.0), np.where(real, residuals[order], 0.0)


def _by_covariance(table: Table, classes: int | None, components: int) -> dict[str, Any]:
    found = table_moments(table, classes, squares=True)
    assert found.squares is not None
    freedom = np.maximum(found.counts - 1, 1)[:, None, None]
    covariance = found.squares / freedom
    variances, vectors = np.linalg.eigh(covariance)
    gaps = covariance @ vectors - vectors * variances[:, None, :]
    trace = np.trace(covariance, axis1=1, axis2=2)
    return _described(found.counts, found.means, vectors, variances, gaps, trace, components)


def _by_subspace(table: Table, classes: int | None, components: int, seed: int) -> dict[str, Any]:
    found = table_moments(table, classes, squares=False)
    width, count = found.means.shape[1], len(found.counts)
    size = min(components + _MORE, width)
    product = np.random.default_rng(seed).standard_normal((count, width, size))
    freedom = np.maximum(found.counts - 1, 1)
    before = np.zeros((count, components))
    for _ in range(_PASSES):
        basis = np.linalg.qr(product)[0]
        work = partial(_multiplied, means=found.means, basis=basis, labelled=classes is not None)
        product, trace = table.fold(work, _summed, "features")
        product = product / freedom[:, None, None]
        # Rayleigh-Ritz: the best that this subspace can say of the covariance.
        inside = basis.transpose(0, 2, 1) @ product
        variances, turn = np.linalg.eigh((inside + inside.transpose(0, 2, 1)) / 2)
        now = variances[:, ::-1][:, :components]
        if (np.abs(now - before) <= _SETTLED * np.maximum(now[:, :1], 0)).all():
            break
        before = now
    vectors = basis @ turn
    gaps = product @ turn - vectors * variances[:, None, :]
    total = trace / freedom
    return _described(found.counts, found.means, vectors, variances, gaps, total, components)


def _multiplied(
    batch: Batch, means: Float64s, basis: Float64s, labelled: bool
) -> tuple[Float64s, Float64s]:
    """Of each class: the sum of squares around its mean times the basis, and its trace."""
    values = batch.matrix("features")
    product, trace = np.zeros_like(basis), np.zeros(len(basis))
    labels = batch.column("label") if labelled else np.zeros(len(values), np.int64)
    for each in np.unique(labels).tolist():
        rows = (values[labels == each] if labelled else values) - means[each]
        product[each] = rows.T @ (rows @ basis[each])
        trace[each] = np.einsum("nd,nd->", rows, rows)
    return product, trace


def _summed(parts: Sequence[tuple[Float64s, Float64s]]) -> tuple[Float64s, Float64s]:
    product, trace = parts[0]
    for more, others in parts[1:]:
        product, trace = product + more, trace + others
    return product, trace


def _described(
    counts: NDArray[np.int64],
    means: Float64s,
    vectors: Float64s,
    variances: Float64s,
    gaps: Float64s,
    total: Float64s,
    components: int,
) -> dict[str, Any]:
    """Arrays by name, classes first."""
    norms = np.linalg.norm(gaps, axis=1)
    each = [
        _finished(vectors[c], variances[c], norms[c], int(counts[c]), components)
        for c in range(len(counts))
    ]
    directions, kept, residuals = (np.stack(arrays) for arrays in zip(*each, strict=True))
    return {
        "counts": counts,
        "means": np.where((counts == 0)[:, None], np.nan, means),
        "components": directions,
        "variances": kept,
        "residuals": residuals,
        "total_variances": total,
    }


def _pca(
    table: Table, *, components: int, solver: str, seed: int, labelled: bool, classes: int | None
) -> dict[str, Any]:
    width = table.width("features")
    if not 1 <= components <= width:
        raise SignalError(
            f"{components:,} components were asked for; signal {table.name('features')!r} has {width:,} "
            "dimensions"
        )
    known = table.classes("label", classes) if labelled else None
    if solver == "covariance" or (solver == "auto" and width <= _WIDEST):
        found = _by_covariance(table, known, components)
    else:
        found = _by_subspace(table, known, components, seed)
    if labelled:
        return found
    one = {"counts": "count", "means": "mean", "total_variances": "total_variance"}
    return {one.get(name, name): array[0] for name, array in found.items()}


def pca(
    features: str, components: int, *, solver: str = "auto", seed: int = 0, name: str = "pca"
) -> Summary:
    """Principal components of a signal of one shape, flattened to d. float64:

    `mean` (d,), `components` (k, d) with the largest variance first, `variances` (k,) with
    count - 1 below, `total_variance`, `count`, and `residuals` (k,): the norm of C v - variance v.
    Directions without variance are zeros. `solver`: "covariance", "subspace", or "auto".
    """
    return _summary(name, features, None, components, solver, seed, None)


def class_pca(
    features: str,
    label: str,
    components: int,
    *,
    classes: int | None = None,
    solver: str = "auto",
    seed: int = 0,
    name: str = "class_pca",
) -> Summary:
    """Principal components of each class around its own mean: `counts` (C,), `means` (C, d),
    `components` (C, k, d), `variances` (C, k), `total_variances` (C,), `residuals` (C, k); as `pca`.

    A class of n rows has at most n - 1 components; the others are zeros.
    """
    return _summary(name, features, label, components, solver, seed, classes)


def _summary(
    name: str,
    features: str,
    label: str | None,
    components: int,
    solver: str,
    seed: int,
    classes: int | None,
) -> Summary:
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    function = partial(
        _pca,
        components=components,
        solver=solver,
        seed=seed,
        labelled=label is not None,
        classes=classes,
    )
    columns = {} if label is None else {"label": label}
    return Summary(name, function, {"features": features}, columns)
