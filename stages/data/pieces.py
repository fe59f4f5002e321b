"""Columns that lie in pieces (row groups, record batches): decoded when needed, kept within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import THREADS, Stored, hash_rows, kind_of
from stillroom.stages.data.rows import Batch, Column
from stillroom.storage.errors import RowsError
from stillroom.storage.folder import Hashes
from stillroom.storage.keys import as_keys

Int64s = NDArray[np.int64]
Part = tuple[int, str]
"""A piece's number and a column's name."""


class Pieces:
    """Rows of a table by position, in any order.

    Decoded columns of pieces are kept, least recently used first out, up to `memory_bytes`; what is
    in work comes on top: one column of one piece for each thread.
    """

    def __init__(
        self,
        counts: Sequence[int],
        decode: Callable[[int, str], Stored],
        said: Callable[[int], str],
        memory_bytes: int,
    ) -> None:
        """`counts`: rows of each piece; `said`: its place, for messages."""
        self._starts = np.concatenate([[0], np.cumsum(np.array(counts, np.int64))])
        self._decode, self._said, self._limit = decode, said, memory_bytes
        self._kept: OrderedDict[Part, Stored] = OrderedDict()
        self._bytes = 0
        self._kinds: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._starts[-1])

    def piece_of(self, positions: Int64s) -> Int64s:
        """(n,) the piece of each position; IndexError outside the table."""
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"there are rows 0 to {len(self) - 1:,}; asked for others")
        return np.searchsorted(self._starts, positions, side="right") - 1

    def read(self, positions: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these positions, in that order: copies."""
        groups = self._grouped(positions)
        return {name: self._gathered(name, groups, len(positions)) for name in columns}

    def _gathered(self, name: str, groups: list[tuple[int, Int64s, Int64s]], rows: int) -> Column:
        texts: list[Any] = [""] * rows
        numbers: NDArray[Any] | None = None
        each = self._parts([(piece, name) for piece, _, _ in groups])
        for (_, at, within), stored in zip(groups, each, strict=True):
            if not isinstance(stored, np.ndarray):
                found: Any = _taken(stored, within)
                for place, text in zip(at.tolist(), found.to_pylist(), strict=True):
                    texts[place] = text
            elif len(groups) == 1:
                numbers = stored[within]
            else:
                if numbers is None:
                    numbers = np.empty((rows, *stored.shape[1:]), stored.dtype)
                numbers[at] = stored[within]
        if not groups and len(self._starts) > 1:
            none = self._part((0, name))[:0]
            return none.copy() if isinstance(none, np.ndarray) else []
        return texts if numbers is None else numbers

    def hashes(self, columns: Sequence[str], positions: Int64s | None = None) -> Hashes:
        """(n,) items of 16 bytes: of the rows at these positions, or of all."""
        if positions is None:
            positions = np.arange(len(self))
        groups = self._grouped(positions)
        found = np.zeros(len(positions), "V16")
        names = sorted(set(columns))
        parts = self._parts([(piece, name) for piece, _, _ in groups for name in names])
        for _, at, within in groups:
            stored = dict(zip(names, islice(parts, len(names)), strict=True))
            some = {name: _taken(column, within) for name, column in stored.items()}
            found[at] = hash_rows(some)
        return found

    def broken(self, columns: Sequence[str]) -> dict[int, str]:
        """By position: why a row cannot be read, which is why its piece cannot."""

        def wrong(piece: int) -> str:
            try:
                for name in columns:
                    self._decode(piece, name)
            except RowsError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(THREADS) as pool:
            reasons = list(pool.map(wrong, range(len(self._starts) - 1)))
        starts = self._starts.tolist()
        return {
            position: why
            for piece, why in enumerate(reasons)
            if why
            for position in range(starts[piece], starts[piece + 1])
        }

    def _grouped(self, positions: Int64s) -> list[tuple[int, Int64s, Int64s]]:
        """(piece, places among `positions`, places in the piece) of every piece that is touched."""
        piece = self.piece_of(positions)
        order = np.argsort(piece, kind="stable")
        cuts = np.flatnonzero(np.diff(piece[order])) + 1
        found = []
        for at in np.split(order, cuts) if len(order) else []:
            number = int(piece[at[0]])
            found.append((number, at, positions[at] - self._starts[number]))
        return found

    def _parts(self, wanted: Sequence[Part]) -> Iterator[Stored]:
        """Each part in turn; those to come are decoded on threads meanwhile."""
        with self._lock:
            missing = [part for part in wanted if part not in self._kept]
        if len(missing) < 2:
            yield from map(self._part, wanted)
            return
        todo = iter(wanted)
        with ThreadPoolExecutor(THREADS) as pool:
            ahead: deque[Future[Stored]] = deque()
            try:
                ahead.extend(pool.submit(self._part, part) for part in islice(todo, THREADS))
                while ahead:
                    yield ahead.popleft().result()
                    ahead.extend(pool.submit(self._part, part) for part in islice(todo, 1))
            finally:
                for future in ahead:
                    future.cancel()

    def _part(self, part: Part) -> Stored:
        with self._lock:
            if part in self._kept:
                self._kept.move_to_end(part)
                return self._kept[part]
        stored = self._decode(*part)
        self._require_one_kind(part, stored)
        with self._lock:
            if part not in self._kept:
                self._kept[part] = stored
                self._bytes += stored.nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return stored

    def _require_one_kind(self, part: Part, stored: Stored) -> None:
        piece, name = part
        kind = kind_of(stored)
        known, first = self._kinds.setdefault(name, (kind, piece))
        if kind != known:
            raise RowsError(
                f"column {name!r} is {known} in {self._said(first)} and {kind} in {self._said(piece)}; "
                "every row needs one dtype and shape"
            )


def _taken(stored: Stored, within: Int64s) -> Stored:
    if len(within) == len(stored) and bool((within == np.arange(len(stored))).all()):
        return stored
    if isinstance(stored, np.ndarray):
        return stored[within]
    # Made of a buffer: pa.array(an ndarray) would import pandas, which takes longer than all the rest.
    places = np.ascontiguousarray(within, np.int64)
    return stored.take(pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(places)]))


def joined_keys(name: str, columns: Iterable[Stored]) -> pa.Array:
    """The key column, from its pieces; RowsError when they are not all integers or all strings."""
    try:
        pieces = [as_keys(column) for column in columns if len(column)]
    except RowsError as error:
        if f"column {name!r}" in str(error):
            raise
        raise RowsError(f"key column {name!r}: {error}") from error
    if len(kinds := {str(piece.type) for piece in pieces}) > 1:
        raise RowsError(f"key column {name!r} holds {' and '.join(sorted(kinds))}")
    return pa.concat_arrays(pieces) if pieces else as_keys([])
