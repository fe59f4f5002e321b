"""A summary, a snapshot and what is stored of it, compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import hash_whole
from stillroom.stages.data.rows import Rows
from stillroom.stages.deriving.derivation import Summary
from stillroom.stages.deriving.signal_rows import full_name, labels_of
from stillroom.stages.deriving.table import Table
from stillroom.storage.cache import Cache
from stillroom.storage.code import code_identity
from stillroom.storage.contents import Contents, key_order
from stillroom.storage.derived import DerivedRecord, records
from stillroom.storage.errors import GARBLED, RowsError, SignalError, StillroomError
from stillroom.storage.identity import differences, digest
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.lazy import Scheduler
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]


class DeriveState:
    """What `derive` would compute, and whether that is stored."""

    def __init__(
        self,
        cache: Cache,
        snapshot: Snapshot,
        summary: Summary,
        rows: Rows | None,
        keys: KeyList | None,
    ) -> None:
        """SignalError for signals that the snapshot lacks, RowsError for no rows or no such column."""
        if snapshot.cache != cache.path:
            raise SignalError(f"{snapshot} is not of {cache.path}")
        self._cache, self._snapshot, self._summary = cache, snapshot, summary
        chosen = None if keys is None else _positions(snapshot, keys)
        contents = Contents(snapshot, chosen)
        self._positions = contents.positions
        if not len(self._positions):
            raise RowsError(f"there are no rows to derive {summary.name!r} from")
        self._signals = {r: full_name(snapshot, n) for r, n in summary.signals.items()}
        self._columns: dict[str, NDArray[Any]] = {}
        columns = {}
        for role, name in summary.columns.items():
            values, columns[role] = column_of(snapshot, contents, name, rows)
            self._columns[role] = values
        reads = {
            "rows": contents.rows(),
            "signals": {role: contents.signal(name) for role, name in self._signals.items()},
            "columns": columns,
        }
        self.identity: dict[str, Any] = {
            "kind": "derived",
            "function": code_identity(summary.function),
            "reads": reads,
            "libraries": {"numpy": np.__version__},
        }
        self.digest = digest(self.identity)

    def fresh(self) -> DerivedRecord | None:
        """The stored record of exactly this, if its arrays are there."""
        for record in reversed(_readable(self._cache, self._summary.name)):
            if record.digest == self.digest:
                try:
                    record.load()
                except (StillroomError, OSError):
                    return None  # damaged or lost: computed again
                return record
        return None

    def newest(self) -> DerivedRecord | None:
        """The last record of that name, whatever it was derived from."""
        return next(reversed(_readable(self._cache, self._summary.name)), None)

    def why(self) -> str:
        """In words, why it is computed."""
        before = self.newest()
        if before is None:
            return "it was never derived"
        changed = differences(dict(before.identity), self.identity)
        return "; ".join(changed[:3]) or "its arrays were lost or damaged"

    @property
    def rows(self) -> int:
        """Over how many it is computed."""
        return len(self._positions)

    def table(self, scheduler: Scheduler, workers: int | None, block_bytes: int) -> Table:
        """What the function computes over."""
        where = self._snapshot, self._positions, self._signals, self._columns
        return Table(*where, scheduler=scheduler, workers=workers, block_bytes=block_bytes)


def _positions(snapshot: Snapshot, keys: KeyList) -> Int64s:
    found = np.sort(snapshot.positions(as_keys(keys)))
    if (np.diff(found) == 0).any():
        raise RowsError("keys name some rows twice; each row counts once")
    return found


def _readable(cache: Cache, name: str) -> list[DerivedRecord]:
    """Records of a name; none when one is damaged, as it is computed again then."""
    try:
        return records(cache, name)
    except (StillroomError, *GARBLED):
        return []


def column_of(
    snapshot: Snapshot, contents: Contents, name: str, rows: Rows | None
) -> tuple[NDArray[Any], Any]:
    """A column's values in the order of the table, and what of it enters the identity."""
    values, hashes = labels_of(snapshot, contents.positions, name, rows)
    if hashes is None:
        return values, contents.signal(full_name(snapshot, name))
    order = key_order(snapshot.keys.take(pa.array(contents.positions)))
    words = np.ascontiguousarray(hashes[order]).view(np.uint64).reshape(-1, 2)
    return values, {"column": name, "content": hash_whole([(name, words)])}
