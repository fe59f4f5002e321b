"""Rows of different lengths on their way into a model and out of it: cut into groups, padded, joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Values

Int64s = NDArray[np.int64]
_PASS = 128
"""Tokens of padding that cost less than another pass through a small model."""


def groups(lengths: Int64s, most: int) -> Iterator[Int64s]:
    """Rows that go through the model together: at most `most` tokens once padded, one row at least.

    Rows of like length share a group, and one ends where padding would be a quarter of it, or more
    than a pass of its own costs.

    >>> [group.tolist() for group in groups(np.array([5, 2, 9, 2]), 10)]
    [[1, 3], [0], [2]]
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop, tokens = start, 0
        while stop < len(order):
            # Rising lengths: the last row of a group is its longest.
            longest = int(lengths[order[stop]])
            whole = longest * (stop + 1 - start)
            padding = whole - tokens - longest
            if stop > start and (whole > most or padding > max(whole // 4, _PASS)):
                break
            stop, tokens = stop + 1, tokens + longest
        yield order[start:stop]
        start = stop


def padded(ids: Sequence[Int64s], pad: int) -> tuple[Int64s, Int64s]:
    """(n, longest) token ids with `pad` behind the shorter rows, and the mask: 1 where a token is.

    >>> [array.tolist() for array in padded([np.array([7, 8]), np.array([9])], 0)]
    [[[7, 8], [9, 0]], [[1, 1], [1, 0]]]
    """
    lengths = np.array([len(each) for each in ids], np.int64)
    there = np.arange(lengths.max()) < lengths[:, None]
    out = np.full(there.shape, pad, np.int64)
    out[there] = np.concatenate(ids)
    return out, there.astype(np.int64)


def within(lengths: Int64s) -> Int64s:
    """The place of each element in its row, for rows of these lengths one after another.

    >>> within(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)


class Joined:
    """One signal of a batch, filled group by group, in rows of the given lengths.

    Held once, without padding: (sum of lengths, *inner shape).
    """

    def __init__(self, lengths: Int64s) -> None:
        """Nothing is held yet: the inner shape is that of what comes first."""
        self._offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=self._offsets[1:])
        self._values: NDArray[Any] | None = None

    def put(self, rows: Int64s, at: Int64s, values: NDArray[Any]) -> None:
        """(some, *inner) elements: of which row each is, and which of that row's."""
        if self._values is None:
            shape = (int(self._offsets[-1]), *values.shape[1:])
            self._values = np.empty(shape, values.dtype)
        self._values[self._offsets[rows] + at] = values

    def ragged(self) -> Ragged:
        """All rows."""
        assert self._values is not None
        return Ragged(self._values, self._offsets)


class Stacked:
    """One signal of a batch whose rows all have one shape."""

    def __init__(self, rows: int) -> None:
        """Nothing is held yet."""
        self._rows = rows
        self._values: NDArray[Any] | None = None

    def put(self, rows: Int64s, values: NDArray[Any]) -> None:
        """(some, *shape) values of these rows."""
        if self._values is None:
            self._values = np.empty((self._rows, *values.shape[1:]), values.dtype)
        self._values[rows] = values

    def stacked(self) -> Values:
        """All rows: (n, *shape)."""
        assert self._values is not None
        return self._values


def as_attention(row: NDArray[Any]) -> NDArray[Any]:
    """(heads, tokens, tokens) from a stored row of attention, (tokens * tokens, heads).

    What a token looks at lies along the last axis.

    >>> as_attention(np.arange(8).reshape(4, 2)).tolist()
    [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    """
    tokens = round(len(row) ** 0.5)
    return row.reshape(tokens, tokens, -1).transpose(2, 0, 1)
