"""Teach: run a teacher once over the rows that the cache cannot answer for, and keep its answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import numpy as np

from stillroom.stages.book_work import BookWork, LoadedOnce, with_books
from stillroom.stages.data.rows import Rows
from stillroom.stages.events import Listen, RowsTaught, TeachFinished, TeachStarted, ignore
from stillroom.stages.plans.forecasting import require_room, require_room_left
from stillroom.stages.plans.teach_plan import TeachState, Work
from stillroom.stages.shard_work import ShardTask, ShardWork
from stillroom.stages.teachers.teacher import Teacher
from stillroom.storage.cache import Cache
from stillroom.storage.draft import Draft
from stillroom.storage.errors import RowsError, SignalError
from stillroom.storage.folder import Ask
from stillroom.storage.keys import KeyIndex
from stillroom.storage.lease import Lease
from stillroom.storage.removing import remove_tree
from stillroom.storage.segment import Segment
from stillroom.storage.signal import Signal
from stillroom.storage.snapshot import Snapshot

_SAME_ANSWERS = "rows were removed, renamed or moved, or a run ended just before its snapshot"
"""Why a snapshot is written when nothing had to be computed."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Mapper(Protocol):
    """What teaching and training need of a runner (LocalRunner and RayRunner have it)."""

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Call `build()` once in each worker, then what it made on every item; results as ready."""


def teach(
    cache: Cache,
    rows: Rows,
    teacher: Teacher,
    *,
    runner: Mapper,
    batch_size: int = 256,
    shard_rows: int = 4096,
    wait: float = 0.0,
    listen: Listen = ignore,
) -> Snapshot:
    """Make the cache answer for every row of the data set, and return the snapshot that does.

    Only rows whose key and content no stored slot serves are computed; with nothing to compute the
    teacher is not loaded and nothing is written. A run that was cut off is continued: its finished
    shards are kept. Batches never cross the border of a shard, so the number of workers and the
    order in which shards finish do not change a byte.

    Raises SignalError for an answer that cannot be stored, IdentityError when a worker loads another
    teacher than the one that was planned (its files or packages changed, or differ there),
    StoreFullError, StorePermissionError, BusyError when another process still runs this teacher into
    this cache after `wait` seconds; what was stored stays. Different teachers may run at the same time.
    """
    if len(rows) == 0:
        raise RowsError("the data set has no rows; there is nothing to teach")
    if batch_size < 1 or shard_rows < 1:
        raise ValueError(f"batch_size and shard_rows must be positive: {batch_size}, {shard_rows}")
    started = time.perf_counter()
    state = TeachState(cache, rows, teacher)
    if (snapshot := state.fresh()) is not None:
        listen(TeachFinished(teacher.name, 0, snapshot.number, time.perf_counter() - started))
        return snapshot
    with cache.writing(state.digest, wait=wait) as lease:
        _keep_cut_off_work(state)
        if (snapshot := state.fresh()) is not None:
            return snapshot  # another process finished between our look and our lease
        settled = state.settled()
        segments = [folder for folder in settled.folders if isinstance(folder, Segment)]
        plan = state.planned(settled)
        why = _interrupted_why(state, segments) or plan.why
        require_room(state, settled, why, shard_rows)
        answer_missing(
            state, plan.work, segments, lease, runner, batch_size, shard_rows, why, listen
        )
        lease.require()
        snapshot = cache.commit(lambda: state.served(cache.segments()), why or _SAME_ANSWERS)
    seconds = time.perf_counter() - started
    listen(TeachFinished(teacher.name, plan.to_compute, snapshot.number, seconds))
    return snapshot


def answer_missing(
    state: TeachState,
    work: Sequence[Work],
    segments: list[Segment],
    lease: Lease,
    runner: Mapper,
    batch_size: int,
    shard_rows: int,
    why: str,
    listen: Listen,
) -> None:
    """Compute rows that no segment serves and append the new segments.

    A draft that `work` names is continued, with the books that it chose.
    """
    teacher = LoadedOnce(state.teacher)
    for each in work:
        draft = each.draft
        if draft is None:
            books = BookWork(teacher, state.rows, state.cache.path, batch_size)
            asked = with_books(
                *(each.asked, each.places, state.digest, segments, books, runner, listen)
            )
            draft = _draft(state, each, asked, shard_rows, why)
        _compute(state, teacher, draft, runner, batch_size, why, listen)
        _require_one_shape(segments, draft)
        lease.require()
        segments.append(draft.seal())


def _keep_cut_off_work(state: TeachState) -> None:
    """Settle this teacher's drafts: one that still fits is left to be continued, others are sealed
    with the shards that they finished, or removed when they have none."""
    for draft in state.cache.drafts():
        if draft.digest != state.digest or draft.teacher != state.teacher.name:
            continue
        if any(state.continues(draft, work) for work in state.work(state.cache.segments())):
            continue
        if draft.receipts():
            # Shards that disagree were never part of the cache, and would end every later run.
            with suppress(SignalError):
                _require_one_shape(state.cache.segments(), draft)
                draft.seal()
                continue
        remove_tree(draft.path, first=["plan.json"])


def _interrupted_why(state: TeachState, segments: Sequence[Segment]) -> str:
    """The reason that a run had which was cut off after it sealed segments and before its snapshot."""
    newest = max(state.cache.snapshots(), default=None)
    mine = [s for s in segments if s.digest == state.digest and s.after == newest]
    return mine[-1].why if mine else ""


def _draft(
    state: TeachState, work: Work, asked: Mapping[str, Ask], shard_rows: int, why: str
) -> Draft:
    return state.cache.draft(
        state.teacher.name,
        state.identity,
        asked,
        state.rows.keys.take(work.places),
        state.own.hashes[work.places],
        shard_rows,
        why,
    )


def _require_one_shape(segments: Sequence[Segment], draft: Draft) -> None:
    """SignalError when a teacher now answers in another shape or dtype than in earlier segments.

    A snapshot over both could not be read.
    """
    receipt = next(iter(draft.receipts().values()))
    for name in draft.asked:
        now = Signal.from_json(name, receipt["signals"][name])
        for segment in segments:
            known = segment.signals.get(name)
            if segment.digest != draft.digest or known is None or known.encoding != now.encoding:
                continue
            if change := known.differs(now):
                raise SignalError(
                    f"teacher {draft.teacher!r}, signal {name!r}: {change} since {segment.path.name}. "
                    "Every row needs one shape and dtype; return a list of arrays where rows differ in "
                    "length, or give the teacher a version to answer all rows anew"
                )


def _compute(
    state: TeachState,
    teacher: Teacher,
    draft: Draft,
    runner: Mapper,
    batch_size: int,
    why: str,
    listen: Listen,
) -> None:
    places = KeyIndex(state.rows.keys).find(draft.keys)
    finished = draft.receipts()
    todo = [s for s in draft.shards() if s.index not in finished]
    left = sum(s.stop - s.start for s in todo)
    listen(TeachStarted(draft.teacher, left, draft.rows - left, why))
    tasks = [ShardTask(s, np.ascontiguousarray(places[s.start : s.stop])) for s in todo]
    build = ShardWork(teacher, state.rows, draft.path, batch_size, state.cache.path)
    for number, done in enumerate(runner.map(build, tasks)):
        listen(RowsTaught(draft.teacher, done.rows, done.bytes, done.teacher_seconds))
        if number == 0:
            require_room_left(draft)  # now it is known what rows weigh
