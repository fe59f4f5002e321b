"""Derive: compute over a snapshot what the cache does not hold yet, and keep it with its identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.deriving.derivation import RowWise, Summary
from stillroom.stages.deriving.signal_rows import SignalRows, full_name
from stillroom.stages.deriving.state import DeriveState, column_of
from stillroom.stages.deriving.table import BLOCK_BYTES
from stillroom.stages.deriving.teacher import DerivedTeacher
from stillroom.stages.events import Listen, ignore
from stillroom.stages.mapper import Mapper
from stillroom.stages.teaching import teach
from stillroom.storage.cache import Cache
from stillroom.storage.contents import Contents
from stillroom.storage.derived import (
    Derived,
    DerivedRecord,
    like_newest,
    loaded,
    records,
    write_derived,
)
from stillroom.storage.derived import derived as stored
from stillroom.storage.errors import SignalError, StillroomError
from stillroom.storage.keys import KeyList
from stillroom.storage.lazy import Scheduler
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")


def derive(
    cache: Cache,
    snapshot: Snapshot,
    summary: Summary,
    *,
    rows: Rows | None = None,
    keys: KeyList | None = None,
    scheduler: Scheduler = "threads",
    workers: int | None = None,
    block_bytes: int = BLOCK_BYTES,
    wait: float = 0.0,
) -> Derived:
    """Arrays that are computed over all rows of a snapshot, or over those of `keys`, and stored.

    With nothing changed (the function, its settings, the rows and what their teachers saw, the
    teachers, the columns) nothing is computed or written; layout, order and number of the snapshot do
    not count. `rows` is the data set, where columns of it are read. `scheduler`: "threads", with
    `workers` of them, "synchronous", or a dask `get` such as `stillroom.pipeline.dask_on_ray` gives;
    they agree to rtol 1e-9. Each worker holds about six times `block_bytes` of decoded signals.

    Raises SignalError for signals that the function does not take, UnknownRowError for rows that lack
    one, RowsError for columns that are not there, BusyError when another process derives the same.
    """
    work = DeriveState(cache, snapshot, summary, rows, keys)
    if (known := work.fresh()) is not None:
        return loaded(known)
    with cache.writing(work.digest, wait=wait):
        if (known := work.fresh()) is not None:
            return loaded(known)  # another process finished between our look and our lease
        table = work.table(scheduler, workers, block_bytes)
        arrays = dict(summary.function(table))
        chosen = None if keys is None else table.keys
        record = write_derived(
            *(cache, summary.name, work.identity, arrays),
            snapshot=snapshot.number,
            why=work.why(),
            keys=chosen,
        )
        return loaded(record)


def derived(
    cache: Cache,
    name: str,
    *,
    snapshot: Snapshot | None = None,
    rows: Rows | None = None,
    stale: bool = False,
) -> Derived:
    """A stored result by name, without computing anything: neither dask nor a teacher is needed.

    It is the newest that follows from the snapshot (the newest) as it is. StaleError names the fields
    that differ when none does; `stale=True` gives it all the same, with them in `.stale`. With the
    data set (`rows`) columns are compared too; without, `.unchecked` names those that were read.
    """
    snapshot = cache.snapshot() if snapshot is None else snapshot
    if rows is None:
        return stored(cache, name, snapshot=snapshot, stale=stale)
    known = records(cache, name)
    for record in reversed(like_newest(known)):
        columns = _columns_now(record, snapshot, rows)
        if columns is not None and not record.stale_in(snapshot, columns):
            return loaded(record)
    now = _columns_now(known[-1], snapshot, rows) if known else None
    return stored(cache, name, snapshot=snapshot, columns=now or {}, stale=stale)


def _columns_now(record: DerivedRecord, snapshot: Snapshot, rows: Rows) -> dict[str, Any] | None:
    """What of the data set's columns entered the identity, as it would be now; None where it cannot
    be told."""
    keys = record.keys()
    try:
        positions = None if keys is None else np.sort(snapshot.positions(keys))
        contents = Contents(snapshot, positions)
        found = {}
        for role, said in record.reads["columns"].items():
            name = said["column"] if "column" in said else said["name"]
            found[role] = column_of(snapshot, contents, str(name), rows)[1]
        return found
    except StillroomError:
        return None


class _Here:
    """Maps in this process, one item after another."""

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Built at the first item."""
        work: Callable[[Item], Result] | None = None
        for item in items:
            work = build() if work is None else work
            yield work(item)


def derive_signals(
    cache: Cache,
    snapshot: Snapshot,
    derivation: RowWise,
    *,
    rows: Rows | None = None,
    runner: Mapper | None = None,
    batch_size: int = 1024,
    shard_rows: int = 4096,
    wait: float = 0.0,
    listen: Listen = ignore,
) -> Snapshot:
    """Signals that are computed row by row from those of the newest snapshot, stored as a teacher's.

    Returns a snapshot that serves what the one before did, and them. Only rows are computed whose
    content, as the teachers saw it, no stored answer is of; a derivation of the whole cache (such as
    neighbours) is computed anew when any row changed. What was cut off is continued. A snapshot that a
    teacher makes later does not serve derived signals until they are derived again, which computes
    what is new alone.

    Raises what `teach` does; SignalError for a snapshot that is not the newest, or a name that a
    teacher has; UnknownRowError for rows of the snapshot that lack a signal;
    StaleError for results given to it that are.
    """
    if snapshot.cache != cache.path or snapshot.number != max(cache.snapshots()):
        raise SignalError(
            f"signals are derived from the newest snapshot of {cache.path}, {max(cache.snapshots())}; "
            f"{snapshot} was given. Older ones stay as they are"
        )
    _require_own_name(snapshot, derivation.name)
    while True:
        contents = Contents(snapshot)
        names = [full_name(snapshot, name) for name in derivation.names]
        for name in names:
            contents.signal(name)  # UnknownRowError before anything is begun
        if any(name.startswith(f"{derivation.name}/") for name in names):
            raise SignalError(
                f"{derivation.name!r} would be derived from itself; give it another name: name=..."
            )
        teacher = DerivedTeacher(derivation, snapshot)
        teacher.require_current()
        made = teach(
            cache,
            SignalRows(snapshot, names, rows),
            teacher,
            runner=_Here() if runner is None else runner,
            batch_size=batch_size,
            shard_rows=shard_rows,
            # A scan of the whole cache is not done twice to see whether it says the same.
            band=math.inf if derivation.whole else None,
            wait=wait,
            listen=listen,
        )
        if made.number == snapshot.number or made.parent in (snapshot.number, None):
            return made
        # Somebody committed meanwhile: once more on top of that, so that nothing it serves is lost.
        # What was computed is found again.
        snapshot = cache.snapshot(made.parent)


def _require_own_name(snapshot: Snapshot, name: str) -> None:
    """SignalError when a teacher that is no derivation has the name: its signals would be replaced."""
    for source in snapshot.sources:
        if source.teacher == name and source.signals:
            identity = snapshot.identity(f"{name}/{next(iter(source.signals))}")
            if identity.get("kind") != "derived":
                raise SignalError(
                    f"{name!r} is a teacher of {snapshot}; a derivation of that name would take its "
                    "place. Give it another one: name=..."
                )
