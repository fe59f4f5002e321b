"""What students read: the content of their rows, and of the rows that teachers answered for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows, find_rows
from stillroom.stages.deriving.signal_rows import KEYS, combined
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.replay import Replay, base_columns
from stillroom.stages.views.rows import own_columns
from stillroom.storage.errors import RowsError, listed
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import digest
from stillroom.storage.pairs import spelled
from stillroom.storage.reader import Reader
from stillroom.storage.served import Source
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

    def viewed(
        self, columns: Sequence[str], signals: Sequence[str], split: str, views: int
    ) -> dict[str, Any]:
        """What a student reads that trains on views: rows, partners, and answers to every view.

        Raises what `Replay` does, and RowsError for rows that are not what the teacher saw.
        """
        assert self._snapshot is not None
        asked = (split, ("views", str(views), *signals))
        if asked not in self._known:
            self._known[asked] = Replay(
                self._rows, self._snapshot, self._splits[split], views=views, signals=signals
            )
        replay: Replay = self._known[asked]
        replay.require(columns)
        data = self.content(base_columns(columns), split)
        others = tuple(sorted(c.removeprefix("partner.") for c in columns if "partner." in c))
        if others:
            data = [*data, _digest(self._of_rows(others)[replay.partners.reshape(-1)])]
        names = [*signals, *(f"{teacher}/view" for teacher in replay.teachers)]
        answered = {name: self._viewed(name, split, replay) for name in names}
        return {"data": data, "teacher": answered}

    def _viewed(self, name: str, split: str, replay: Replay) -> list[Any]:
        assert self._snapshot is not None
        index, signal = self._snapshot.find(name)
        source = self._snapshot.sources[index]
        positions = replay.positions.reshape(-1)
        Reader(self._snapshot, [name], check=False).require(positions)
        seen = self._snapshot.hashes(name)[positions]
        inputs = tuple(sorted(own_columns(source.inputs, replay.plan)))
        if set(inputs) <= set(self._rows.columns):
            own = self._of_rows(inputs)
            now = [replay.content(own, view) for view in range(1, replay.views + 1)]
            changed = (seen != np.concatenate(now)).reshape(replay.views, -1).any(axis=0)
            self._require_unchanged(np.flatnonzero(changed), source.teacher, name, split)
        return [source.digest, signal.to_json(), _digest(seen)]

    def _require_unchanged(self, changed: Int64s, teacher: str, name: str, split: str) -> None:
        if len(changed):
            keys = spelled(self._splits[split].take(pa.array(changed)))
            raise RowsError(
                f"{len(changed):,} rows of split {split!r} changed since teacher {teacher!r} answered "
                f"for {name!r}: {listed(keys)}. Run teach() over this data set and train on the "
                "snapshot that it returns"
            )

    def _taught(self, name: str, split: str) -> list[Any]:
        assert self._snapshot is not None
        keys = self._splits[split]
        positions = self._snapshot.positions(keys)
        Reader(self._snapshot, [name], check=False).require(positions)
        index, signal = self._snapshot.find(name)
        source = self._snapshot.sources[index]
        seen = self._snapshot.hashes(name)[positions]
        if self._snapshot.identity(name).get("kind") == "derived":
            self._require_derived(source, positions, seen, name, split)
        # Of a teacher that was shown views: this is view 0, whose content is that of the row.
        viewed = self._snapshot.identity(name).get("views")
        inputs = own_columns(source.inputs, ViewPlan.from_json(viewed) if viewed else None)
        if set(inputs) <= set(self._rows.columns):
            now = self._of_rows(tuple(sorted(inputs)))[self._where(split)]
            self._require_unchanged(np.flatnonzero(seen != now), source.teacher, name, split)
        return [source.digest, signal.to_json(), _digest(seen)]

    def _require_derived(
        self, source: Source, positions: Int64s, seen: Hashes, name: str, split: str
    ) -> None:
        """RowsError when rows are not what the teachers saw whose signals it was derived from."""
        assert self._snapshot is not None
        parts: dict[str, Hashes] = {}
        for column in source.inputs:
            if column == KEYS:
                parts[column] = np.zeros(len(positions), "V16")
            elif any(column.startswith(f"{s.teacher}/") for s in self._snapshot.sources):
                self.teacher(column, split)
                parts[column] = self._snapshot.hashes(column)[positions]
            elif column in self._rows.columns:
                parts[column] = self._of_rows((column,))[self._where(split)]
            else:
                return  # a column that this data set lacks: nobody can tell
        changed = np.flatnonzero(combined(parts) != seen)
        self._require_unchanged(changed, source.teacher, name, split)

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
