"""What a signal says about chosen rows, as a digest: the same however the rows lie in a cache."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillroom.storage.errors import UnknownRowError, listed
from stillroom.storage.pairs import spelled, split_keys
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]


def key_order(keys: pa.Array) -> Int64s:
    """Places of keys in rising order, then by view: an order that no layout of a cache changes."""
    plain, views = split_keys(keys)
    table = pa.table({"key": plain, "view": pa.array(views)})
    order = pc.sort_indices(table, sort_keys=[("key", "ascending"), ("view", "ascending")])
    return np.asarray(order.to_numpy(), np.int64)


def keys_digest(keys: pa.Array) -> str:
    """SHA-256 of keys and views, in this order."""
    plain, views = split_keys(pa.concat_arrays([keys]) if len(keys) else keys)
    hasher = hashlib.sha256(f"{plain.type}|{len(plain)}|".encode())
    if pa.types.is_integer(plain.type):
        hasher.update(plain.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    else:
        ends = np.frombuffer(plain.buffers()[1], "<i8", len(plain) + 1, plain.offset * 8)
        hasher.update(np.diff(ends).astype("<i8").tobytes())
        if len(plain) and ends[-1] > ends[0]:
            hasher.update(plain.buffers()[2][int(ends[0]) : int(ends[-1])])
    if views.any():
        hasher.update(views.astype("<i4").tobytes())
    return hasher.hexdigest()


class Contents:
    """Chosen rows of a snapshot, and what its signals are for them."""

    def __init__(self, snapshot: Snapshot, positions: Int64s | None = None) -> None:
        """Rows at these positions; None: all."""
        self.snapshot = snapshot
        self._all = positions is None
        self.positions = np.arange(snapshot.rows) if positions is None else positions
        keys = snapshot.keys if positions is None else snapshot.keys.take(pa.array(positions))
        order = key_order(keys)
        self.keys, self._ordered = keys.take(pa.array(order)), self.positions[order]

    def rows(self) -> dict[str, Any]:
        """How many rows, and a digest of which."""
        return {"count": len(self.positions), "keys": keys_digest(self.keys)}

    def signal(self, name: str) -> dict[str, Any]:
        """The signal, its teacher's identity, and a digest of the rows that the teacher saw.

        UnknownRowError where one of the rows lacks it.
        """
        index, signal = self.snapshot.find(name)
        source = self.snapshot.sources[index]
        self._require(index, name)
        seen = self.snapshot.hashes(name)[self._ordered]
        return {
            "name": f"{source.teacher}/{signal.name}",
            "teacher": source.digest,
            "signal": signal.to_json(),
            "rows": hashlib.sha256(np.ascontiguousarray(seen).tobytes()).hexdigest(),
        }

    def _require(self, source: int, name: str) -> None:
        held = np.zeros(self.snapshot.rows, bool)
        for index, start, rows, _, _ in self.snapshot.stretches():
            if index == source:
                held[start : start + rows] = True
        if len(lacking := self._ordered[~held[self._ordered]]):
            keys = spelled(self.snapshot.keys.take(pa.array(lacking)))
            chosen = "all rows of the snapshot" if self._all else "the chosen rows"
            raise UnknownRowError(
                f"signal {name!r} was never taught for {len(lacking):,} of {chosen}: {listed(keys)}. "
                "Teach them first, or choose rows that have it: keys=..."
            )
