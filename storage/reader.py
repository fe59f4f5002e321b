"""Rows of a snapshot's signals, in any order, by key or by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.errors import RowsError, UnknownRowError, listed
from stillroom.storage.keys import KeyList
from stillroom.storage.opening import open_rows, with_book
from stillroom.storage.pairs import spelled
from stillroom.storage.shards import RowSource
from stillroom.storage.signal import Values
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]


class Reader:
    """Gathers rows of chosen signals from memory-mapped shards.

    >>> Reader(snapshot, ["logits"]).gather(["row-7", "row-3"])["logits"].shape  # doctest: +SKIP
    (2, 10)

    A shard's checksum is verified when its first row is read. A reader may be used from several
    threads, and pickles as the snapshot it reads (each process maps the files itself).
    """

    def __init__(
        self, snapshot: Snapshot, signals: Sequence[str] | None = None, *, check: bool = True
    ) -> None:
        """Map the shards of these signals (all, when none are named).

        Raises UnknownSignalError for a name that is not there, CorruptShardError for a file that is
        missing or of another size. `check=False` skips the checksums.
        """
        self.snapshot, self._check = snapshot, check
        self.names = tuple(snapshot.signals if signals is None else signals)
        self._sources: dict[str, RowSource] = {}
        for name in self.names:
            self._sources[name] = self._opened(name)
        snapshot.hold()

    def _opened(self, name: str) -> RowSource:
        runs, cache, many = self.snapshot.runs(name), self.snapshot.cache, len(self.names)
        signal = with_book(cache, self.snapshot.find(name)[1], check=self._check)
        return open_rows(cache, signal, runs, check=self._check, sharing=many)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same files again on the other side."""
        return _reopened, (self.snapshot.cache, self.snapshot.number, self.names, self._check)

    def gather(self, keys: KeyList) -> dict[str, Values]:
        """Decoded rows by key: {signal: (n, *shape) array, Ragged, or list of str}.

        Raises UnknownRowError for keys that are not in the snapshot or lack one of the signals, and
        CorruptShardError when a checksum fails.
        """
        return self.take(self.snapshot.positions(keys))

    def take(self, positions: Int64s, names: Sequence[str] | None = None) -> dict[str, Values]:
        """The same by position (see `Snapshot.positions`); of all signals, or of some."""
        chosen = self.names if names is None else names
        return {name: self._read(name, positions, decode=True) for name in chosen}

    def stored(
        self, positions: Int64s, names: Sequence[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """The rows as they lie on disk, undecoded: {signal: {part: array or Ragged}}."""
        chosen = self.names if names is None else names
        return {name: self._read(name, positions, decode=False) for name in chosen}

    def parts(
        self, positions: Int64s, names: Sequence[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """The rows by the encoding's parts: {signal: {part: array or Ragged}}, packed ones unpacked.

        What a student of a large vocabulary reads instead of dense logits: topk's `indices`,
        `values`, `logsumexp` and `tail`, sampled's `indices`, `counts` and `logsumexp`.
        """
        stored = self.stored(positions, names)
        return {name: self.snapshot.find(name)[1].unpacked(rows) for name, rows in stored.items()}

    def _read(self, name: str, positions: Int64s, decode: bool) -> Any:
        positions = _whole(positions)
        try:
            return self._sources[name].read(positions, decode=decode)
        except IndexError:
            self.require(positions)
            raise

    def require(self, positions: Int64s) -> None:
        """Raise UnknownRowError when a signal is not stored for one of these rows."""
        positions = _whole(positions)
        for name, source in self._sources.items():
            lacking = source.missing(positions)
            if len(lacking):
                rows = self.snapshot.rows
                inside = [p for p in positions[lacking].tolist() if 0 <= p < rows]
                keys = spelled(self.snapshot.keys.take(pa.array(inside, pa.int64())))
                raise UnknownRowError(
                    f"signal {name!r} of {self.snapshot.cache} was never taught for {len(lacking):,} "
                    f"of the rows asked for: {listed(keys or positions[lacking])}. Run teach() with "
                    "its teacher over these rows"
                )


def _whole(positions: Any) -> Int64s:
    """Positions as int64; RowsError for a mask or fractions, which would serve other rows."""
    given = np.asarray(positions)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise RowsError(
            f"positions must be a list of whole numbers, found {given.dtype} of shape {given.shape}; "
            "turn a mask into positions with np.flatnonzero"
        )
    return np.ascontiguousarray(given, np.int64)


def _reopened(cache: Any, number: int, names: Sequence[str], check: bool) -> Reader:
    return Reader(Snapshot(cache, number), names, check=check)
