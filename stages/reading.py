"""What students read: the content of their rows, and of the rows that teachers answered for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.rows import Rows, find_rows
from stillroom.storage.errors import RowsError, listed
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import digest
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]


class Reading:
    """A data set and a snapshot, seen through the splits that students train on.

    Only rows of a split count: a data set or a cache that grew elsewhere changes nothing here.
    """

    def __init__(
        self, rows: Rows, snapshot: Snapshot | None, splits: Mapping[str, pa.Array]
    ) -> None:
        """Nothing is read yet; every answer is kept, as many students ask the same."""
        self._rows, self._snapshot, self._splits = rows, snapshot, splits
        self._hashes: dict[tuple[str, ...], Hashes] = {}
        self._known: dict[tuple[str, tuple[str, ...] | str], Any] = {}
        self._places: dict[str, Int64s] = {}

    def content(self, columns: Sequence[str], split: str) -> list[str]:
        """Digests of a split's keys, in their order, and of its rows in these columns.

        RowsError names keys that the data set lacks.
        """
        asked = (split, tuple(sorted(columns)))
        if asked not in self._known:
            keys = digest(self._splits[split].to_pylist())
            self._known[asked] = [keys, _digest(self._of_rows(asked[1])[self._where(split)])]
        known: list[str] = self._known[asked]
        return known

    def teacher(self, name: str, split: str) -> list[Any]:
        """The identity of a signal's answers for a split: teacher, encoding, content of the rows.

        Raises UnknownRowError for rows that were never taught, RowsError for rows whose content is
        not what the teacher saw.
        """
        if (split, name) not in self._known:
            self._known[split, name] = self._taught(name, split)
        known: list[Any] = self._known[split, name]
        return known

    def _taught(self, name: str, split: str) -> list[Any]:
        assert self._snapshot is not None
        keys = self._splits[split]
        positions = self._snapshot.positions(keys)
        Reader(self._snapshot, [name], check=False).require(positions)
        index, signal = self._snapshot.find(name)
        source = self._snapshot.sources[index]
        seen = self._snapshot.hashes(name)[positions]
        if set(source.inputs) <= set(self._rows.columns):
            now = self._of_rows(tuple(sorted(source.inputs)))[self._where(split)]
            if len(changed := np.flatnonzero(seen != now)):
                raise RowsError(
                    f"{len(changed):,} rows of split {split!r} changed since teacher "
                    f"{source.teacher!r} answered for {name!r}: "
                    f"{listed(keys[int(i)].as_py() for i in changed)}. Run teach() over this data set "
                    "and train on the snapshot that it returns"
                )
        return [source.digest, signal.to_json(), _digest(seen)]

    def _of_rows(self, columns: tuple[str, ...]) -> Hashes:
        if columns not in self._hashes:
            self._hashes[columns] = self._rows.hashes(columns)
        return self._hashes[columns]

    def _where(self, split: str) -> Int64s:
        if split not in self._places:
            places = find_rows(self._rows, self._splits[split], f"of split {split!r} ")
            if len(places) == 0:
                raise RowsError(f"split {split!r} has no rows")
            self._places[split] = places
        return self._places[split]


def _digest(hashes: Hashes) -> str:
    return hashlib.sha256(np.ascontiguousarray(hashes).tobytes()).hexdigest()
