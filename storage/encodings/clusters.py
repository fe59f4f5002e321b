"""k-means with k-means++ seeds: the same centroids from the same points, whoever computes them.

Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007; Lloyd, "Least
squares quantization in PCM", 1982. Sums are in float64 and in the order of the points, and a tie is
decided by exact distances and then by the lower number, so that the last bits of a fast matrix
product, which differ between machines and numbers of threads, decide nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.encodings.part import Array

Int64s = NDArray[np.int64]
_ROUNDS = 25
"""Of Lloyd's algorithm, at most."""
_SEED = 0
_PAIRS = 2**17
"""Distances held at once: 1 MiB stays in a core's own cache."""
_TIED = 256
"""Points between which and their centres differences are held at once."""
_NEAR = 1e-12
"""Of the largest squared length: squared distances that lie so close are computed exactly."""


def centroids(points: Array, count: int) -> Array:
    """At most `count` centroids of (n, s) points: (c, s) float32.

    Those with no more than `count` distinct points are the points themselves, in rising order.
    """
    distinct = np.unique(points, axis=0)
    if len(distinct) <= count:
        return distinct.astype(np.float32)
    wide = points.astype(np.float64)
    found = _seeds(wide, count)
    labels: Int64s | None = None
    for _ in range(_ROUNDS):
        before = labels
        labels, distances = nearest(wide, found)
        if before is not None and np.array_equal(labels, before):
            break
        found = _means(wide, labels, distances, found)
    return found.astype(np.float32)


def _seeds(points: Array, count: int) -> Array:
    """k-means++: each next seed is drawn in proportion to the squared distance from those before."""
    random = np.random.default_rng(_SEED)
    centred = points - points.mean(axis=0)
    lengths = (centred**2).sum(axis=1)
    chosen = [int(random.integers(len(points)))]
    left = np.full(len(points), np.inf)
    for _ in range(count - 1):
        last = chosen[-1]
        gap = lengths - 2 * (centred @ centred[last]) + lengths[last]
        gap[last] = 0.0
        left = np.minimum(left, np.maximum(gap, 0.0))
        total = left.cumsum()
        chosen.append(int(np.searchsorted(total, random.random() * total[-1], side="right")))
        chosen[-1] = min(chosen[-1], len(points) - 1)
    return points[chosen]


def _means(points: Array, labels: Int64s, distances: Array, before: Array) -> Array:
    """The mean of each cluster; an empty one is given the point that is farthest from its own."""
    count = len(before)
    sizes = np.bincount(labels, minlength=count)
    sums = [np.bincount(labels, axis, count) for axis in np.ascontiguousarray(points.T)]
    means = np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        means[empty] = points[np.argsort(-distances, kind="stable")[: len(empty)]]
    return means


def nearest(points: Array, centres: Array) -> tuple[Int64s, Array]:
    """The number of each point's nearest centre, of equally near ones the lowest, and the squared
    distance: (n,) int64 and (n,) float64."""
    labels, distances = np.zeros(len(points), np.int64), np.zeros(len(points))
    known = centres.astype(np.float64)
    # Around the centres' mean: far from the origin the squares would drown the differences.
    origin = known.mean(axis=0)
    shifted = known - origin
    lengths = (shifted**2).sum(axis=1)
    turned = np.ascontiguousarray(-2 * shifted.T)
    step = max(_PAIRS // len(known), 1)
    for start in range(0, len(points), step):
        some = points[start : start + step].astype(np.float64)
        moved, each = some - origin, np.arange(len(some))
        gaps = moved @ turned
        gaps += lengths
        label = gaps.argmin(axis=1)
        least = gaps[each, label]
        bound = least + _NEAR * ((moved**2).sum(axis=1) + lengths.max())
        gaps[each, label] = np.inf
        tied = np.flatnonzero(gaps.min(axis=1) <= bound)
        gaps[each, label] = least
        for first in range(0, len(tied), _TIED):
            piece = tied[first : first + _TIED]
            label[piece] = _decided(some[piece], known, gaps[piece] <= bound[piece, None])
        labels[start : start + step] = label
        distances[start : start + step] = ((some - known[label]) ** 2).sum(axis=1)
    return labels, distances


def _decided(points: Array, centres: Array, close: NDArray[np.bool_]) -> Int64s:
    """The nearest of each point's close centres, by the differences themselves."""
    rows, among = np.nonzero(close)
    gaps = ((points[rows] - centres[among]) ** 2).sum(axis=1)
    order = np.lexsort((gaps, rows))  # which keeps rising numbers where distances are equal
    first = np.unique(rows[order], return_index=True)[1]
    return np.asarray(among[order][first])
