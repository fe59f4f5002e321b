"""Gather rows from many memory-mapped files in one step.

Fancy indexing can only gather from one array, and a cache has one file per shard. A loop over the
files costs a Python call for every shard a batch touches (512 rows over 49 shards: 0.47 ms). Here
all mapped files are seen as one array of bytes, the process's own address space between the lowest
and the highest mapping, and a row is an item at a byte offset in it: one indexing call gathers a
batch from any number of files (0.17 ms for the same rows). Only addresses inside mapped files ever
enter: `Extents` holds the mappings alive and checks every position before it makes an address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import CorruptShardError
from stillroom.storage.mapped import Mapping

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Extent:
    """Consecutive rows that lie in one file, `row_bytes` apart."""

    start: int
    """Position of the first row."""
    rows: int
    file: int
    """Index of the file in the list of mappings."""
    offset: int
    """Byte offset of the first row in its file."""


class _Window:
    """numpy's array interface over a stretch of the process's memory."""

    def __init__(self, address: int, items: int, item_bytes: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "data": (address, True),
            "shape": (items,),
            "strides": (1,),
            "typestr": f"|V{item_bytes}",
        }


class Extents:
    """Rows by position over many mapped files."""

    def __init__(
        self,
        extents: Sequence[Extent],
        files: Sequence[Mapping],
        row_bytes: int,
        touch: Callable[[int], None] | None = None,
        *,
        read_bytes: int | None = None,
    ) -> None:
        """Order the extents by position and check that each lies inside its file.

        `touch(file)` is called before the first row of a file is read. `read_bytes` is how much
        will be read at a row's address, where that is not `row_bytes`.
        """
        read_bytes = row_bytes if read_bytes is None else read_bytes
        ordered = sorted(extents, key=lambda e: e.start)
        for e in ordered:
            end = e.offset + (e.rows - 1) * row_bytes + read_bytes
            if e.rows < 1 or e.offset < 0 or end > len(files[e.file].bytes):
                raise CorruptShardError(
                    f"rows {e.start:,} to {e.start + e.rows:,} would end at byte {end:,} of a file of "
                    f"{len(files[e.file].bytes):,}; the cache's index is damaged"
                )
        self._files = list(files)
        self._touch = touch
        self._fresh = np.ones(len(files), bool)
        self.row_bytes = row_bytes
        self._start = np.array([e.start for e in ordered], np.int64)
        self._stop = np.array([e.start + e.rows for e in ordered], np.int64)
        self._file = np.array([e.file for e in ordered], np.int64)
        self._address = np.array([files[e.file].address + e.offset for e in ordered], np.int64)
        self._low = min((f.address for f in files), default=0)
        self._high = max((f.address + len(f.bytes) for f in files), default=0)

    def _locate(self, positions: Int64s) -> tuple[Int64s, NDArray[np.bool_]]:
        """The extent that each position would lie in, and whether it does."""
        e = np.searchsorted(self._start, positions, side="right") - 1
        if len(self._start) == 0:
            return e, np.zeros(len(positions), bool)
        return e, (e >= 0) & (positions < self._stop[e])

    def missing(self, positions: Int64s) -> Int64s:
        """Indices into `positions` of those that no extent holds."""
        return np.flatnonzero(~self._locate(positions)[1])

    def addresses(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Each row's address and the index of its file, which is checked on first touch.

        Raises IndexError when a position is in no extent (see `missing`).
        """
        e, held = self._locate(positions)
        if not held.all():
            raise IndexError("a position is in no extent")
        files = self._file[e]
        if self._touch is not None and self._fresh[files].any():
            for file in np.unique(files[self._fresh[files]]):
                self._touch(int(file))
                self._fresh[file] = False
        return self._address[e] + (positions - self._start[e]) * self.row_bytes, files

    def read(self, addresses: Int64s, item_bytes: int) -> NDArray[np.void]:
        """(n,) items of `item_bytes` bytes, copied from the addresses that `addresses` gave.

        Raises IndexError when one would end outside the mapped files' span.
        """
        if len(addresses) == 0:
            return np.zeros(0, f"V{item_bytes}")
        low, high = int(addresses.min()), int(addresses.max()) + item_bytes
        if low < self._low or high > self._high:
            raise IndexError("an address lies outside the mapped files")
        window = np.asarray(_Window(self._low, self._high - self._low - item_bytes + 1, item_bytes))
        return np.asarray(window[addresses - self._low])

    def rows(self, positions: Int64s, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """(n, *shape) rows in the order of `positions`."""
        items = self.read(self.addresses(positions)[0], self.row_bytes)
        return items.view(dtype).reshape(len(positions), *shape)
