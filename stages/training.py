"""Train: many students from one snapshot, each recorded; only those without a record are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.available import Available, available_rows
from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.events import (
    Listen,
    RowsAwaited,
    StudentFailed,
    StudentTrained,
    TrainStarted,
    ignore,
)
from stillroom.stages.mapper import Mapper
from stillroom.stages.placing import placed_students
from stillroom.stages.reading import Reading
from stillroom.stages.student import Record, Student
from stillroom.stages.student_work import StudentTask, StudentWork
from stillroom.stages.train_checks import check_students, require_tables
from stillroom.storage.code import code_identity
from stillroom.storage.identity import digest
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.snapshot import Snapshot


@dataclass(frozen=True)
class TrainPlan:
    """What `train` would do now."""

    stale: tuple[StudentTask, ...]
    """Students without a record of exactly this identity."""
    fresh: tuple[StudentTask, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The stale students' names, each once."""
        return tuple(dict.fromkeys(task.student.name for task in self.stale))


def plan_train(
    students: Sequence[Student],
    rows: Rows,
    snapshot: Snapshot | None,
    *,
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
    folder: Path,
    available: bool = False,
    tables: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> TrainPlan:
    """Compare every student's identity with the records in `folder`.

    A student's identity holds its architecture, recipe, seed, the rows it reads and the identity of
    the teachers it reads, never the snapshot's number: a cache that only grew makes none stale. With
    `available`, rows that the snapshot does not serve yet are left out, and once they are there the
    student is stale.

    Raises UnknownSignalError when a recipe reads a signal that the snapshot lacks, UnknownRowError for
    rows that were never taught, RowsError for an unknown split, column or row and for rows that
    changed since they were taught, ValueError for two different students of one name and seed,
    IdentityError for a student's tokenizer that is not its teacher's.
    """
    check_students(students, rows, snapshot, splits, evaluation)
    require_tables(students, tables)
    reading = Reading(
        rows, snapshot, _there(students, snapshot, splits, evaluation, available).splits
    )

    def identified(
        columns: Sequence[str], signals: Sequence[str], split: str, views: int = 0
    ) -> dict[str, Any]:
        if views:
            return reading.viewed(columns, signals, split, views)
        return {
            "data": reading.content(columns, split),
            "teacher": {name: reading.teacher(name, split) for name in signals},
        }

    digests = {name: digest(code_identity(np.asarray(held))) for name, held in tables.items()}
    stale: list[StudentTask] = []
    fresh: list[StudentTask] = []
    for student in students:
        measured = (*student.inputs, *evaluation.columns)
        identity = {
            "student": student.identity(),
            **identified(student.columns, student.reads, student.split, student.fit.views),
            "evaluation": {
                "measure": code_identity(evaluation.measure),
                **identified(measured, evaluation.signals, evaluation.split),
            },
        }
        for stream in student.recipe.streams:
            split = student.beside[stream]
            identity[f"beside {stream}"] = identified(
                student.columns, student.reads, split, student.fit.views
            )
        if student.recipe.tables:
            identity["tables"] = {name: digests[name] for name in student.recipe.tables}
        answer = student.recipe.answer
        if student.validation and (answer is not None or student.fit.watch):
            measured = (*measured, *(() if answer is None else answer.columns))
            identity["validation"] = identified(measured, evaluation.signals, student.validation)
        name = digest(identity)
        place = folder / f"{student.name}-{student.seed}-{name[:12]}"
        task = StudentTask(student, identity, name, place)
        (fresh if task.is_done else stale).append(task)
    return TrainPlan(tuple(stale), tuple(fresh))


def train(
    students: Sequence[Student],
    rows: Rows,
    snapshot: Snapshot | None,
    *,
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
    folder: str | Path,
    runner: Mapper,
    available: bool = False,
    tables: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    threads: int = 1,
    checkpoint_s: float = 60.0,
    together: bool = True,
    tensorboard: str | Path | None = None,
    listen: Listen = ignore,
) -> list[Record]:
    """Train every student that has no record yet; return all records in the order given.

    `splits` names rows by key; each student trains on its split and is evaluated on that of the
    evaluation. No teacher is imported or loaded: what students read of it comes from the snapshot.
    With `available`, students train on the rows that the snapshot serves while teaching still runs
    (`teach(..., snapshot_every=...)`), and say so: RowsAwaited is heard, and the record has the
    snapshot, `rows` and `asked_rows`. Without it rows that are not there are an error.

    `tables` are arrays about no row that recipes read as `table.NAME`: class vectors, edges.

    Every `checkpoint_s` seconds, at the end of an epoch, a student's training is stored; one that was
    killed goes on from there, bit for bit on a CPU. A student that cannot be trained (a loss that is no
    number, a term that does not fit, too little memory for it alone) ends alone: the others are trained,
    then TrainingError says it.

    Students whose batches are the same (rows, signals, batch size, views and `Student.order`) are trained
    `together`: one process gathers each batch once and every student makes its step on it, to the same
    bits as alone on a CPU. They are put into as few groups as keep the runner's workers busy, and on
    workers that have what they need (`Student.needs`).

    Every step is in the student's `log.parquet` (`Record.log`); with `tensorboard`, a folder, the same
    numbers are in event files below it, a folder `NAME-SEED` for each student (extra `tensorboard`).

    `threads` is for each worker; results depend on it only through the order of sums. Raises what
    `plan_train` does, and TrainingError for a loss that is no number.
    """
    plan = plan_train(
        *(students, rows, snapshot),
        splits=splits,
        evaluation=evaluation,
        folder=Path(folder),
        available=available,
        tables=tables,
    )
    listen(TrainStarted(len(plan.stale), len(plan.fresh)))
    there = _there(students, snapshot, splits, evaluation, available)
    for name, asked in there.asked.items():
        assert snapshot is not None
        listen(RowsAwaited(name, len(there.splits[name]), asked, snapshot.number))
    failed: list[str] = []
    for record in train_tasks(
        plan.stale,
        *(rows, snapshot, there, evaluation, runner),
        tables=tables,
        threads=threads,
        checkpoint_s=checkpoint_s,
        together=together,
        tensorboard=tensorboard,
    ):
        if "failed" in record:
            failed.append(record["failed"])
            listen(StudentFailed(record["student"], record["seed"], record["failed"]))
            continue
        scalars = {n: v for n, v in record["metrics"].items() if isinstance(v, float)}
        listen(StudentTrained(record["student"], record["seed"], record["seconds"], scalars))
    if failed:
        from stillroom.stages.fitting import TrainingError

        trained = len(plan.stale) - len(failed)
        others = f" ({trained} others are trained and kept)" if trained else ""
        raise TrainingError("; ".join(failed) + others)
    places = {id(task.student): task.folder for task in (*plan.stale, *plan.fresh)}
    return [Record.read(places[id(student)]) for student in students]


def train_tasks(
    tasks: Sequence[StudentTask],
    rows: Rows,
    snapshot: Snapshot | None,
    there: Available,
    evaluation: Evaluation,
    runner: Mapper,
    *,
    tables: Mapping[str, NDArray[Any]],
    threads: int,
    checkpoint_s: float,
    until: int = 0,
    together: bool = True,
    tensorboard: str | Path | None = None,
) -> Iterator[Mapping[str, Any]]:
    """What the workers say of each student as it ends: its record, `failed`, or, where it stops for now
    after epoch `until` in its checkpoint, `paused` and its `curve`."""
    # Opened anew: what planning read of it need not be sent to the workers.
    own = None if snapshot is None else Snapshot(snapshot.cache, snapshot.number)
    board = None if tensorboard is None else Path(tensorboard)
    work = StudentWork(
        *(rows, own, there.splits, evaluation, threads, there.asked, tables, checkpoint_s, until),
        tensorboard=board,
    )
    yield from placed_students(runner, work, tasks, together=together)


def _there(
    students: Sequence[Student],
    snapshot: Snapshot | None,
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
    available: bool,
) -> Available:
    """The rows to train on."""
    keys = {name: as_keys(chosen) for name, chosen in splits.items()}
    if not available:
        return Available(keys)
    return available_rows(students, keys, evaluation, snapshot)
