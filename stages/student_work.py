"""One worker's part of training: student after student, each with its weights and its record."""

from __future__ import annotations

import platform
import resource
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
    from stillroom.stages.student_run import StudentRun


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
    checkpoint_s: float = 60.0
    """Seconds between checkpoints; one is written at the end of an epoch."""

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
        """Train and evaluate, store the weights and then the record; return it.

        A student that cannot be trained gives `failed`, which says why.
        """
        import torch

        from stillroom.stages.fitting import TrainingError

        before = torch.get_num_threads()
        torch.set_num_threads(self._work.threads)
        try:
            # In the caller's own process its random numbers go on as if nothing had been trained.
            with torch.random.fork_rng(devices=[]):
                return self._trained(task)
        except TrainingError as error:
            # Others go on; `train` says it at the end.
            student = task.student
            return {"student": student.name, "seed": student.seed, "failed": str(error)}
        finally:
            torch.set_num_threads(before)

    def _trained(self, task: StudentTask) -> dict[str, Any]:
        from stillroom.stages.fitting import Fitting
        from stillroom.stages.streams import Streams
        from stillroom.stages.student_run import StudentRun

        student, work, evaluation = task.student, self._work, self._work.evaluation
        started = time.perf_counter()
        beside = {s: self._loader(student, student.beside[s]) for s in student.recipe.streams}
        main = self._loader(student, student.split)
        tables = {name: work.tables[name] for name in student.recipe.tables}
        streams = Streams(main, beside, seed=student.seed, names=student.signals)
        fitting = Fitting(student, streams, tables=tables)
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
        )
        run.run()
        _store(task.folder, fitting, run)
        rows = len(main.keys)
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
            "rows": rows,
            **({"asked_rows": work.asked[student.split]} if student.split in work.asked else {}),
            **({"beside": dict(student.beside)} if beside else {}),
            **({"answer": fitting.settings} if student.recipe.answer is not None else {}),
            **({"state": _plain(fitting.learning.state)} if fitting.learning.state else {}),
            "fit": asdict(student.fit),
            "parameters": sum(p.numel() for p in fitting.module.parameters()),
            "metrics": run.metrics,
            "curve": run.curve,
            "epochs": run.epochs,
            **({"best_epoch": run.best["epoch"]} if run.best else {}),
            **({"resumed_after_epoch": run.resumed} if run.resumed else {}),
            "fit_seconds": run.fit_seconds,
            "rows_per_second": rows * (run.epochs - run.resumed) / max(run.fit_seconds, 1e-9),
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": _peak_memory(),
            "machine": f"{platform.system()} {platform.machine()}, {work.threads} thread(s)",
        }
        write_json(task.folder / "record.json", record)
        run.finish()
        return record


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe's controller ended with: the next round of a student can begin there."""
    return {name: value.tolist() for name, value in state.items()}


def _peak_memory() -> int:
    """Of this process so far, and of its GPU where it has one."""
    import torch

    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + on_gpu


def _store(folder: Path, fitting: Fitting, run: StudentRun) -> None:
    """The student's weights, those of its last epoch where others are kept, their moving average, and
    the heads that inference needs."""
    from safetensors.torch import save

    learning = fitting.learning
    kept = [head.name for head in fitting.student.recipe.heads if head.kept]
    heads = {
        f"{name}.{key}": tensor
        for name in kept
        for key, tensor in learning.heads[name].state_dict().items()
    }
    files = {
        "heads": heads,
        "average": learning.average,
        "last": run.last,
        "weights": fitting.module.state_dict(),
    }
    for name, state in files.items():
        if state or name == "weights":
            cpu = {n: t.detach().cpu().clone().contiguous() for n, t in state.items()}
            write_atomic(folder / f"{name}.safetensors", [save(cpu)])
