"""Fields of different widths in rows of bytes, written and read for many rows at once.

Bit j of a row is bit j % 8 (the lowest first) of its byte j // 8, and a field's lowest bit comes
first. A row's fields of one kind lie together: first all those in unary (n zeros and a one), then
plain ones whose widths are known by then. So where each field begins is a matter of sums, and numpy
reads all rows' fields of a kind in one step; a code that has to be read symbol after symbol would
need a step of Python for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import CorruptShardError
from stillroom.storage.ragged import Ragged

Int64s = NDArray[np.int64]
Bytes = NDArray[np.uint8]
WIDEST = 48
"""Bits of a plain field: what is left of a window of 64 after up to 7 bits before it."""


@dataclass(frozen=True)
class Groups:
    """How many things each row holds, one row's behind the other's."""

    counts: Int64s
    """(rows,)"""

    @cached_property
    def ends(self) -> Int64s:
        """(rows + 1,): where each row's things begin, and the end of the last."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts, dtype=np.int64)])

    @cached_property
    def row(self) -> Int64s:
        """The row of each thing."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def within(self) -> Int64s:
        """The place of each thing in its row."""
        return np.arange(self.ends[-1]) - self.ends[:-1][self.row]

    def sums(self, values: Int64s) -> Int64s:
        """(rows,): of each row's values."""
        reach = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
        return np.asarray(reach[self.ends[1:]] - reach[self.ends[:-1]])

    def running(self, values: Int64s) -> Int64s:
        """Sums of a row's values up to and with each."""
        reach = np.cumsum(values, dtype=np.int64)
        before = np.concatenate([np.zeros(1, np.int64), reach])[self.ends[:-1]]
        return np.asarray(reach - before[self.row])


class Writer:
    """Rows of fields; every call adds one kind of field to all rows."""

    def __init__(self, rows: int) -> None:
        """Rows without a bit."""
        self._bits = np.zeros(rows, np.int64)
        self._unary: list[tuple[Int64s, Int64s]] = []
        self._plain: list[tuple[Int64s, Int64s, Int64s, Int64s]] = []

    def unary(self, groups: Groups, values: Int64s) -> None:
        """As many zeros as the value says, and a one."""
        at = self._bits[groups.row] + groups.running(values + 1) - 1
        self._unary.append((groups.row, at))
        self._bits = self._bits + groups.sums(values + 1)

    def plain(self, groups: Groups, values: Int64s, widths: Int64s) -> None:
        """The values' lowest bits."""
        at = self._bits[groups.row] + groups.running(widths) - widths
        self._plain.append((groups.row, at, values, widths))
        self._bits = self._bits + groups.sums(widths)

    def rows(self, heads: Ragged) -> Ragged:
        """The finished rows, each behind its head of whole bytes; zeros fill the last byte."""
        body = -(-self._bits // 8)
        offsets = np.zeros(len(body) + 1, np.int64)
        np.cumsum(heads.lengths + body, out=offsets[1:])
        content = np.zeros(int(offsets[-1]), np.uint8)
        place = Groups(heads.lengths)
        content[offsets[:-1][place.row] + place.within] = heads.values
        bits = np.zeros(8 * len(content), np.uint8)
        first = 8 * (offsets[:-1] + heads.lengths)
        for row, at in self._unary:
            bits[first[row] + at] = 1
        for row, at, values, widths in self._plain:
            start = first[row] + at
            for bit in range(int(widths.max(initial=0))):
                some = widths > bit
                bits[start[some] + bit] = (values[some] >> bit) & 1
        return Ragged(content | np.packbits(bits, bitorder="little"), offsets)


class Scanner:
    """The same rows, read again: every call reads one kind of field of all rows.

    Whatever the bytes are, only bits inside a row are read for it; CorruptShardError when it has too
    few of them, or when bits are left at the end.
    """

    def __init__(self, content: Bytes, starts: Int64s, ends: Int64s) -> None:
        """Row i is content[starts[i]:ends[i]], behind its head."""
        self._content = np.concatenate([content, np.zeros(8, np.uint8)])
        self._at, self._end = 8 * starts, 8 * ends
        # numpy is twice as fast at finding ones among booleans.
        self._ones = np.flatnonzero(np.unpackbits(content, bitorder="little").view(bool))

    def unary(self, groups: Groups) -> Int64s:
        """As many numbers as the groups say."""
        first = np.searchsorted(self._ones, self._at)
        last = np.searchsorted(self._ones, self._end)
        if (groups.counts > last - first).any():
            raise CorruptShardError("a packed row ends before its numbers do")
        ones = self._ones[first[groups.row] + groups.within]
        before = np.empty_like(ones)
        before[1:] = ones[:-1]
        filled = groups.counts > 0
        before[groups.ends[:-1][filled]] = self._at[filled] - 1
        self._at = self._at.copy()
        self._at[filled] = ones[groups.ends[1:][filled] - 1] + 1
        return np.asarray(ones - before - 1)

    def plain(self, groups: Groups, widths: Int64s) -> Int64s:
        """Values of these widths, each at most WIDEST bits."""
        if widths.size and not 0 <= widths.min() <= widths.max() <= WIDEST:
            raise CorruptShardError(f"a packed row has a field of {widths.max()} bits")
        after = self._at + groups.sums(widths)
        if (after > self._end).any():
            raise CorruptShardError("a packed row ends before its fields do")
        at = self._at[groups.row] + groups.running(widths) - widths
        self._at = after
        # Eight bytes from the field's first one on, at any address.
        windows = np.ndarray(len(self._content) - 7, "<u8", self._content, strides=(1,))
        found = windows[at >> 3] >> (at & 7).astype(np.uint64)
        mask = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
        return np.asarray((found & mask).astype(np.int64))

    def finish(self) -> None:
        """Nothing but the zeros that fill the last byte is left."""
        ones = np.searchsorted(self._ones, self._at) != np.searchsorted(self._ones, self._end)
        if ((self._end - self._at >= 8) | (self._end < self._at) | ones).any():
            raise CorruptShardError("a packed row holds more than its fields")
