"""k-means and mini-batch k-means from k-means++ seeds, the same for the same rows and seed.

Lloyd (1982); Arthur and Vassilvitskii, "k-means++" (2007); Sculley, "Web-scale k-means clustering"
(2010). Which rows are drawn hangs on their keys (see `draws`), so neither the layout of the cache nor
the number of workers chooses other clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.deriving.derivation import Summary
from stillroom.stages.deriving.methods import draws
from stillroom.stages.deriving.table import Batch, Table
from stillroom.storage.encodings.clusters import nearest
from stillroom.storage.errors import SignalError

Float64s = NDArray[np.float64]
_SAMPLE_ROWS, _SAMPLE_BYTES, _SEEDS_FROM = 2**14, 2**24, 4
"""Seeds are drawn among so many rows, or rows of so many bytes, but of at least so many times k."""
_PIECE = 2**17
"""Numbers whose differences are held at once."""
_SEEDING = 0
"""The shuffle of the rows among which seeds are drawn; those of epochs are numbered from 1."""


class _Winner(NamedTuple):
    """The rows that came in first: when, the code of the key, and the row."""

    times: Float64s
    codes: NDArray[np.uint64]
    rows: Float64s


def _first(winners: _Winner, count: int) -> _Winner:
    order = np.lexsort((winners.codes, winners.times))[:count]
    return _Winner(winners.times[order], winners.codes[order], winners.rows[order])


def _first_of_all(parts: Sequence[_Winner], count: int) -> _Winner:
    times, codes, rows = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _first(_Winner(times, codes, rows), count)


def _farthest(batch: Batch, centres: Float64s, count: int) -> _Winner:
    values = batch.matrix("features")
    return _first(_Winner(-nearest(values, centres)[1], batch.codes, values), count)


def _seeds(table: Table, clusters: int, seed: int) -> Float64s:
    """k-means++ among rows that are drawn by their keys: each seed is drawn in proportion to its
    squared distance from those before."""
    wide = max(table.width("features") * 8, 1)
    size = max(_SEEDS_FROM * clusters, min(_SAMPLE_ROWS, _SAMPLE_BYTES // wide))
    some = _shuffled(table.codes, seed, _SEEDING)[:size]
    values, codes = table.take(some, "features"), table.codes[some]
    found = np.zeros((0, values.shape[1]))
    left = np.ones(len(values))
    for step in range(clusters):
        winner = _first(_Winner(draws.times(codes, seed, step, left), codes, values), 1)
        if np.isinf(winner.times[0]):
            raise SignalError(
                f"{clusters:,} clusters were asked for, but among {len(some):,} drawn rows only "
                f"{step:,} are distinct"
            )
        found = np.concatenate([found, winner.rows])
        gaps = _gaps(values, found[-1])
        left = np.minimum(left, gaps) if step else gaps
    return found


def _gaps(values: NDArray[Any], row: Float64s) -> Float64s:
    """(n,) squared distances, a few rows at a time."""
    step = max(1, _PIECE // max(len(row), 1))
    pieces = (values[i : i + step] for i in range(0, len(values), step))
    return np.concatenate([((piece - row) ** 2).sum(axis=1) for piece in pieces])


def _shuffled(codes: NDArray[np.uint64], seed: int, step: int) -> NDArray[np.int64]:
    """Places of the rows in an order that their keys and the seed decide."""
    return np.lexsort((codes, draws.mixed(codes, ~seed, step)))


class _Sums(NamedTuple):
    counts: NDArray[np.int64]
    sums: Float64s
    """Of differences from the centre: small numbers, so that little is rounded."""
    inertia: float


def _assigned(batch: Batch, centres: Float64s) -> _Sums:
    values = batch.matrix("features")
    labels, distances = nearest(values, centres)
    counts = np.bincount(labels, minlength=len(centres))
    return _Sums(counts, _grouped(values - centres[labels], labels, counts), distances.sum())


def _grouped(values: Float64s, labels: NDArray[np.int64], counts: NDArray[Any]) -> Float64s:
    """(k, d) sums of the rows of each label."""
    sums = np.zeros((len(counts), values.shape[1]))
    order, present = np.argsort(labels, kind="stable"), np.flatnonzero(counts)
    if len(present):
        starts = np.cumsum(counts)[present] - counts[present]
        sums[present] = np.add.reduceat(values[order], starts, axis=0)
    return sums


def _summed(parts: Sequence[_Sums]) -> _Sums:
    counts, sums, inertia = parts[0]
    for part in parts[1:]:
        counts, sums, inertia = counts + part.counts, sums + part.sums, inertia + part.inertia
    return _Sums(counts, sums, inertia)


def _lloyd(
    table: Table, *, clusters: int, seed: int, rounds: int, tolerance: float
) -> dict[str, Any]:
    _require_enough(table, clusters)
    centres = _seeds(table, clusters, seed)
    done, shift, spread = 0, np.inf, 0.0
    while done < rounds and shift > tolerance * spread:
        found = table.fold(partial(_assigned, centres=centres), _summed, "features")
        moved = centres + found.sums / np.maximum(found.counts, 1)[:, None]
        if len(empty := np.flatnonzero(found.counts == 0)):
            # The rows that are served worst, farthest first; as rows of other clusters they stay there.
            work = partial(_farthest, centres=centres, count=len(empty))
            join = partial(_first_of_all, count=len(empty))
            moved[empty] = table.fold(work, join, "features", codes=True).rows
        spread = found.inertia / len(table)
        shift = float(((moved - centres) ** 2).sum(axis=1).max())
        centres, done = moved, done + 1
    last = table.fold(partial(_assigned, centres=centres), _summed, "features")
    return _described(centres, last, done)


def _described(centres: Float64s, last: _Sums, rounds: int) -> dict[str, Any]:
    return {
        "centroids": centres,
        "counts": last.counts.astype(np.int64),
        "inertia": np.float64(last.inertia),
        "rounds": np.int64(rounds),
    }


def _require_enough(table: Table, clusters: int) -> None:
    if not 1 <= clusters <= len(table):
        raise SignalError(f"{clusters:,} clusters were asked for of {len(table):,} rows")


def _minibatch(
    table: Table, *, clusters: int, seed: int, epochs: int, batch_rows: int
) -> dict[str, Any]:
    _require_enough(table, clusters)
    codes, centres = table.codes, _seeds(table, clusters, seed)
    seen = np.zeros(clusters, np.int64)
    for epoch in range(1, epochs + 1):
        order = _shuffled(codes, seed, epoch)
        mine = np.zeros(clusters, np.int64)
        for start in range(0, len(order), batch_rows):
            at = order[start : start + batch_rows]
            values = table.take(at, "features").astype(np.float64)
            labels, distances = nearest(values, centres)
            counts = np.bincount(labels, minlength=clusters)
            seen, mine = seen + counts, mine + counts
            # A centre is the mean of all rows that were ever given to it: each counts 1 / seen.
            gaps = _grouped(values - centres[labels], labels, counts)
            centres = centres + gaps / np.maximum(seen, 1)[:, None]
        if len(empty := np.flatnonzero(mine == 0)):
            # No row of a whole epoch: to where rows of its last batch are served worst.
            worst = np.lexsort((codes[at], -distances))[: len(empty)]
            centres[empty[: len(worst)]], seen[empty] = values[worst], 0
    last = table.fold(partial(_assigned, centres=centres), _summed, "features")
    return _described(centres, last, epochs)


def kmeans(
    features: str,
    clusters: int,
    *,
    seed: int = 0,
    rounds: int = 100,
    tolerance: float = 1e-8,
    name: str = "kmeans",
) -> Summary:
    """Lloyd's k-means from k-means++ seeds: `centroids` (k, d) float64, `counts` (k,), `inertia` (the
    sum of squared distances), `rounds`.

    Seeds come from up to 16,384 rows. A pass for each round, until no centre moves by more than
    `tolerance` times the mean
    squared distance. A centre without rows moves to the row that is farthest from its own.
    """
    function = partial(_lloyd, clusters=clusters, seed=seed, rounds=rounds, tolerance=tolerance)
    return Summary(name, function, {"features": features})


def minibatch_kmeans(
    features: str,
    clusters: int,
    *,
    seed: int = 0,
    epochs: int = 3,
    batch_rows: int = 1024,
    name: str = "minibatch_kmeans",
) -> Summary:
    """Mini-batch k-means: as `kmeans` gives, after so many epochs of batches in a drawn order.

    Each row moves its nearest centre by 1 / (rows that it was given so far). Batches are read by row,
    one after another; only the last pass, which counts, runs on the scheduler.
    """
    function = partial(
        _minibatch, clusters=clusters, seed=seed, epochs=epochs, batch_rows=batch_rows
    )
    return Summary(name, function, {"features": features})
