"""Derived signals as audit and repair need them: the data set and the teacher that they were taught by."""

from __future__ import annotations

from stillroom.stages.data.rows import Rows
from stillroom.stages.deriving.derivation import RowWise
from stillroom.stages.deriving.signal_rows import SignalRows, full_name
from stillroom.stages.deriving.teacher import DerivedTeacher
from stillroom.storage.cache import Cache
from stillroom.storage.errors import CorruptShardError, FormatError, StillroomError
from stillroom.storage.snapshot import Snapshot


def derived_as_taught(
    cache: Cache, derivation: RowWise, rows: Rows | None = None
) -> tuple[SignalRows, DerivedTeacher]:
    """For `audit(cache, *derived_as_taught(cache, derivation), runner=...)`, and `repair` likewise.

    They read the newest snapshot; where the table of its keys is what was damaged, an older one of as
    many rows. `rows` is the data set, where the derivation reads columns of it. Repair the teachers
    whose signals are read first. UnknownSignalError where the snapshot lacks one, CorruptShardError
    where no snapshot says which rows there are, StaleError for stale results that it is given.
    """
    snapshot = _readable(cache)
    teacher = DerivedTeacher(derivation, snapshot)
    teacher.require_current()
    names = [full_name(snapshot, name) for name in derivation.names]
    return SignalRows(snapshot, names, rows), teacher


def _readable(cache: Cache) -> Snapshot:
    newest = cache.snapshot()
    try:
        _ = newest.keys
    except (CorruptShardError, FormatError, OSError) as error:
        for number in reversed(cache.snapshots()[:-1]):
            try:
                older = cache.snapshot(number)
                if older.rows == newest.rows and len(older.keys) == newest.rows:
                    return older
            except (StillroomError, OSError):
                continue
        raise CorruptShardError(
            f"{newest} cannot say which rows it has ({error}), and no older snapshot of as many rows is "
            "left. Repair the teachers whose signals are read first; then derive the signals again"
        ) from error
    return newest
