"""What a person sees while a workflow runs: rows a second, bytes, time left, each student."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillroom.pipeline.execute import StepFinished, StepStarted
from stillroom.stages.events import (
    BooksMade,
    RowsTaught,
    StudentTrained,
    TeachFinished,
    TeachStarted,
    TrainStarted,
)

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
    _total: int = 0
    _done: int = 0
    _bytes: int = 0
    _since: float = 0.0
    _said: float = 0.0
    _status: Any = None

    def __call__(self, event: Any) -> None:
        """Take one event; unknown ones are ignored."""
        for kind, say in self._says().items():
            if isinstance(event, kind):
                say(event)

    def _says(self) -> dict[type, Callable[[Any], None]]:
        return {
            StepStarted: self._step_started,
            StepFinished: self._step_finished,
            TeachStarted: self._teach_started,
            BooksMade: self._books_made,
            RowsTaught: self._rows_taught,
            TeachFinished: self._teach_finished,
            TrainStarted: self._train_started,
            StudentTrained: self._student_trained,
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
        self._total, self._done, self._bytes = total, 0, 0
        self._since = self._said = time.perf_counter()

    def _left(self) -> str:
        passed = time.perf_counter() - self._since
        return f"{passed / max(self._done, 1) * (self._total - self._done):.0f} s left"

    def _step_started(self, event: StepStarted) -> None:
        if event.why:
            self._line(f"{event.step}: {event.why}")

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
        self._done += event.rows
        self._bytes += event.bytes
        rate = self._done / max(time.perf_counter() - self._since, 1e-9)
        self._moving(
            f"{event.teacher}: {self._done:,} of {self._total:,} rows, {rate:,.0f} rows/s, "
            f"{self._bytes:,} bytes, {self._left()}",
            last=self._done >= self._total,
        )

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
