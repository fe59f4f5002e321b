"""Rounds: a student teaches the next round, or is asked anew, by the same steps again and again.

Self-training (the moving average of a student's weights becomes its teacher), generations (a student
teaches one that begins anew) and on-policy methods (teachers answer to what the newest student made) are
all this loop. Every round has a cache of its own, so that a run again finds each as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.data.signal_columns import with_signals
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.mapper import Mapper
from stillroom.stages.student import Record, Student
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.teaching import teach
from stillroom.stages.training import train
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


def averaged(record: Record) -> Path:
    """The moving average of a student's weights where there is one, else its weights."""
    return record.average if record.average.exists() else record.weights


def train_rounds(
    student: Student,
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
) -> list[Round]:
    """Teach and train `count` times; what every round left, the first first.

    `rows(number, weights)` is a round's data set, given the newest student's weights: the same one
    every time, other views of it, or rows that the student made. `teachers(number, weights)` are who
    answers for it, given the weights that the round before promoted. Both are given `start` in the
    first round. `answers` are columns that teachers answer and later ones of a round read,
    `{column: "teacher/signal"}`: what the newest student made, for those who score it.

    With `goes_on` a round's student starts from the weights that the round before left (the first one
    from `start`), and its moving average and its controller's state go on from that round's; its
    optimiser begins anew. Without it every student starts as `student` says.

    Students are called `NAME-1`, `NAME-2`, ...; their folders, and a cache for each round, lie in
    `folder`. Run again, only what is stale is computed.
    """
    if count < 1:
        raise ValueError(f"student {student.name!r}: rounds are counted from 1, asked for {count}")
    folder, newest, teaching = Path(folder), start, start
    average: Path | None = None
    state: Mapping[str, Any] = {}
    found: list[Round] = []
    for number in range(1, count + 1):
        data, name = rows(number, newest), f"{student.name}-{number}"
        snapshot = None
        for teacher in teachers(number, teaching):
            read = {c: s for c, s in answers.items() if c in teacher.inputs}
            asked = with_signals(data, snapshot, **read) if read and snapshot else data
            snapshot = teach(Cache.at(folder / f"{name}.cache"), asked, teacher, runner=runner)
        now = replace(student, name=name)
        if goes_on and newest is not None:
            now = replace(now, start=newest, start_average=average, start_state=state)
        (record,) = train(
            [now],
            data,
            snapshot,
            splits=splits,
            evaluation=evaluation,
            folder=folder / "students",
            runner=runner,
            tables=tables,
        )
        found.append(Round(number, data, snapshot, record))
        newest, teaching = record.weights, promoted(record)
        average = record.average if student.fit.average else None
        state = record.content.get("state", {})
    return found
