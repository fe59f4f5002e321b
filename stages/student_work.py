"""One worker's part of training: student after student, each with its weights and its record."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.student import Student
from stillroom.stages.views.replay import Replay
from stillroom.storage.errors import StillroomError
from stillroom.storage.files import write_atomic, write_json
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot


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

    def _replay(self, student: Student) -> Replay | None:
        """The views that it trains on; found once for all students that read the same."""
        work, views, signals = self._work, student.fit.views, student.recipe.reads
        if not views or work.snapshot is None:
            return None
        wanted = (student.split, views, signals)
        if wanted not in self._replays:
            self._replays[wanted] = Replay(
                work.rows, work.snapshot, work.splits[student.split], views=views, signals=signals
            )
        return self._replays[wanted]

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
        from safetensors.torch import save

        from stillroom.stages.fitting import Fitting
        from stillroom.stages.loading import Loader

        student, work, evaluation = task.student, self._work, self._work.evaluation
        started = time.perf_counter()
        loader = Loader(
            work.rows,
            work.splits[student.split],
            student.columns,
            self._reader(student.recipe.reads),
            batch_size=student.fit.batch_size,
            seed=student.seed,
            replay=self._replay(student),
        )
        held_out = Loader(
            work.rows,
            work.splits[evaluation.split],
            tuple(dict.fromkeys((*student.inputs, *evaluation.columns))),
            self._reader(evaluation.signals),
            batch_size=1024,
        )
        fitting = Fitting(student, loader)
        curve: list[dict[str, Any]] = []
        metrics: dict[str, Any] = {}
        fit_seconds = 0.0
        for number in range(1, student.fit.epochs + 1):
            before = time.perf_counter()
            loss = fitting.epoch(number)
            fit_seconds += time.perf_counter() - before
            if number % student.fit.evaluate_every and number < student.fit.epochs:
                continue
            metrics = fitting.evaluate(held_out, evaluation)
            scalars = {n: v for n, v in metrics.items() if isinstance(v, float)}
            curve.append({"epoch": number, "loss": loss, **scalars})
        state = {
            n: t.detach().cpu().clone().contiguous() for n, t in fitting.module.state_dict().items()
        }
        write_atomic(task.folder / "weights.safetensors", [save(state)])
        record = {
            "student": student.name,
            "seed": student.seed,
            "digest": task.digest,
            "identity": dict(task.identity),
            "snapshot": work.snapshot.number if work.snapshot and student.recipe.reads else None,
            "recipe": student.recipe.name,
            "terms": [repr(term) for term in student.recipe.terms],
            "reads": list(student.recipe.reads),
            "split": student.split,
            "rows": len(loader.keys),
            **({"asked_rows": work.asked[student.split]} if student.split in work.asked else {}),
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
