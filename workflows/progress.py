"""What a person sees while a workflow runs: rows a second, bytes, time left, each student."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillroom.pipeline.events import WorkerLost, WorkersAwaited
from stillroom.pipeline.execute import StepFinished, StepFound, StepStarted
from stillroom.stages.events import (
    BooksMade,
    RowsAwaited,
    RowsSkipped,
    RowsTaught,
    SnapshotTaken,
    StudentFailed,
    StudentStopped,
    StudentTrained,
    TeachFinished,
    TeachStarted,
    TrainStarted,
)
from stillroom.stages.listeners.tally import Pace, Tally

if TYPE_CHECKING:
    from rich.console import Console

_LINE_EVERY_S = 2.0
"""Without a terminal, progress is a line now and then."""


@dataclass
class Progress:
    """Turns events into lines; on a terminal the last line is rewritten in place."""

    console: Console
    started: float = field(default_factory=time.perf_counter)
    computed: list[str] = field(default_factory=list)
    """What was computed in this run, in words; empty when all was fresh."""
    tally: Tally = field(default_factory=lambda: Tally((WorkerLost,)))
    _total: int = 0
    _done: int = 0
    _since: float = 0.0
    _said: float = 0.0
    _status: Any = None

    def __call__(self, event: Any) -> None:
        """Take one event; unknown ones are ignored."""
        self.tally.take(event, time.perf_counter())
        for kind, say in self._says().items():
            if isinstance(event, kind):
                say(event)

    def _says(self) -> dict[type, Callable[[Any], None]]:
        return {
            StepStarted: self._step_started,
            StepFound: self._step_found,
            StepFinished: self._step_finished,
            TeachStarted: self._teach_started,
            BooksMade: self._books_made,
            RowsTaught: self._rows_taught,
            RowsSkipped: self._rows_skipped,
            SnapshotTaken: self._snapshot_taken,
            WorkerLost: self._worker_lost,
            WorkersAwaited: self._workers_awaited,
            TeachFinished: self._teach_finished,
            RowsAwaited: self._rows_awaited,
            TrainStarted: self._train_started,
            StudentTrained: self._student_trained,
            StudentFailed: self._student_failed,
            StudentStopped: self._student_stopped,
        }

    def close(self) -> None:
        """Remove the moving line."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _moving(self, text: str, *, last: bool) -> None:
        if self.console.is_terminal:
            if self._status is None:
                self._status = self.console.status(text)
                self._status.start()
            self._status.update(text)
        elif last or time.perf_counter() - self._said > _LINE_EVERY_S:
            self._said = time.perf_counter()
            self._line(f"  {text}")
        if last:
            if self.console.is_terminal:
                self._line(f"  {text}")
            self.close()

    def _begin(self, total: int) -> None:
        self._total, self._done = total, 0
        self._since = self._said = time.perf_counter()

    def _left(self) -> str:
        passed = time.perf_counter() - self._since
        return f"{passed / max(self._done, 1) * (self._total - self._done):.0f} s left"

    def _step_started(self, event: StepStarted) -> None:
        if event.why:
            self._line(f"{event.step}: {event.why}")

    def _step_found(self, event: StepFound) -> None:
        self._line(f"  {event.why}")

    def _step_finished(self, event: StepFinished) -> None:
        if event.fresh:
            self._line(f"{event.step}: fresh")
        else:
            self.computed.append(event.step)
            self._line(f"{event.step}: done in {event.seconds:.1f} s")

    def _teach_started(self, event: TeachStarted) -> None:
        self._begin(event.rows)
        kept = f", {event.resumed:,} rows kept from a run that was cut off" if event.resumed else ""
        self._line(f"  teaching with {event.teacher}: {event.why}{kept}")

    def _books_made(self, event: BooksMade) -> None:
        names = ", ".join(event.signals)
        asked = f" from {event.rows:,} rows" if event.rows else ""
        self._line(f"  {event.teacher}: constants of {names} made{asked} in {event.seconds:.1f} s")

    def _rows_taught(self, event: RowsTaught) -> None:
        paces = self.tally.paces
        last = all(pace.done >= pace.rows for pace in paces.values())
        self._moving(pace_words(paces[event.teacher]), last=last)

    def _snapshot_taken(self, event: SnapshotTaken) -> None:
        self._line(
            f"  snapshot {event.snapshot} serves {event.rows:,} of {event.asked:,} rows of {event.teacher}"
        )

    def _rows_skipped(self, event: RowsSkipped) -> None:
        first = "; ".join(f"{key}: {why}" for key, why in list(event.reasons.items())[:3])
        more = f"; and {event.rows - 3:,} more" if event.rows > 3 else ""
        self._line(f"  {event.rows:,} broken records are skipped: {first}{more}")

    def _worker_lost(self, event: WorkerLost) -> None:
        self._line(f"  a worker died at {event.item} and another one tries it: {event.reason}")

    def _workers_awaited(self, event: WorkersAwaited) -> None:
        self._line(f"  no worker for {event.seconds:.0f} s: {event.why}")

    def _teach_finished(self, event: TeachFinished) -> None:
        self.close()
        if event.rows:
            self._line(f"  snapshot {event.snapshot}: {event.rows:,} rows in {event.seconds:.1f} s")
        else:
            self._line(f"  snapshot {event.snapshot} answers for every row; no teacher was loaded")

    def _train_started(self, event: TrainStarted) -> None:
        self._begin(event.students)
        if event.students:
            self._line(f"  {event.students} trainings to do, {event.fresh} as recorded")

    def _rows_awaited(self, event: RowsAwaited) -> None:
        self._line(
            f"  split {event.split}: {event.rows:,} of {event.asked:,} rows are taught so far (snapshot "
            f"{event.snapshot}); students train on those"
        )

    def _student_failed(self, event: StudentFailed) -> None:
        self._done += 1
        self._line(f"  {self._done} of {self._total}: {event.why}")

    def _student_stopped(self, event: StudentStopped) -> None:
        said = f"stopped after epoch {event.epoch} at {event.value:.4f}"
        self._line(f"  {event.name}, seed {event.seed}: {said}")

    def _student_trained(self, event: StudentTrained) -> None:
        self._done += 1
        found = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
        count = f"{self._done} of {self._total}"
        left = "" if self.console.is_terminal else f"; {self._left()}"
        said = f"{event.name}, seed {event.seed}: {found}; {event.seconds:.1f} s"
        self._line(f"  {count}: {said}{left}")
        if self.console.is_terminal and self._done < self._total:
            self._moving(f"{count} trained, {self._left()}", last=False)
        else:
            self.close()


def pace_words(pace: Pace) -> str:
    """One teacher's pace as a person reads it.

    >>> pace_words(Pace("cnn", 5000, 0, 1250, 90_000, 5.0, 9.0, frozenset({"a", "b"})))
    'cnn: 1,250 of 5,000 rows, 250 rows/s, 18,000 bytes/s, 90% busy, 15 s left'
    """
    left, busy = pace.seconds_left, pace.busy
    said = [
        f"{pace.teacher}: {pace.done:,} of {pace.rows:,} rows",
        f"{pace.rows_per_second:,.0f} rows/s",
        f"{pace.bytes_per_second:,.0f} bytes/s",
        *([f"{busy:.0%} busy"] if busy is not None else []),
        *([f"{pace.halved:,} batches halved"] if pace.halved else []),
        *([f"{left:.0f} s left"] if left is not None else []),
    ]
    return ", ".join(said)
