"""A snapshot: for every row of one state of a data set, where each signal lies. Immutable and small.

`000001.json` names the sources (a teacher's identity and its signals) and an Arrow file of runs:
positions `start` and on are served by slots `slot` and on of a segment. Positions have no meaning of
their own; rows are known by key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.errors import (
    GARBLED,
    CorruptShardError,
    FormatError,
    StillroomError,
    UnknownRowError,
    UnknownSignalError,
    listed,
    nearest,
)
from stillroom.storage.files import read_json
from stillroom.storage.folder import FORMAT, READABLE, Hashes
from stillroom.storage.keys import KeyIndex, KeyList, as_keys
from stillroom.storage.pairs import join_keys, key_type, spelled
from stillroom.storage.place import Place
from stillroom.storage.segment import Segment
from stillroom.storage.served import RUNS, Source
from stillroom.storage.shards import Run, inside
from stillroom.storage.signal import Signal
from stillroom.storage.table import read_table

Int64s = NDArray[np.int64]
_SEGMENT = re.compile(r"[0-9]{4,9}-[A-Za-z0-9_-]{1,100}")
_SNAPSHOT = re.compile(r"([0-9]{6}|[1-9][0-9]{6,8})\.json")
_RUNS = re.compile(r"[0-9]{6,9}(-[0-9a-f]{8})?\.arrow")


def is_segment(name: str) -> bool:
    """Whether a folder of that name in `segments` is a draft's or a segment's."""
    return _SEGMENT.fullmatch(name) is not None


def snapshot_number(name: str) -> int | None:
    """The number of the snapshot whose JSON has that name; None for any other file."""
    match = _SNAPSHOT.fullmatch(name)
    return int(match[1]) if match else None


def is_runs(name: str) -> bool:
    """Whether a file of that name in `snapshots` holds the runs of a snapshot."""
    return _RUNS.fullmatch(name) is not None


class Snapshot:
    """One immutable state: rows by key, and where each signal of each row lies."""

    def __init__(self, cache: Place, number: int) -> None:
        """Read a snapshot of the cache at that path."""
        self.cache, self.number = cache, number
        path = cache / "snapshots" / f"{number:06d}.json"
        described = read_json(path)
        try:
            if described["format"] not in READABLE:
                raise ValueError(f"format {described['format']}")
            self.rows = int(described["rows"])
            if not 0 <= self.rows < 2**62:
                raise ValueError(f"{self.rows} rows")
            self.parent: int | None = described["parent"]
            if not (self.parent is None or isinstance(self.parent, int)):
                raise TypeError(f"parent {self.parent!r}")
            self._checksum = str(described["crc32c"])
            self._runs = inside(described.get("runs", f"{number:06d}.arrow"))
            self.why = str(described["why"])
            self.sources = tuple(Source.from_json(s) for s in described["sources"])
        except GARBLED as error:
            raise FormatError(f"{path} is no snapshot of format {FORMAT}: {error}") from error
        self._segments: dict[str, Segment] = {}

    def __repr__(self) -> str:
        """Number, rows and signals."""
        names = ", ".join(self.signals) or "no signals"
        return f"<Snapshot {self.number} of {self.cache}: {self.rows:,} rows, {names}>"

    def __len__(self) -> int:
        """The number of rows."""
        return self.rows

    @property
    def signals(self) -> dict[str, Signal]:
        """Every signal by name; `teacher/signal` where two teachers use one name."""
        names = [n for source in self.sources for n in source.signals]
        return {
            (n if names.count(n) == 1 else f"{source.teacher}/{n}"): signal
            for source in self.sources
            for n, signal in source.signals.items()
        }

    def find(self, name: str) -> tuple[int, Signal]:
        """The index of its source and the signal; `teacher/signal` always works.

        Raises UnknownSignalError, with the nearest name, when there is none.
        """
        for index, source in enumerate(self.sources):
            for known, signal in source.signals.items():
                if name == f"{source.teacher}/{known}" or (name == known and name in self.signals):
                    return index, signal
        raise UnknownSignalError(
            f"snapshot {self.number} of {self.cache} has no signal {name!r}; "
            f"{nearest(name, self.signals)}"
        )

    @cached_property
    def _table(self) -> pa.RecordBatch:
        path = self.cache / "snapshots" / self._runs
        batch = read_table(path, self._checksum)
        if batch.schema != RUNS:
            raise CorruptShardError(f"{path} does not hold the runs of a snapshot")
        start, rows, slot = (batch.column(name).to_numpy() for name in ("start", "rows", "slot"))
        # No sum that could overflow: self.rows is below 2**62.
        if (
            not ((rows >= 1) & (rows <= self.rows) & (start >= 0) & (slot >= 0)).all()
            or not ((start <= self.rows - rows) & (slot < 2**62)).all()
        ):
            raise CorruptShardError(f"{path} holds runs outside its {self.rows:,} rows")
        for name in batch.column("segment").unique().to_pylist():
            if not is_segment(name):
                raise FormatError(f"{path} names a segment {name!r} outside the cache")
        return batch

    def stretches(self) -> list[tuple[int, int, int, str, int]]:
        """(source, start, rows, segment's name, slot) of every run, as they are stored.

        CorruptShardError when the runs cannot be read, FormatError for a name that would leave the
        cache; the segments themselves are not looked at.
        """
        columns = [self._table.column(name).to_pylist() for name in RUNS.names]
        return list(zip(*columns, strict=True))

    def segment_names(self) -> set[str]:
        """The folders' names of the segments that it reads; errors as of `stretches`."""
        return set(self._table.column("segment").unique().to_pylist())

    def files(self) -> tuple[Place, ...]:
        """Its own files, the one that makes it exist first."""
        folder = self.cache / "snapshots"
        return folder / f"{self.number:06d}.json", folder / self._runs

    def _source_runs(self, source: int) -> list[tuple[int, int, Segment, int]]:
        found, served = [], dict[str, int]()
        for index, start, rows, name, slot in self.stretches():
            if index == source:
                segment = self._holder(name, source)
                served[name] = served.get(name, 0) + rows
                # The sum bounds what a made-up snapshot can make us allocate.
                if max(slot + rows, served[name]) > segment.rows:
                    raise CorruptShardError(f"{segment.path} has no slots up to {slot + rows:,}")
                found.append((start, rows, segment, slot))
        return found

    def _segment(self, name: str) -> Segment:
        if name not in self._segments:
            self._segments[name] = Segment(self.cache / "segments" / name)
        return self._segments[name]

    def _holder(self, name: str, source: int) -> Segment:
        """A segment that serves a source; FormatError when its signals are not the source's."""
        segment, expected = self._segment(name), self.sources[source]
        for known, signal in expected.signals.items():
            stored = segment.signals.get(known)
            if stored is None or (change := signal.differs(stored)):
                raise FormatError(
                    f"snapshot {self.number} of {self.cache} reads signal {known!r} from {name}, which "
                    f"holds {'no such signal' if stored is None else 'another: ' + change}"
                )
        return segment

    def identity(self, name: str) -> dict[str, Any]:
        """The identity of the teacher that gives a signal; empty where it serves no row."""
        index = self.find(name)[0]
        serving = [segment for source, _, _, segment, _ in self.stretches() if source == index]
        return self._segment(serving[0]).identity if serving else {}

    def runs(self, name: str) -> list[Run]:
        """Where a signal's rows lie, cut at the borders of shards."""
        source, signal = self.find(name)
        return [
            run
            for start, rows, segment, slot in self._source_runs(source)
            for run in segment.runs(signal.name, start, slot, rows)
        ]

    def hashes(self, name: str) -> Hashes:
        """Each position's content hash, as the signal's teacher read the row; zeros if not served."""
        found = np.zeros(len(self.keys), "V16")
        for start, rows, segment, slot in self._source_runs(self.find(name)[0]):
            found[start : start + rows] = segment.hashes[slot : slot + rows]
        return found

    @cached_property
    def keys(self) -> pa.Array:
        """The key of each position: Arrow int64 or large_string, pairs where there are views."""
        pieces: dict[int, pa.Array] = {}
        runs = [run for source in range(len(self.sources)) for run in self._source_runs(source)]
        if self.rows > sum(run[1] for run in runs):
            raise CorruptShardError(f"the snapshot's runs cover fewer than its {self.rows:,} rows")
        covered = np.zeros(self.rows, bool)
        for start, rows, segment, slot in runs:
            if not covered[start : start + rows].all():
                covered[start : start + rows] = True
                known = pieces.get(start)
                if known is None or len(known) < rows:
                    pieces[start] = segment.keys.slice(slot, rows)
        return _joined(pieces, self.rows)

    def hold(self) -> None:
        """Map its tables of keys now, so that they stay readable when a prune removes the files.

        What is damaged is named when it is needed. Objects cannot be held.
        """
        if isinstance(self.cache, Path):
            with suppress(StillroomError):
                for source in range(len(self.sources)):
                    for _, _, segment, _ in self._source_runs(source):
                        _ = segment.keys

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self.keys)

    def positions(self, keys: KeyList) -> Int64s:
        """The position of each key; UnknownRowError names those that were never taught."""
        wanted = as_keys(keys)
        places = self._index.find(wanted)
        if (places < 0).any():
            unknown = spelled(wanted.filter(pa.array(places < 0)))
            raise UnknownRowError(
                f"{len(unknown):,} of {len(places):,} rows are not in snapshot {self.number} of "
                f"{self.cache}: {listed(unknown)}. Teach them first: call teach() with a data set "
                "that has them"
            )
        return places


def _joined(pieces: Mapping[int, pa.Array], rows: int) -> pa.Array:
    """Keys in order of position; where sources overlap, what is already covered is cut off."""
    ordered, end = [], 0
    for start in sorted(pieces):
        piece = pieces[start]
        if start > end:
            break
        if start + len(piece) > end:
            ordered.append(piece.slice(end - start))
            end = start + len(piece)
    if end != rows:
        raise CorruptShardError(f"the snapshot's runs cover {end:,} of its {rows:,} rows")
    if len({key_type(piece) for piece in ordered}) > 1:
        raise CorruptShardError("the snapshot's keys are numbers in one segment, texts in another")
    return join_keys(ordered) if ordered else pa.array([], pa.int64())
