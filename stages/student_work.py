"""One worker's part of training: student after student, each with its weights and its record."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.student import Student
from stillroom.stages.views.replay import Replay
from stillroom.storage.errors import StillroomError
from stillroom.storage.files import write_atomic, write_json
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from stillroom.stages.fitting import Fitting
    from stillroom.stages.loading import Loader


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

    def _loader(self, student: Student, split: str) -> Loader:
        """What it reads of a split while training."""
        from stillroom.stages.loading import Loader

        cached = student.signals
        return Loader(
            self._work.rows,
            self._work.splits[split],
            student.columns,
            self._reader(student.reads),
            batch_size=student.fit.batch_size,
            seed=student.seed,
            replay=self._replay(student, split),
            parts=[cached.get(name, name) for name in student.recipe.parts],
        )

    def _held_out(self, student: Student, split: str, evaluation: Evaluation) -> Loader:
        """What is read of a split on which it is measured or tuned."""
        from stillroom.stages.loading import Loader

        answer = student.recipe.answer
        asked = () if answer is None else answer.columns
        return Loader(
            self._work.rows,
            self._work.splits[split],
            tuple(dict.fromkeys((*student.inputs, *evaluation.columns, *asked))),
            self._reader(evaluation.signals),
            batch_size=1024,
        )

    def __call__(self, task: StudentTask) -> dict[str, Any]:
        """Train and evaluate, store the weights and then the record; return it."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self._work.threads)
        try:
            # In the caller's own process its random numbers go on as if nothing had been trained.
            with torch.random.fork_rng(devices=[]):
                return self._trained(task)
        finally:
            torch.set_num_threads(before)

    def _trained(self, task: StudentTask) -> dict[str, Any]:
        from stillroom.stages.fitting import Fitting
        from stillroom.stages.streams import Streams

        student, work, evaluation = task.student, self._work, self._work.evaluation
        started = time.perf_counter()
        beside = {s: self._loader(student, student.beside[s]) for s in student.recipe.streams}
        main = self._loader(student, student.split)
        held_out = self._held_out(student, evaluation.split, evaluation)
        tables = {name: work.tables[name] for name in student.recipe.tables}
        streams = Streams(main, beside, seed=student.seed, names=student.signals)
        fitting = Fitting(student, streams, tables=tables)
        curve: list[dict[str, Any]] = []
        metrics: dict[str, Any] = {}
        fit_seconds = 0.0
        for number in range(1, student.fit.epochs + 1):
            before = time.perf_counter()
            loss = fitting.epoch(number)
            fit_seconds += time.perf_counter() - before
            if number % student.fit.evaluate_every and number < student.fit.epochs:
                continue
            if student.validation and student.recipe.answer is not None:
                fitting.tune(self._held_out(student, student.validation, evaluation))
            metrics = fitting.evaluate(held_out, evaluation)
            scalars = {n: v for n, v in metrics.items() if isinstance(v, float)}
            curve.append({"epoch": number, "loss": loss, **scalars})
        _store(task.folder, fitting)
        record = {
            "student": student.name,
            "seed": student.seed,
            "digest": task.digest,
            "identity": dict(task.identity),
            "snapshot": work.snapshot.number if work.snapshot and student.reads else None,
            "recipe": student.recipe.name,
            "terms": [repr(term) for term in student.recipe.terms],
            "reads": list(student.reads),
            "split": student.split,
            "rows": len(main.keys),
            **({"asked_rows": work.asked[student.split]} if student.split in work.asked else {}),
            **({"beside": dict(student.beside)} if beside else {}),
            **({"answer": fitting.settings} if student.recipe.answer is not None else {}),
            "fit": asdict(student.fit),
            "parameters": sum(p.numel() for p in fitting.module.parameters()),
            "metrics": metrics,
            "curve": curve,
            "fit_seconds": fit_seconds,
            "seconds": time.perf_counter() - started,
            "machine": f"{platform.system()} {platform.machine()}, {work.threads} thread(s)",
        }
        write_json(task.folder / "record.json", record)
        return record


def _store(folder: Path, fitting: Fitting) -> None:
    """The student's weights, their moving average, and the heads that inference needs."""
    from safetensors.torch import save

    learning = fitting.learning
    kept = [head.name for head in fitting.student.recipe.heads if head.kept]
    heads = {
        f"{name}.{key}": tensor
        for name in kept
        for key, tensor in learning.heads[name].state_dict().items()
    }
    files = {"heads": heads, "average": learning.average, "weights": fitting.module.state_dict()}
    for name, state in files.items():
        if state or name == "weights":
            cpu = {n: t.detach().cpu().clone().contiguous() for n, t in state.items()}
            write_atomic(folder / f"{name}.safetensors", [save(cpu)])
