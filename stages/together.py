"""Several teachers at once: those that share a runner take turns, the others work in threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from stillroom.stages.answering import Answering, answer_missing
from stillroom.stages.events import Event, Listen, SnapshotTaken
from stillroom.stages.plans.teach_plan import TeachState, Work
from stillroom.storage.lease import Lease
from stillroom.storage.segment import Segment


@dataclass
class Job:
    """One teacher's part of a call."""

    state: TeachState
    how: Answering
    alone: bool
    """Whether it is the call's only teacher."""
    lease: Lease | None = None
    work: Sequence[Work] = ()
    to_compute: int = 0
    """Rows that it will answer."""
    segments: list[Segment] = field(default_factory=list)
    """Sealed ones of every teacher, when it began, and its own since."""
    error: Exception | None = None

    @property
    def name(self) -> str:
        """The teacher's."""
        return self.state.teacher.name

    def answer(self, listen: Listen) -> None:
        """Compute what is missing; an error is kept."""
        assert self.lease is not None
        try:
            answer_missing(
                *(self.state, self.work, self.segments, self.lease, self.how, listen), self._sealed
            )
        except Exception as error:
            self.error = error

    def still_mine(self) -> bool:
        """Whether it went well and the lease is still held; else it holds the error."""
        try:
            if self.error is None and self.lease is not None:
                self.lease.require()
        except Exception as error:
            self.error = error
        return self.error is None

    def _sealed(self, last: bool) -> Event | None:
        """A snapshot of what is there, where one was asked for; the last segment needs none of its own
        when the whole call ends with it."""
        state, asked = self.state, len(self.state.rows)
        if state.segment_rows is None or (last and self.alone):
            return None
        lacking = sum(len(work.places) for work in state.work(self.segments))
        why = f"early: {asked - lacking:,} of {asked:,} rows of {self.name} are there"
        snapshot = state.cache.commit(lambda: state.served(state.cache.segments()), why)
        return SnapshotTaken(self.name, asked - lacking, asked, snapshot.number)


def answer_together(jobs: Sequence[Job], listen: Listen) -> None:
    """Let every job answer; errors are kept in the jobs.

    An interruption (what is no Exception) in one of the threads is raised when all have ended. One
    in this thread is raised at once, and the others begin nothing more.
    """
    by_runner: dict[int, list[Job]] = {}
    for job in jobs:
        by_runner.setdefault(id(job.how.runner), []).append(job)
    groups = list(by_runner.values())
    if len(groups) < 2:
        for job in jobs:
            job.answer(listen)
        return
    abandoned, ends = threading.Event(), list[BaseException]()
    for job in jobs:
        job.how = replace(job.how, goes_on=lambda: not abandoned.is_set())

    def answer(group: Sequence[Job]) -> None:
        try:
            for job in group:
                job.answer(listen)
        except BaseException as end:
            ends.append(end)

    # Daemons, so that a process whose user gives up can end while a teacher is still at work.
    threads = [threading.Thread(target=answer, args=(group,), daemon=True) for group in groups]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        abandoned.set()
        raise
    if ends:
        raise ends[0]


def one_at_a_time(listen: Listen) -> Listen:
    """The same listener, called by one thread at a time."""
    lock = threading.Lock()

    def heard(event: Event) -> None:
        with lock:
            listen(event)

    return heard
