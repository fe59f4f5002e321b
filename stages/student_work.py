"""One worker's part of training: what a group of students reads, each one's run, and what it leaves."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.student import Record, Student
from stillroom.stages.views.replay import Replay
from stillroom.storage.errors import StillroomError, listed
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from stillroom.stages.loading import Loader
    from stillroom.stages.streams import Streams
    from stillroom.stages.student_run import StudentRun

CHECKPOINT = "checkpoint.safetensors"
"""Where a student's training stands, in its folder until it has a record."""


@dataclass(frozen=True)
class StudentTask:
    """A student to train and the folder for what it leaves."""

    student: Student
    identity: Mapping[str, Any]
    digest: str
    folder: Path

    def __str__(self) -> str:
        """For messages."""
        return f"student {self.student.name!r}, seed {self.student.seed}"

    @property
    def is_done(self) -> bool:
        """Whether its record and its weights are there."""
        return all((self.folder / file).exists() for file in ("record.json", "weights.safetensors"))


@dataclass(frozen=True)
class Group:
    """Students that one process trains in lockstep, as their batches are the same."""

    tasks: tuple[StudentTask, ...]

    def __str__(self) -> str:
        """For messages."""
        named = listed([f"{t.student.name}, seed {t.student.seed}" for t in self.tasks])
        return str(self.tasks[0]) if len(self.tasks) == 1 else f"the students {named}"


@dataclass(frozen=True)
class StudentWork:
    """Builds a worker; small enough to be sent to one."""

    rows: Rows
    snapshot: Snapshot | None
    splits: Mapping[str, pa.Array]
    evaluation: Evaluation
    threads: int
    asked: Mapping[str, int] = field(default_factory=dict)
    """Rows of each split before those were left out that are still to be taught."""
    tables: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays about no row, by the name that recipes have for them."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints; one is written at the end of an epoch."""
    until: int = 0
    """Students pause after this epoch, in a checkpoint and without a record; 0: they go to their end."""
    tensorboard: Path | None = None
    """Where each student's log is written as an event file too, in a folder `NAME-SEED` of it."""

    def __call__(self) -> StudentWorker:
        """Nothing is loaded before the first student."""
        return StudentWorker(self)


class StudentWorker:
    """Trains students; the mapped cache is shared by all of them in this process."""

    def __init__(self, work: StudentWork) -> None:
        """Nothing is read yet."""
        self._work = work
        self._readers: dict[tuple[str, ...], Reader] = {}
        self._replays: dict[tuple[Any, ...], Replay] = {}
        self._loaders: dict[tuple[Any, ...], Loader] = {}

    def _reader(self, signals: tuple[str, ...]) -> Reader | None:
        if not signals:
            return None
        if self._work.snapshot is None:
            raise StillroomError(
                f"signals {', '.join(signals)} are read, but no snapshot was given"
            )
        if signals not in self._readers:
            self._readers[signals] = Reader(self._work.snapshot, signals)
        return self._readers[signals]

    def _replay(self, student: Student, split: str) -> Replay | None:
        """The views that it trains on; found once for all students that read the same."""
        work, views, signals = self._work, student.fit.views, student.reads
        if not views or work.snapshot is None:
            return None
        wanted = (split, views, signals)
        if wanted not in self._replays:
            self._replays[wanted] = Replay(
                work.rows, work.snapshot, work.splits[split], views=views, signals=signals
            )
        return self._replays[wanted]

    def _loader(self, student: Student, split: str, columns: tuple[str, ...]) -> Loader:
        """What it and those that share its batches read of a split while training."""
        from stillroom.stages.loading import Loader

        cached, fit = student.signals, student.fit
        parts = tuple(cached.get(name, name) for name in student.recipe.parts)
        wanted = (
            split,
            columns,
            student.reads,
            parts,
            fit.batch_size,
            fit.views,
            student.order_seed,
        )
        if wanted not in self._loaders:
            self._loaders[wanted] = Loader(
                self._work.rows,
                self._work.splits[split],
                columns,
                self._reader(student.reads),
                batch_size=fit.batch_size,
                seed=student.order_seed,
                replay=self._replay(student, split),
                parts=parts,
            )
        return self._loaders[wanted]

    def _held_out(self, student: Student, split: str, evaluation: Evaluation) -> Loader:
        """What is read of a split on which it is measured or tuned."""
        from stillroom.stages.loading import Loader

        answer = student.recipe.answer
        asked = () if answer is None else answer.columns
        columns = tuple(dict.fromkeys((*student.inputs, *evaluation.columns, *asked)))
        if (wanted := (split, columns)) not in self._loaders:
            self._loaders[wanted] = Loader(
                self._work.rows,
                self._work.splits[split],
                columns,
                self._reader(evaluation.signals),
                batch_size=1024,
            )
        return self._loaders[wanted]

    def __call__(self, item: StudentTask | Group) -> Any:
        """Train and evaluate; of each student its weights and then its record are stored. The record of
        a student, or those of a group's in the order in which they ended.

        A student that cannot be trained gives `failed`, which says why; one that pauses gives the
        epoch as `paused`, and its `curve`.
        """
        import torch

        from stillroom.stages.lockstep import train_in_lockstep

        group = item if isinstance(item, Group) else Group((item,))
        there = [Record.read(task.folder) for task in group.tasks if task.is_done]
        said = [dict(record.content) for record in there]
        before = torch.get_num_threads()
        torch.set_num_threads(self._work.threads)
        try:
            # In the caller's own process its random numbers go on as if nothing had been trained.
            with torch.random.fork_rng(devices=[]):
                if left := [task for task in group.tasks if not task.is_done]:
                    streams = self._streams([task.student for task in left])
                    said += train_in_lockstep(self, left, streams)
        finally:
            torch.set_num_threads(before)
        return said if isinstance(item, Group) else said[0]

    def _streams(self, students: Sequence[Student]) -> Streams:
        """The batches of students that share them."""
        from stillroom.stages.streams import Streams

        first = students[0]
        columns = tuple(dict.fromkeys(name for s in students for name in s.columns))
        beside = {s: self._loader(first, first.beside[s], columns) for s in first.recipe.streams}
        main = self._loader(first, first.split, columns)
        return Streams(main, beside, seed=first.order_seed)

    def begin(self, task: StudentTask, streams: Streams) -> StudentRun:
        """A student before its first epoch, or where its checkpoint left it."""
        from stillroom.stages.fitting import Fitting
        from stillroom.stages.student_run import StudentRun

        student, work, evaluation = task.student, self._work, self._work.evaluation
        tables = {name: work.tables[name] for name in student.recipe.tables}
        fitting = Fitting(student, streams.named(student.signals), tables=tables)
        asked = student.fit.watch or student.recipe.answer is not None
        run = StudentRun(
            fitting,
            evaluation,
            self._held_out(student, evaluation.split, evaluation),
            self._held_out(student, student.validation, evaluation)
            if student.validation and asked
            else None,
            folder=task.folder,
            digest=task.digest,
            checkpoint_s=work.checkpoint_s,
            until=work.until,
            board=None
            if work.tensorboard is None
            else work.tensorboard / f"{student.name}-{student.seed}",
        )
        run.begin()
        return run

    def end(
        self, task: StudentTask, run: StudentRun, seconds: float, together: int
    ) -> dict[str, Any]:
        """Store what a student that has ended leaves, and say it; or that it pauses."""
        from stillroom.stages.student_record import store_student

        run.end()
        student, work = task.student, self._work
        if run.paused:
            return {
                "student": student.name,
                "seed": student.seed,
                "digest": task.digest,
                "paused": run.epochs,
                "curve": run.curve,
                "fit_seconds": run.fit_seconds,
            }
        rows = len(work.splits[student.split])
        more = {
            "snapshot": work.snapshot.number if work.snapshot and student.reads else None,
            "rows": rows,
            **({"asked_rows": work.asked[student.split]} if student.split in work.asked else {}),
            **({"together": together} if together > 1 else {}),
            "rows_per_second": rows * run.epochs / max(run.fit_seconds, 1e-9),
            "seconds": seconds + run.spent,
            "machine": f"{platform.system()} {platform.machine()}, {work.threads} thread(s)",
        }
        return store_student(task, run, more)
