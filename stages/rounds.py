"""Rounds: a student teaches the next round, or is asked anew, by the same steps again and again.

Self-training (the moving average of a student's weights becomes its teacher), generations (a student
teaches one that begins anew) and on-policy methods (teachers answer to what the newest student made) are
all this loop, and so are teacher assistants (each round's student is smaller). Every round has a cache
of its own, so that a run again finds each as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.data.signal_columns import with_signals
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.events import Listen, ignore
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.student import Record, Student
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.teaching import teach
from stillroom.stages.training import plan_train, train
from stillroom.storage.cache import Cache
from stillroom.storage.keys import KeyList
from stillroom.storage.snapshot import Snapshot


@dataclass(frozen=True)
class Round:
    """What one round left."""

    number: int
    """From 1."""
    rows: Rows
    snapshot: Snapshot | None
    """What its student trained from; None where no teacher answered."""
    record: Record


@dataclass(frozen=True)
class RoundsPlan:
    """What `train_rounds` would do now."""

    fresh: int
    """Rounds that are as they were left, from the first on."""
    why: str
    """Why the next one is not; empty when all are. What follows it depends on what it gives."""


def averaged(record: Record) -> Path:
    """The moving average of a student's weights where there is one, else its weights."""
    return record.average if record.average.exists() else record.weights


def train_rounds(
    student: Student | Callable[[int], Student],
    count: int,
    *,
    rows: Callable[[int, Path | None], Rows],
    teachers: Callable[[int, Path | None], Sequence[Teacher]],
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
    folder: str | Path,
    runner: Mapper,
    start: Path | None = None,
    promoted: Callable[[Record], Path] = averaged,
    goes_on: bool = True,
    tables: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    answers: Mapping[str, str] = MappingProxyType({}),
    listen: Listen = ignore,
) -> list[Round]:
    """Teach and train `count` times; what every round left, the first first.

    `student` is the same in every round, or a function of the round's number: other architectures
    (teacher assistants), other recipes, other seeds. `rows(number, weights)` is a round's data set,
    given the newest student's weights: the same one every time, other views of it, or rows that the
    student made. `teachers(number, weights)` are who answers for it, given the weights that the round
    before promoted. Both are given `start` in the first round. `answers` are columns that teachers
    answer and later ones of a round read, `{column: "teacher/signal"}`: what the newest student made,
    for those who score it.

    With `goes_on` a round's student starts from the weights that the round before left (the first one
    from `start`), and its moving average and its controller's state go on from that round's; its
    optimiser begins anew. Without it every student starts as `student` says.

    Students are called `NAME-1`, `NAME-2`, ...; their folders, and a cache for each round, lie in
    `folder`. Run again, only what is stale is computed: a run that was killed in any round goes on there.
    """
    _require_counted(student, count)
    folder, thread = Path(folder), _Thread(start, start)
    found: list[Round] = []
    for number in range(1, count + 1):
        now, data = thread.next(student, number, goes_on), rows(number, thread.newest)
        snapshot = None
        for teacher in teachers(number, thread.teaching):
            asked = _asked(data, snapshot, teacher, answers)
            place = Cache.at(folder / f"{now.name}.cache")
            snapshot = teach(place, asked, teacher, runner=runner, listen=listen)
        (record,) = train(
            [now],
            data,
            snapshot,
            splits=splits,
            evaluation=evaluation,
            folder=folder / "students",
            runner=runner,
            tables=tables,
            listen=listen,
        )
        found.append(Round(number, data, snapshot, record))
        thread.take(record, now, promoted)
    return found


def plan_rounds(
    student: Student | Callable[[int], Student],
    count: int,
    *,
    rows: Callable[[int, Path | None], Rows],
    teachers: Callable[[int, Path | None], Sequence[Teacher]],
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
    folder: str | Path,
    start: Path | None = None,
    promoted: Callable[[Record], Path] = averaged,
    goes_on: bool = True,
    tables: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    answers: Mapping[str, str] = MappingProxyType({}),
) -> RoundsPlan:
    """Which round `train_rounds` would go on with, and why; nothing is computed. Arguments as there."""
    _require_counted(student, count)
    folder, thread = Path(folder), _Thread(start, start)
    for number in range(1, count + 1):
        now, data = thread.next(student, number, goes_on), rows(number, thread.newest)
        snapshot = None
        for teacher in teachers(number, thread.teaching):
            asked = _asked(data, snapshot, teacher, answers)
            taught = plan_teach(folder / f"{now.name}.cache", asked, teacher)
            if taught.why:
                return RoundsPlan(number - 1, f"round {number}: {teacher.name}: {taught.why}")
            snapshot = taught.snapshot
        trained = plan_train(
            [now],
            data,
            snapshot,
            splits=splits,
            evaluation=evaluation,
            folder=folder / "students",
            tables=tables,
        )
        if trained.stale:
            return RoundsPlan(number - 1, f"round {number}: {now.name} has no record")
        thread.take(Record.read(trained.fresh[0].folder), now, promoted)
    return RoundsPlan(count, "")


@dataclass
class _Thread:
    """What goes on from round to round."""

    newest: Path | None
    """The newest student's weights."""
    teaching: Path | None
    """Those that were promoted."""
    average: Path | None = None
    state: Mapping[str, Any] = field(default_factory=dict)

    def next(
        self, student: Student | Callable[[int], Student], number: int, goes_on: bool
    ) -> Student:
        """The round's student, from where the last one ended."""
        given = student if isinstance(student, Student) else student(number)
        now = replace(given, name=f"{given.name}-{number}")
        if not goes_on or self.newest is None:
            return now
        return replace(
            now,
            start=self.newest,
            start_average=self.average if given.fit.average else None,
            start_state=self.state,
        )

    def take(self, record: Record, student: Student, promoted: Callable[[Record], Path]) -> None:
        """What a round's student left."""
        self.newest, self.teaching = record.weights, promoted(record)
        self.average = record.average if student.fit.average else None
        self.state = record.content.get("state", {})


def _asked(
    data: Rows, snapshot: Snapshot | None, teacher: Teacher, answers: Mapping[str, str]
) -> Rows:
    """The rows that a teacher is asked about, with what earlier ones of the round answered."""
    read = {column: signal for column, signal in answers.items() if column in teacher.inputs}
    return with_signals(data, snapshot, **read) if read and snapshot else data


def _require_counted(student: Student | Callable[[int], Student], count: int) -> None:
    if count < 1:
        who = f"student {student.name!r}" if isinstance(student, Student) else "student"
        raise ValueError(f"{who}: rounds are counted from 1, asked for {count}")
