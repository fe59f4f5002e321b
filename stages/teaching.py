"""Teach: run teachers once over the rows that the cache cannot answer for, and keep their answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from math import isfinite

from stillroom.stages.answering import Answering, require_one_shape
from stillroom.stages.data.rows import Rows
from stillroom.stages.events import Listen, RowsSkipped, TeachFinished, ignore
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.forecasting import require_room
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.together import Job, answer_together, one_at_a_time
from stillroom.storage.cache import Cache
from stillroom.storage.errors import RowsError, SignalError
from stillroom.storage.removing import remove_tree
from stillroom.storage.segment import Segment
from stillroom.storage.served import Served
from stillroom.storage.snapshot import Snapshot

_SAME_ANSWERS = "rows were removed, renamed or moved, or a run ended just before its snapshot"
"""Why a snapshot is written when nothing had to be computed."""


@dataclass(frozen=True)
class Assignment:
    """A teacher of `teach_all`, and how it is run; only the teacher decides what is stored."""

    teacher: Teacher
    runner: Mapper | None = None
    """Its own workers and resources; None: those of the call, taking turns with others that have none."""
    batch_size: int = 256
    shard_rows: int = 4096
    snapshot_every: int | None = None
    """As of `teach`."""
    band: float | None = None
    """As of `teach`."""


def teach(
    cache: Cache,
    rows: Rows,
    teacher: Teacher,
    *,
    runner: Mapper,
    batch_size: int = 256,
    shard_rows: int = 4096,
    snapshot_every: int | None = None,
    band: float | None = None,
    wait: float = 0.0,
    listen: Listen = ignore,
) -> Snapshot:
    """Make the cache answer for every row of the data set, and return the snapshot that does.

    Only rows whose key and content no stored slot serves are computed; with nothing to compute the
    teacher is not loaded and nothing is written. A run that was cut off is continued: its finished
    shards are kept. Batches never cross the border of a shard, so the number of workers and the
    order in which shards finish do not change a byte.

    With `snapshot_every` rows are stored in segments of that many, and a snapshot of what is there
    follows each, so that students can begin (`train(..., available=True)`); `compact` joins them later.

    Before its first shard is stored, a worker asks for up to 8 of its rows again, in the same batch and
    in others (`steady.py`; 24 rows in all). `band` is the share of a signal's range by which those
    answers may differ; None: what is usual for their precision; infinity: nothing is asked twice.

    What `listen` raises ends the run once the shards that workers have in hand are stored. Raises
    UnsteadyError for a teacher whose answers are random or depend on the rest of the batch,
    SignalError for an answer that cannot be stored, OutOfMemoryError for a row that does not fit,
    IdentityError when a worker loads another teacher than the one that was planned (its files or
    packages changed, or differ there), StoreFullError, StorePermissionError, BusyError when another
    process still runs this teacher into this cache after `wait` seconds; what was stored stays.
    Different teachers may run at the same time.
    """
    one = Assignment(teacher, runner, batch_size, shard_rows, snapshot_every, band)
    return teach_all(cache, rows, [one], wait=wait, listen=listen)


def teach_all(
    cache: Cache,
    rows: Rows,
    assignments: Sequence[Assignment],
    *,
    runner: Mapper | None = None,
    wait: float = 0.0,
    listen: Listen = ignore,
) -> Snapshot:
    """Teach with several teachers over the same rows; return one snapshot that serves all of them.

    Teachers with a runner of their own work at the same time, those that share one take turns; the
    stored bytes are the same either way. `listen` hears one event at a time, in whatever thread.

    A teacher that fails does not stop the others: they finish, the snapshot of what they did is
    written, and then its error is raised as it is, or those of several in one ExceptionGroup. Errors
    are those of `teach`; ValueError for two teachers of one name or of one identity.
    """
    if len(rows) == 0:
        raise RowsError("the data set has no rows; there is nothing to teach")
    started = time.perf_counter()
    jobs = [_job(cache, rows, each, runner, len(assignments)) for each in assignments]
    names = [job.name for job in jobs]
    if not jobs or len(set(names)) < len(names):
        raise ValueError(
            f"expected teachers of different names, found {', '.join(names) or 'none'}: in a snapshot a "
            "name stands for one teacher"
        )
    by_digest = {job.state.digest: job.name for job in jobs}
    for job in jobs:
        if by_digest[job.state.digest] != job.name:
            raise ValueError(
                f"teachers {job.name} and {by_digest[job.state.digest]} are the same one: their "
                "identities are equal; give it once"
            )
    if skipped := dict(getattr(rows, "skipped", {})):
        listen(RowsSkipped(len(skipped), skipped))
    stale: list[Job] = []
    for job in jobs:
        if (fresh := job.state.fresh()) is None:
            stale.append(job)
        else:
            listen(TeachFinished(job.name, 0, fresh.number, time.perf_counter() - started))
    with ExitStack() as leases:
        todo = _prepared(stale, leases, wait)
        answer_together(todo, one_at_a_time(listen) if len(todo) > 1 else listen)
        done = [job for job in todo if job.still_mine()]
        snapshot = _committed(cache, done) if done else None
    for job in done:
        assert snapshot is not None
        seconds = time.perf_counter() - started
        listen(TeachFinished(job.name, job.to_compute, snapshot.number, seconds))
    _raise([job for job in stale if job.error is not None], len(jobs))
    return snapshot or cache.snapshot()


def _job(cache: Cache, rows: Rows, each: Assignment, runner: Mapper | None, count: int) -> Job:
    given, every = each.runner or runner, each.snapshot_every
    if min(each.batch_size, each.shard_rows) < 1 or (every is not None and every < 1):
        raise ValueError(
            "batch_size, shard_rows and snapshot_every must be positive: "
            f"{each.batch_size}, {each.shard_rows}, {every}"
        )
    if given is None:
        raise ValueError(
            f"teacher {each.teacher.name!r} has no runner; give it one, or one to all of them"
        )
    state = TeachState(cache, rows, each.teacher, every)
    if each.band is not None and not each.band >= 0:
        raise ValueError(f"band must be a share of the signal's range, from 0; found {each.band}")
    how = Answering(given, each.batch_size, each.shard_rows, band=each.band)
    how = replace(how, look_twice=each.band is None or isfinite(each.band))
    return Job(state, how, alone=count == 1)


def _prepared(jobs: Sequence[Job], leases: ExitStack, wait: float) -> list[Job]:
    """Those that are to be answered, each with its lease and its work; others hold their error."""
    todo, taken = [], 0
    for job in jobs:
        state = job.state
        try:
            job.lease = leases.enter_context(state.cache.writing(state.digest, wait=wait))
            _keep_cut_off_work(state)
            if state.fresh() is not None:
                continue  # another process finished between our look and our lease
            settled = state.settled()
            job.segments = [f for f in settled.folders if isinstance(f, Segment)]
            plan = state.planned(settled)
            why = _interrupted_why(state, job.segments) or plan.why
            taken += require_room(state, settled, why, job.how.shard_rows, taken)
        except Exception as error:
            job.error = error
            continue
        job.work, job.to_compute, job.how = plan.work, plan.to_compute, replace(job.how, why=why)
        todo.append(job)
    _number(todo)
    return todo


def _number(jobs: Sequence[Job]) -> None:
    """Keep numbers for the segments of each, so that they do not depend on who begins first."""
    if len(jobs) < 2:
        return
    begun = [work.draft.path for job in jobs for work in job.work if work.draft is not None]
    first = jobs[0].state.cache.next_segment(without=begun)
    for job in jobs:
        if all(work.draft is None for work in job.work):
            job.how = replace(job.how, first=first)
        first += len(job.work)


def _committed(cache: Cache, done: Sequence[Job]) -> Snapshot:
    """The snapshot over what these answered, beside what others did before."""

    def served() -> list[Served]:
        segments = cache.segments()
        found: list[Served] = []
        for job in done:
            before = [each.source for each in found] if found else None
            found = job.state.served(segments, before)
        return found

    if len(done) == 1:
        why = done[0].how.why
    else:
        why = "; ".join(f"{job.name}: {job.how.why}" for job in done if job.how.why)
    return cache.commit(served, why or _SAME_ANSWERS)


def _raise(failed: Sequence[Job], of: int) -> None:
    errors = [job.error for job in failed if job.error is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        names = ", ".join(job.name for job in failed)
        raise ExceptionGroup(f"{len(errors)} of {of} teachers failed: {names}", errors)


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
                require_one_shape(state.cache.segments(), draft)
                draft.seal()
                continue
        remove_tree(draft.path, first=["plan.json"])


def _interrupted_why(state: TeachState, segments: Sequence[Segment]) -> str:
    """The reason that a run had which was cut off after it sealed segments and before its snapshot."""
    newest = max(state.cache.snapshots(), default=None)
    mine = [s for s in segments if s.digest == state.digest and s.after == newest]
    return mine[-1].why if mine else ""
