"""Train: many students from one snapshot, each recorded; only those without a record are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.available import Available, available_rows
from stillroom.stages.data.rows import Rows, require_columns
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
from stillroom.stages.reading import Reading
from stillroom.stages.student import Record, Student
from stillroom.stages.student_work import StudentTask, StudentWork
from stillroom.stages.views.replay import base_columns
from stillroom.storage.code import code_identity
from stillroom.storage.errors import (
    NotACacheError,
    RowsError,
    UnknownSignalError,
    listed,
    nearest,
)
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
    _check(students, rows, snapshot, splits, evaluation)
    _require_tables(students, tables)
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
        whole = all((place / file).exists() for file in ("record.json", "weights.safetensors"))
        (fresh if whole else stale).append(task)
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
    number, a term that does not fit) ends alone: the others are trained, then TrainingError says it.

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
    # Opened anew: what planning read of it need not be sent to the workers.
    own = None if snapshot is None else Snapshot(snapshot.cache, snapshot.number)
    work = StudentWork(
        rows, own, there.splits, evaluation, threads, there.asked, tables, checkpoint_s
    )
    failed: list[str] = []
    for record in runner.map(work, plan.stale):
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


def _check(
    students: Sequence[Student],
    rows: Rows,
    snapshot: Snapshot | None,
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
) -> None:
    """Everything that can be known to be wrong before the first student trains."""
    seen: set[tuple[str, int]] = set()
    for student in students:
        if (student.name, student.seed) in seen:
            raise ValueError(
                f"two students are called {student.name!r} with seed {student.seed}; give each its name"
            )
        seen.add((student.name, student.seed))
        columns = base_columns(student.columns) if student.fit.views else student.columns
        require_columns(rows, columns, f"student {student.name!r}")
        _require_signals(student.reads, snapshot, f"recipe {student.recipe.name!r}")
        _require_tokenizer(student, snapshot)
        if student.fit.views and snapshot is None:
            raise NotACacheError(
                f"student {student.name!r} trains on views, which are replayed from a cache; give "
                "train() the snapshot that teach() returned"
            )
        for split in (*student.splits, *([student.validation] * bool(student.validation))):
            if split not in splits:
                raise RowsError(f"no split {split!r}; {nearest(split, splits)}")
    require_columns(rows, evaluation.columns, "the evaluation")
    _require_signals(evaluation.signals, snapshot, "the evaluation")
    if evaluation.split not in splits:
        raise RowsError(f"no split {evaluation.split!r}; {nearest(evaluation.split, splits)}")


def _require_tables(students: Sequence[Student], tables: Mapping[str, NDArray[Any]]) -> None:
    for student in students:
        for name in student.recipe.tables:
            if name not in tables:
                raise ValueError(
                    f"student {student.name!r}: recipe {student.recipe.name!r} reads table.{name}, an "
                    f"array about no row; give it to train(): tables={{{name!r}: array}}"
                )


def _require_tokenizer(student: Student, snapshot: Snapshot | None) -> None:
    if student.tokenizer is None or snapshot is None or not student.reads:
        return
    from stillroom.stages.teachers.huggingface.agreement import require_tokenizer_of

    teachers = {}
    for name in student.reads:
        source = snapshot.sources[snapshot.find(name)[0]]
        teachers[source.teacher] = "tokenizer" in snapshot.identity(name)
    # Others read no texts; where none does, the first says so.
    for teacher in [t for t, reads_texts in teachers.items() if reads_texts] or list(teachers)[:1]:
        require_tokenizer_of(snapshot, teacher, student.tokenizer)


def _require_signals(signals: Sequence[str], snapshot: Snapshot | None, who: str) -> None:
    if signals and snapshot is None:
        raise NotACacheError(
            f"{who} reads {', '.join(signals)} of a teacher; give train() the snapshot that teach() "
            "returned"
        )
    for name in signals:
        assert snapshot is not None
        try:
            snapshot.find(name)
        except UnknownSignalError as error:
            if same := [n for n in snapshot.signals if n.endswith(f"/{name}")]:
                raise UnknownSignalError(
                    f"{who} reads {name!r}, and several teachers give one: {listed(same)}. Name the "
                    f"one that is meant: Student(signals={{{name!r}: {same[0]!r}}})"
                ) from None
            layers = f"layers={{..., {name!r}: 'module.name'}}"
            raise UnknownSignalError(
                f"{who} reads {name!r}: {error}. To make it, run teach() with a teacher that gives it: "
                f"ModuleTeacher(..., {layers})"
            ) from None
