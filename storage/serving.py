"""Which stored slots already answer for the rows of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.folder import Ask, Hashes
from stillroom.storage.keys import KeyIndex
from stillroom.storage.place import Place
from stillroom.storage.signal import Signal

Int64s = NDArray[np.int64]


class Stored(Protocol):
    """What of a segment says which rows it serves."""

    @property
    def path(self) -> Place:
        """Its folder."""

    @property
    def digest(self) -> str:
        """Of the teacher's identity."""

    @property
    def signals(self) -> Mapping[str, Signal]:
        """Its signals by name."""

    @property
    def keys(self) -> pa.Array:
        """The key of each slot."""

    @property
    def hashes(self) -> Hashes:
        """The content hash of each slot."""

    def served(self) -> NDArray[np.bool_]:
        """(rows,) bool: slots whose shard was finished."""


@dataclass(frozen=True)
class Expected:
    """A segment as it will be, before it is sealed."""

    path: Place
    digest: str
    signals: Mapping[str, Signal]
    keys: pa.Array
    hashes: Hashes
    finished: NDArray[np.bool_]
    """(rows,) bool: slots that will serve."""

    def served(self) -> NDArray[np.bool_]:
        """As `Segment.served`."""
        return self.finished


@dataclass(frozen=True)
class Slots:
    """For each row of a data set the segment and slot that serve it, -1 where none does."""

    segments: tuple[str, ...]
    segment: Int64s
    slot: Int64s

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(rows,) bool: rows that no segment serves."""
        return self.segment < 0

    def same(self, other: Slots) -> bool:
        """Whether both serve every row from the same place."""
        return np.array_equal(self.segment, other.segment) and np.array_equal(self.slot, other.slot)


class Content:
    """The rows of one state of a data set: keys, and a hash of what a teacher would read."""

    def __init__(self, keys: pa.Array, hashes: Hashes) -> None:
        """Keys as made by `as_keys`; (rows,) hashes of 16 bytes."""
        self.keys, self.hashes = keys, hashes
        self._index = KeyIndex(keys)

    def slots(self, segments: Sequence[Stored], digest: str, name: str, ask: Ask) -> Slots:
        """Where a signal of the teacher with that identity is stored for each row.

        A slot serves a row when key and content hash agree; newer segments win.
        """
        segment = np.full(len(self.keys), -1, np.int64)
        slot = np.full(len(self.keys), -1, np.int64)
        for number, stored in enumerate(segments):
            signal = stored.signals.get(name)
            if stored.digest != digest or signal is None:
                continue
            if not ask.fits(signal):
                continue
            place = self._index.find(stored.keys)
            mine = np.flatnonzero(stored.served() & (place >= 0))
            same = _words(self.hashes)[place[mine]] == _words(stored.hashes)[mine]
            mine = mine[same.all(axis=1)]
            segment[place[mine]] = number
            slot[place[mine]] = mine
        return Slots(tuple(s.path.name for s in segments), segment, slot)


def _words(hashes: Hashes) -> NDArray[np.uint64]:
    return np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, 2)
