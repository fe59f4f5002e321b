"""Which stored slots already answer for the rows of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.folder import Ask, Hashes
from stillroom.storage.keys import KeyIndex
from stillroom.storage.segment import Segment

Int64s = NDArray[np.int64]


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

    def slots(self, segments: Sequence[Segment], digest: str, name: str, ask: Ask) -> Slots:
        """Where a signal of the teacher with that identity is stored for each row.

        A slot serves a row when key and content hash agree; newer segments win.
        """
        segment = np.full(len(self.keys), -1, np.int64)
        slot = np.full(len(self.keys), -1, np.int64)
        for number, stored in enumerate(segments):
            signal = stored.signals.get(name)
            if stored.digest != digest or signal is None:
                continue
            if (signal.encoding, signal.source) != (ask.encoding, ask.source):
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
