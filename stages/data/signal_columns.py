"""A data set with cached signals as further columns, for teachers that are asked about answers.

A robust teacher labels the adversarial inputs that a snapshot of a student made; a denoiser is asked
about what a generator said. Both inputs are signals of the cache and columns of the data set here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import hash_rows, hash_whole, join_hashes
from stillroom.stages.data.rows import Batch, Rows
from stillroom.storage.errors import RowsError, listed
from stillroom.storage.folder import Hashes
from stillroom.storage.pairs import spelled
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]


class SignalColumns:
    """The rows of a data set, with signals of a snapshot as columns beside its own.

    A row's content in such a column is which teacher answered and what it saw of the row: when the
    next round's student makes other adversarial inputs, they are asked about again, and no row of a
    column that the data set has itself.
    """

    def __init__(self, rows: Rows, snapshot: Snapshot, signals: Mapping[str, str]) -> None:
        """`signals`: the signal behind each new column; `teacher/signal` always names one.

        Raises UnknownSignalError, UnknownRowError for rows that were never taught, RowsError for a
        name that the data set has already.
        """
        if not signals:
            raise RowsError("no signal is named; a column is COLUMN='teacher/signal'")
        if twice := sorted(set(signals) & set(rows.columns)):
            raise RowsError(
                f"the data set has columns {listed(twice)} already; give the signals other names"
            )
        self._given = rows, snapshot, dict(signals)
        self._rows, self._snapshot, self._signals = self._given
        self.keys: pa.Array = rows.keys
        self._reader = Reader(snapshot, list(dict.fromkeys(signals.values())))
        self._positions = snapshot.positions(rows.keys)
        self._reader.require(self._positions)

    def __reduce__(self) -> tuple[Any, ...]:
        """Each process reads the snapshot itself."""
        rows, snapshot, signals = self._given
        return _again, (rows, snapshot.cache, snapshot.number, signals)

    @property
    def columns(self) -> tuple[str, ...]:
        """The data set's own, then the signals."""
        return (*self._rows.columns, *self._signals)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, signals decoded."""
        own = [name for name in columns if name not in self._signals]
        found: dict[str, Any] = dict(self._rows.read(places, own)) if own else {}
        names = {name: self._signals[name] for name in columns if name in self._signals}
        taken = self._reader.take(self._positions[places], list(dict.fromkeys(names.values())))
        found |= {name: taken[signal] for name, signal in names.items()}
        return {name: found[name] for name in columns}

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """(rows,) items of 16 bytes; RowsError for rows that changed since a signal was taught."""
        own = [name for name in columns if name not in self._signals]
        if len(own) == len(columns):
            return self._rows.hashes(own)
        parts = {name: self._rows.hashes([name]) for name in own}
        parts |= {name: self._answered(name) for name in columns if name in self._signals}
        return join_hashes(parts)

    def _answered(self, column: str) -> Hashes:
        name = self._signals[column]
        index, signal = self._snapshot.find(name)
        source = self._snapshot.sources[index]
        seen = self._snapshot.hashes(name)[self._positions]
        if set(source.inputs) <= set(self._rows.columns):
            changed = np.flatnonzero(self._rows.hashes(source.inputs) != seen)
            if len(changed):
                raise RowsError(
                    f"{len(changed):,} rows changed since teacher {source.teacher!r} answered for "
                    f"{name!r}: {listed(spelled(self.keys.take(pa.array(changed))))}. Run teach() "
                    "with it over this data set first"
                )
        who = f"{source.digest}|{signal.name}|{signal.encoding}".encode()
        told = np.repeat(np.frombuffer(who, np.uint8)[None], len(seen), axis=0)
        both = np.concatenate([seen.view(np.uint8).reshape(-1, 16), told], axis=1)
        return hash_rows({column: both})

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of keys and columns; of the data set's own as that has it."""
        own = [name for name in columns if name not in self._signals]
        if len(own) == len(columns):
            return self._rows.fingerprint(own)
        words = np.ascontiguousarray(self.hashes(columns)).view(np.uint64).reshape(-1, 2)
        return hash_whole([("", self.keys), ("+".join(sorted(columns)), words)])


def with_signals(rows: Rows, snapshot: Snapshot, /, **signals: str) -> SignalColumns:
    """The data set with cached signals as further columns, `COLUMN="teacher/signal"`.

        attacked = with_signals(rows, snapshot, adversarial="adversary/adversarial")
        snapshot = teach(cache, attacked, robust, runner=runner)   # robust.inputs == ("adversarial",)

    Teachers that read the data set's own columns stay fresh, and the snapshot still serves them.
    Errors as of `SignalColumns`.
    """
    return SignalColumns(rows, snapshot, signals)


def _again(rows: Rows, cache: Any, number: int, signals: Mapping[str, str]) -> SignalColumns:
    return SignalColumns(rows, Snapshot(cache, number), signals)
