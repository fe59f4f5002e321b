"""Exact nearest neighbours: every row against all others, block by block.

A matrix product finds the candidates, those within its rounding of the k-th nearest as well; the
differences themselves decide between them, and between equal ones the lower key. So neither the
layout of the cache nor the shape of a product chooses other neighbours.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.deriving.derivation import RowWise
from stillroom.stages.deriving.table import Table, as_matrix
from stillroom.storage.contents import key_order
from stillroom.storage.errors import SignalError
from stillroom.storage.keys import KeyIndex
from stillroom.storage.pairs import is_pairs
from stillroom.storage.signal import Values

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]
METRICS = ("cosine", "l2")
_NEAR = 1e-12
"""Relative rounding of a product of float64 rows, with room."""
_PAIRS = 2**14
"""Pairs of rows whose differences are held at once."""


def _scaled(values: NDArray[Any], metric: str) -> Float64s:
    rows = values.astype(np.float64)
    if metric == "cosine":
        length = np.sqrt((rows**2).sum(axis=1, keepdims=True))
        rows = rows / np.where(length > 0, length, 1.0)  # rows of zeros stay at the middle
    return rows


class _Best:
    """The nearest that were seen so far, of each of n queries."""

    def __init__(self, queries: Float64s, own: Int64s, count: int) -> None:
        self._queries, self._own, self._count = queries, own, count
        self._lengths = (queries**2).sum(axis=1)
        self.ranks = np.full((len(queries), count), np.iinfo(np.int64).max)
        self.gaps = np.full((len(queries), count), np.inf)

    def see(self, rows: Float64s, ranks: Int64s) -> None:
        """Candidates and their places in the order of keys."""
        lengths = (rows**2).sum(axis=1)
        near = self._lengths[:, None] + lengths - 2 * (self._queries @ rows.T)
        near[self._own[:, None] == ranks] = np.inf
        kept = min(self._count, len(rows))
        ahead = np.partition(near, kept - 1, axis=1)[:, kept - 1] if kept == self._count else np.inf
        room = _NEAR * (self._lengths + lengths.max(initial=0.0))
        limit = np.minimum(ahead, self.gaps[:, -1]) + room
        query, found = np.nonzero(near <= np.minimum(limit, np.finfo(np.float64).max)[:, None])
        exact = np.empty(len(query))
        for start in range(0, len(query), _PAIRS):
            at = slice(start, start + _PAIRS)
            exact[at] = ((self._queries[query[at]] - rows[found[at]]) ** 2).sum(axis=1)
        each = np.arange(len(self._queries)).repeat(self._count)
        owner = np.concatenate([each, query])
        gaps = np.concatenate([self.gaps.reshape(-1), exact])
        known = np.concatenate([self.ranks.reshape(-1), ranks[found]])
        order = np.lexsort((known, gaps, owner))
        begin = np.searchsorted(owner[order], np.arange(len(self._queries)))
        first = order[begin[:, None] + np.arange(self._count)]
        self.ranks, self.gaps = known[first], gaps[first]


def _neighbours(
    *,
    features: Values,
    table: Table,
    keys: pa.Array,
    count: int,
    metric: str,
    name: str,
) -> dict[str, Values]:
    if is_pairs(table.keys):
        raise SignalError("neighbours of views are not computed: derive them from rows as they are")
    if not 1 <= count < len(table):
        raise SignalError(
            f"{count:,} neighbours were asked for; each row has {len(table) - 1:,} others"
        )
    order = key_order(table.keys)
    ordered = table.keys.take(pa.array(order))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    own = rank[KeyIndex(table.keys).find(keys)]
    signal = table.name("features")
    best = _Best(_scaled(as_matrix(features, signal), metric), own, count)
    for block in table.blocks("features"):
        rows = _scaled(as_matrix(block.load()[signal], signal), metric)
        best.see(rows, rank[block.start : block.start + block.rows])
    found = ordered.take(pa.array(best.ranks.reshape(-1)))
    gaps = np.sqrt(best.gaps) if metric == "l2" else best.gaps / 2
    return {name: _as_rows(found, count), f"{name}_distance": gaps.astype(np.float32)}


def _as_rows(keys: pa.Array, count: int) -> Values:
    if pa.types.is_integer(keys.type):
        return np.asarray(keys.to_numpy(zero_copy_only=False), np.int64).reshape(-1, count)
    texts = keys.to_pylist()
    each = (texts[i : i + count] for i in range(0, len(texts), count))
    return [json.dumps(row, ensure_ascii=False) for row in each]


def neighbours(
    features: str, count: int, *, metric: str = "cosine", name: str = "neighbours"
) -> RowWise:
    """The keys of each row's `count` nearest others, nearest first: a signal of that name, int64
    (count,), or where keys are texts a JSON list of them; and `<name>_distance` float32 (count,).

    The distance is 1 - cosine, or "l2" not squared. Equal ones: the lower key first; a row is never
    its own neighbour. Every row's answer depends on all rows, so a change of any computes all anew.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")
    outputs = (name, f"{name}_distance")
    function = partial(_neighbours, count=count, metric=metric, name=name)
    return RowWise(name, function, {"features": features}, outputs, whole=True)
