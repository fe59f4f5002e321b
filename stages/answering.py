"""One teacher's part of teaching: begin drafts, compute their shards in one go, seal each when it is whole.

All drafts go through one map, so that a worker loads the teacher once and never waits for a border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from stillroom.stages.data.rows import Rows
from stillroom.stages.events import CacheChosen, Event, Listen, RowsTaught, TeachStarted
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.forecasting import require_room_left
from stillroom.stages.plans.teach_plan import TeachState, Work
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.worker.asking import Asking
from stillroom.stages.worker.book_work import BookWork, LoadedOnce, with_books
from stillroom.stages.worker.shard_work import ShardDone, ShardTask, ShardWork, ShardWorker
from stillroom.storage.draft import Draft
from stillroom.storage.errors import SignalError, UnsteadyError
from stillroom.storage.folder import Ask
from stillroom.storage.keys import KeyIndex
from stillroom.storage.lease import Lease
from stillroom.storage.place import Place
from stillroom.storage.receipt import receipt_path
from stillroom.storage.removing import remove, remove_tree
from stillroom.storage.segment import Segment
from stillroom.storage.signal import Signal

Task = TypeVar("Task")


@dataclass(frozen=True)
class Answering:
    """How rows are answered; it decides no identity."""

    runner: Mapper
    batch_size: int = 256
    shard_rows: int = 4096
    why: str = ""
    """The reason that new segments state."""
    first: int | None = None
    """Number of the first work's segment, where several teachers begin together."""
    goes_on: Callable[[], bool] = lambda: True
    """Asked before each shard and each seal; once it says no, nothing more is begun."""
    look_twice: bool = False
    """Ask for some rows of the first shard again, and refuse a teacher that says something else."""
    band: float | None = None
    """By how much of a signal's range those answers may differ; None: by what is usual."""


def answer_missing(
    state: TeachState,
    work: Sequence[Work],
    segments: list[Segment],
    lease: Lease,
    how: Answering,
    listen: Listen,
    sealed: Callable[[bool], Event | None] = lambda last: None,
) -> None:
    """Compute rows that no segment serves, append the new segments, and call `sealed` after each.

    Segments are sealed in the order of the work; `sealed` is told whether it was the last, and what it
    returns is said to the listener. A draft that `work` names is continued, with the books that it
    chose. What the listener raises is raised once the shards that workers have in hand are stored.
    """
    teacher = LoadedOnce(state.teacher)
    if work:
        listen(CacheChosen(state.teacher.name, str(state.cache.path), state.digest))
    drafts = _drafts(state, work, segments, teacher, how, listen)
    open_, heard = [_Open.of(state, draft) for draft in drafts], _Heard(listen, how.goes_on)
    left = sum(each.rows for each in open_)
    if left or drafts:
        rows = sum(draft.rows for draft in drafts)
        listen(TeachStarted(state.teacher.name, left, rows - left, how.why))

    def seal_whole() -> None:
        while open_ and not open_[0].left and how.goes_on():
            draft = open_.pop(0).draft
            require_one_shape(segments, draft)
            lease.require()
            segments.append(draft.seal())
            if (event := sealed(not open_)) is not None:
                heard(event)

    seal_whole()  # a run may have been cut off just before its seal
    tasks = [DraftTask(each.draft.path, task) for each in open_ for task in each.left.values()]
    if tasks and how.look_twice:
        first = replace(tasks[0].task, look_twice=True, band=how.band)
        tasks[0] = replace(tasks[0], task=first)
    by_path = {each.draft.path: each for each in open_}
    build = DraftsWork(teacher, state.rows, how.batch_size, state.cache.path)
    try:
        for path, done in how.runner.map(build, heard.while_heard(tasks)):
            each = by_path[path]
            del each.left[done.shard]
            heard(taught_event(state.teacher.name, done))
            if not each.weighed:
                each.weighed = True
                require_room_left(each.draft)  # now it is known what rows weigh
            seal_whole()
    except UnsteadyError:
        for each in open_:
            each.forget()  # other workers may have stored such answers meanwhile
        raise
    heard.require()
    if open_ and how.goes_on():
        lost = sum(len(each.left) for each in open_)
        raise RuntimeError(
            f"teacher {state.teacher.name!r}: the runner gave no result for {lost:,} shards and no error "
            "either. What was finished is kept; run again to go on"
        )


def taught_event(teacher: str, done: ShardDone) -> RowsTaught:
    """What is said about a finished shard."""
    given = (done.rows, done.bytes, done.teacher_seconds)
    more = {"halved": done.halved, "asked_again": done.asked_again}
    return RowsTaught(teacher, *given, worker=done.worker, **more)


def require_one_shape(segments: Sequence[Segment], draft: Draft) -> None:
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


def _drafts(
    state: TeachState,
    work: Sequence[Work],
    segments: Sequence[Segment],
    teacher: Teacher,
    how: Answering,
    listen: Listen,
) -> list[Draft]:
    """The draft of each work: continued, or begun now, all by the same books."""
    drafts: list[Draft] = []
    for number, each in enumerate(work):
        draft = each.draft
        if draft is None:
            known = {n: ask.book for d in drafts for n, ask in d.asked.items() if ask.book}
            asked = {n: replace(ask, book=known.get(n, "")) for n, ask in each.asked.items()}
            books = BookWork(teacher, state.rows, state.cache.path, how.batch_size)
            asked = with_books(
                *(asked, each.places, state.digest, segments, books, how.runner, listen)
            )
            at = None if how.first is None else how.first + number
            draft = _begun(state, each, asked, how, at)
        drafts.append(draft)
    return drafts


def _begun(
    state: TeachState, work: Work, asked: Mapping[str, Ask], how: Answering, number: int | None
) -> Draft:
    return state.cache.draft(
        state.teacher.name,
        state.identity,
        asked,
        state.rows.keys.take(work.places),
        state.own.hashes[work.places],
        how.shard_rows,
        how.why,
        number,
    )


@dataclass
class _Open:
    """A draft that is not sealed yet."""

    draft: Draft
    left: dict[int, ShardTask]
    """Its shards without a receipt, by number."""
    weighed: bool = False
    """Whether it was seen that the rest of it has room."""
    begun: bool = False
    """Whether an earlier run finished shards of it."""
    missing: tuple[int, ...] = ()
    """Its shards without a receipt when this run began."""

    @classmethod
    def of(cls, state: TeachState, draft: Draft) -> _Open:
        """What is left of a draft, and where its rows lie in the data set."""
        places = KeyIndex(state.rows.keys).find(draft.keys)
        finished = draft.receipts()
        todo = [s for s in draft.shards() if s.index not in finished]
        tasks = [ShardTask(s, np.ascontiguousarray(places[s.start : s.stop])) for s in todo]
        left = {task.shard.index: task for task in tasks}
        return cls(draft, left, begun=bool(finished), missing=tuple(left))

    def forget(self) -> None:
        """Take out what this run stored of it; nothing of it was ever part of the cache."""
        if not self.begun:
            remove_tree(self.draft.path, first=["plan.json"])
            return
        for shard in self.missing:
            remove(receipt_path(self.draft.path, shard))

    @property
    def rows(self) -> int:
        """Rows to compute."""
        return sum(len(task.places) for task in self.left.values())


@dataclass(frozen=True)
class DraftTask:
    """A shard of one of several drafts."""

    draft: Place
    task: ShardTask

    def __str__(self) -> str:
        """For messages."""
        return f"{self.task} of {self.draft.name}"


@dataclass(frozen=True)
class DraftsWork:
    """Builds a worker that serves all drafts of a teacher; small enough to be sent to one."""

    teacher: Teacher
    """Loaded once in each process."""
    rows: Rows
    batch_size: int
    cache: Place

    def __call__(self) -> DraftsWorker:
        """Load the teacher in this process."""
        return DraftsWorker(self)


class DraftsWorker:
    """A loaded teacher that turns shards of rows into stored shards of their drafts."""

    def __init__(self, work: DraftsWork) -> None:
        """Load the teacher."""
        self._work = work
        self._worker: tuple[Place, ShardWorker] | None = None
        # Common to all drafts: it remembers which batches fit into memory.
        self._asking = Asking.of(work.teacher, work.rows, work.batch_size)

    def __call__(self, task: DraftTask) -> tuple[Place, ShardDone]:
        """Compute and store one shard; the draft that it lies in, and what was done."""
        if self._worker is None or self._worker[0] != task.draft:
            work = self._work
            given = (work.teacher, work.rows, task.draft, work.batch_size, work.cache)
            self._worker = (task.draft, ShardWorker(ShardWork(*given), self._asking))
        return task.draft, self._worker[1](task.task)


class _Heard:
    """A listener whose error waits until what workers have in hand is stored."""

    def __init__(self, listen: Listen, goes_on: Callable[[], bool]) -> None:
        self._listen, self._goes_on = listen, goes_on
        self._error: Exception | None = None

    def __call__(self, event: Event) -> None:
        if self._error is None:
            try:
                self._listen(event)
            except Exception as error:
                self._error = error

    def while_heard(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The tasks, until there is an error."""
        for task in tasks:
            if self._error is not None or not self._goes_on():
                return
            yield task

    def require(self) -> None:
        """Raise what the listener raised."""
        if self._error is not None:
            raise self._error
