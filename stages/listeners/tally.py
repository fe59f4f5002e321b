"""Tally: events become numbers. Pure arithmetic: the caller says what time it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stillroom.stages.events import RowsSkipped, RowsTaught, TeachFinished, TeachStarted


@dataclass(frozen=True)
class Pace:
    """How far one teacher is, and how fast; rates are over the whole run so far."""

    teacher: str
    rows: int
    """To compute in this run."""
    resumed: int = 0
    """Stored by a run that was cut off."""
    done: int = 0
    bytes: int = 0
    seconds: float = 0.0
    """From the start to the last shard."""
    teacher_seconds: float = 0.0
    """Inside the teacher, in all workers together."""
    workers: frozenset[str] = frozenset()
    """Those that finished a shard."""
    halved: int = 0
    """Batches that were cut in half because memory ran out."""

    @property
    def stored(self) -> int:
        """Rows of this teaching that are on the disk."""
        return self.resumed + self.done

    @property
    def rows_per_second(self) -> float:
        """0 before the first shard."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        """0 before the first shard."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """If it goes on as it did; None before the first shard."""
        if self.done >= self.rows:
            return 0.0
        return (self.rows - self.done) / self.rows_per_second if self.rows_per_second else None

    @property
    def busy(self) -> float | None:
        """Share of the workers' time spent inside the teacher: 1 when nothing else costs anything.

        On a GPU the teacher's answers are waited for, so that this is the share of time in which it had
        work of this worker. Loading the teacher counts as idle. None before the first shard.
        """
        there = len(self.workers) * self.seconds
        return self.teacher_seconds / there if there > 0 else None

    def to_json(self) -> dict[str, Any]:
        """The numbers, for a page or a log."""
        return {
            "teacher": self.teacher,
            "rows": self.rows,
            "stored": self.stored,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second,
            "bytes_per_second": self.bytes_per_second,
            "seconds_left": self.seconds_left,
            "busy": self.busy,
            "workers": len(self.workers),
            "halved": self.halved,
        }


@dataclass
class Tally:
    """The paces of all teachers of a run, and what concerns all of them.

    >>> tally = Tally()
    >>> tally.take(TeachStarted("cnn", 100, 0, "new"), 10.0)
    >>> tally.take(RowsTaught("cnn", 25, 1000, 3.0, worker="a"), 15.0)
    >>> pace = tally.paces["cnn"]
    >>> pace.rows_per_second, pace.bytes_per_second, pace.seconds_left, pace.busy
    (5.0, 200.0, 15.0, 0.6)
    """

    retried: tuple[type, ...] = ()
    """Events of the runner that mean that a worker died and its item is tried again."""
    retries: int = 0
    skipped: int = 0
    """Broken records that the data set left out."""
    _paces: dict[str, Pace] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    _finished: set[str] = field(default_factory=set)

    @property
    def paces(self) -> Mapping[str, Pace]:
        """By teacher, in the order in which they began."""
        return self._paces

    @property
    def unfinished(self) -> list[Pace]:
        """Those of teachers that no snapshot serves whole yet."""
        return [pace for name, pace in self._paces.items() if name not in self._finished]

    def take(self, event: object, at: float) -> None:
        """Count one event that was heard `at` these seconds of any steady clock; others are ignored."""
        if isinstance(event, TeachStarted):
            begun = Pace(event.teacher, event.rows, event.resumed)
            self._paces[event.teacher], self._since[event.teacher] = begun, at
            self._finished.discard(event.teacher)
        elif isinstance(event, RowsTaught):
            known = self._known(event.teacher, at)
            self._paces[event.teacher] = replace(
                known,
                done=known.done + event.rows,
                bytes=known.bytes + event.bytes,
                seconds=at - self._since[event.teacher],
                teacher_seconds=known.teacher_seconds + event.teacher_seconds,
                workers=known.workers | {event.worker},
                halved=known.halved + event.halved,
            )
        elif isinstance(event, TeachFinished):
            self._finished.add(event.teacher)
        elif isinstance(event, RowsSkipped):
            self.skipped = event.rows
        elif isinstance(event, self.retried):
            self.retries += 1

    def _known(self, teacher: str, at: float) -> Pace:
        """Where it stands; one whose start was not heard begins now."""
        self._since.setdefault(teacher, at)
        return self._paces.setdefault(teacher, Pace(teacher, 0))
