"""A snapshot as a data set: its rows, with cached signals as columns, for teachers that read those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import hash_rows, hash_whole
from stillroom.stages.data.rows import Batch, Rows, find_rows
from stillroom.storage.contents import key_order
from stillroom.storage.errors import RowsError, nearest
from stillroom.storage.folder import Hashes
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]
KEYS = "+keys"
"""Stands for the row's own key among the columns of a derivation that compares rows."""


class SignalRows:
    """All rows of a snapshot; columns are signals by their full names, then those of a data set.

    A row's content in a column that is a signal is what the signal's teacher saw of the row, so a
    derived row is stale when that is. Of columns that other teachers of the snapshot read it knows the
    hashes alone: a snapshot that is made of these rows serves what the one before did.
    """

    def __init__(
        self, snapshot: Snapshot, signals: Sequence[str], rows: Rows | None = None
    ) -> None:
        """`signals` are full names, teacher/signal; `rows` is the data set that has other columns."""
        self.snapshot, self._signals, self._rows = snapshot, tuple(signals), rows
        self.keys: pa.Array = snapshot.keys
        self._reader: Reader | None = None
        self._places: Int64s | None = None
        self._known: dict[tuple[str, ...], Hashes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Each process reads the snapshot itself."""
        where = self.snapshot.cache, self.snapshot.number
        return _reopened, (*where, self._signals, self._rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Signals, columns of the data set, and what teachers of the snapshot read."""
        own = (*self._signals, KEYS, *(() if self._rows is None else self._rows.columns))
        others = (name for source in self.snapshot.sources for name in source.inputs)
        return tuple(dict.fromkeys((*own, *others)))

    def __len__(self) -> int:
        """The number of rows."""
        return self.snapshot.rows

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """Decoded rows of signals, and columns of the data set; ragged ones as they are."""
        signals = [name for name in columns if name in self._signals]
        found: Batch = {}
        if signals:
            if self._reader is None:
                self._reader = Reader(self.snapshot, self._signals)
            found |= self._reader.take(places, signals)  # type: ignore[arg-type]
        if KEYS in columns:
            found[KEYS] = self.keys.take(pa.array(places))
        others = [name for name in columns if name not in (*self._signals, KEYS)]
        if others:
            found |= self._data().read(self._of_data()[places], others)
        return found

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """(rows,) items of 16 bytes: of the contents that a source saw, or of all these columns'."""
        asked = tuple(columns)
        if asked not in self._known:
            self._known[asked] = self._hashed(asked)
        return self._known[asked]

    def _hashed(self, columns: tuple[str, ...]) -> Hashes:
        parts: dict[str, Any] = {}
        # What other teachers saw is what the snapshot says, whatever the data set is now.
        for name in columns if set(columns) & set(self._signals) else ():
            if name in self._signals:
                parts[name] = self.snapshot.hashes(name)
            elif name == KEYS:
                parts[name] = np.zeros(len(self), "V16")  # which row it is, its key says already
            elif self._rows is not None and name in self._rows.columns:
                parts[name] = self._rows.hashes([name])[self._of_data()]
        if parts and len(parts) == len(columns):
            return combined(parts)
        found = np.zeros(len(self), "V16")
        for source in self.snapshot.sources:
            if source.inputs == columns and source.signals:
                seen = self.snapshot.hashes(f"{source.teacher}/{next(iter(source.signals))}")
                free = (_words(found) == 0).all(axis=1)
                found[free] = seen[free]
        return found

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of keys and these columns; of a source's own as the snapshot has it."""
        asked = tuple(columns)
        if not set(asked) & set(self._signals):
            for source in self.snapshot.sources:
                if source.inputs == asked:
                    return source.dataset.removeprefix("part of ")
        order = key_order(self.keys)
        seen = _words(self.hashes(asked))[order]
        return hash_whole([("", self.keys.take(pa.array(order))), ("+".join(asked), seen)])

    def _data(self) -> Rows:
        if self._rows is None:
            raise RowsError("a column of the data set is read; pass the data set: rows=...")
        return self._rows

    def _of_data(self) -> Int64s:
        if self._places is None:
            self._places = find_rows(self._data(), self.keys, "of the snapshot ")
        return self._places


def combined(parts: dict[str, Hashes]) -> Hashes:
    """One hash of a row's contents by column."""
    return hash_rows({name: h.view(np.uint8).reshape(-1, 16) for name, h in parts.items()})


def _words(hashes: Hashes) -> NDArray[np.uint64]:
    return np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, 2)


def full_name(snapshot: Snapshot, name: str) -> str:
    """teacher/signal; UnknownSignalError for a signal that the snapshot lacks."""
    index, signal = snapshot.find(name)
    return f"{snapshot.sources[index].teacher}/{signal.name}"


def labels_of(
    snapshot: Snapshot, positions: Int64s, name: str, rows: Rows | None
) -> tuple[NDArray[Any], Hashes | None]:
    """(n,) whole numbers of a column of the data set, with their hashes, or of a cached signal of one
    number a row (None). RowsError when neither has it."""
    if rows is not None and name in rows.columns:
        keys = snapshot.keys.take(pa.array(positions))
        places = find_rows(rows, keys, "of the snapshot ")
        found: Any = rows.read(places, [name])[name]
        return _whole(found, name), rows.hashes([name])[places]
    known = dict.fromkeys(snapshot.signals)
    if name not in known and "/" not in name:
        have = (
            "no data set was given: rows=..." if rows is None else "the data set has no such column"
        )
        raise RowsError(
            f"{name!r} is no signal of the snapshot, and {have}; "
            f"{nearest(name, [*known, *(() if rows is None else rows.columns)])}"
        )
    full = full_name(snapshot, name)
    return _whole(Reader(snapshot, [full]).take(positions)[full], name), None


def _whole(values: Any, name: str) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iub":
        kind = (
            f"{values.dtype} of shape {values.shape}" if hasattr(values, "dtype") else "no numbers"
        )
        raise RowsError(f"column {name!r} is {kind}; expected one whole number for each row")
    return values.astype(np.int64)


def _reopened(cache: Any, number: int, signals: Sequence[str], rows: Rows | None) -> SignalRows:
    return SignalRows(Snapshot(cache, number), signals, rows)
