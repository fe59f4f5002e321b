"""Students from the cache, teaching included, against as many runs with the teacher in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import Line, Section, Table, Timing
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages import recipes
from stillroom.stages.data.rows import ArrayRows, find_rows
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.fit import Fit
from stillroom.stages.fitting import Fitting
from stillroom.stages.loading import Loader, Tensors
from stillroom.stages.plans.estimating import break_even
from stillroom.stages.plans.probing import probe
from stillroom.stages.student import Record, Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teachers.weights import load_state
from stillroom.stages.teaching import teach
from stillroom.stages.training import train
from stillroom.storage import Cache, Snapshot
from stillroom.storage.keys import as_keys
from stillroom.workflows.digits_data import digits_rows, digits_splits
from stillroom.workflows.digits_models import cnn
from stillroom.workflows.intervals import interval
from stillroom.workflows.students import ledger

TEACHER, STUDENT = 32, 4
"""Widths: 97,570 parameters and 2,210."""
COUNTS = (1, 2, 4, 8, 16)
TEST = Evaluation("test", classification)
OUTCOMES = (
    *("final metrics", "accuracy cached", "online", "difference (95%)", "NLL cached", "online"),
    *("same weights, bit for bit", "largest difference of a weight"),
)
COSTS = (
    *("cost", "teaching once", "by the ledger", "a cached run", "an online run"),
    "the teacher in a run: measured",
    *("by the ledger", "by a probe", "once ÷ saved by a run", "N* measured", "N* by the ledger"),
)


class Online(Loader):
    """The loader's batches with the teacher's answers computed when a batch is made."""

    def __init__(self, teacher: torch.nn.Module, *given: Any, **how: Any) -> None:
        """Everything else as the loader has it."""
        super().__init__(*given, **how)
        self._teacher = teacher.eval()

    def batch(self, chosen: NDArray[np.int64], view: int = 1) -> Tensors:
        """The rows, and what the teacher says about them now."""
        tensors = super().batch(chosen, view)
        with torch.inference_mode():
            logits = self._teacher(tensors["row.image"])
        return {**tensors, "teacher.logits": logits.clone()}


@dataclass
class Runs:
    """What the runs of one setting took, by seed, and what came of them."""

    cached: list[float] = field(default_factory=list)
    online: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Of the online runs."""
    apart: list[float] = field(default_factory=list)
    """The largest difference of two weights of a seed; 0 where they are the same bits."""


@dataclass(frozen=True)
class Bench:
    """The data, the teacher and its cache."""

    rows: ArrayRows
    splits: dict[str, list[str]]
    teacher: ModuleTeacher
    snapshot: Snapshot
    teaching: Timing

    def student(self, seed: int, epochs: int) -> Student:
        """The same for both ways; it is measured after its last epoch."""
        return Student(
            f"cnn{STUDENT}",
            partial(cnn, STUDENT),
            recipes.find("kd", alpha=1.0),
            fit=Fit(epochs=epochs, evaluate_every=epochs),
            seed=seed,
        )

    def cached(self, student: Student, folder: Path) -> tuple[float, Record]:
        """`train`, from the call to the record on disk."""
        started = perf_counter()
        (record,) = train(
            *([student], self.rows, self.snapshot),
            splits=self.splits,
            evaluation=TEST,
            folder=folder,
            runner=LocalRunner(),
        )
        return perf_counter() - started, record

    def online(self, student: Student) -> tuple[float, dict[str, Any], dict[str, torch.Tensor]]:
        """The same loop with the teacher in it; nothing is stored."""
        weights = self.teacher.weights
        assert weights is not None
        started = perf_counter()
        module = cnn(TEACHER)
        module.load_state_dict(load_state(weights))
        given = {"batch_size": student.fit.batch_size, "seed": student.seed}
        loader = Online(module, self.rows, self.splits["train"], student.columns, None, **given)
        with torch.random.fork_rng(devices=[]):
            fitting = Fitting(student, loader)
            for epoch in range(student.fit.epochs):
                fitting.epoch(epoch + 1)
        columns = (*student.inputs, *TEST.columns)
        held_out = Loader(self.rows, self.splits["test"], columns, None, batch_size=1024)
        metrics = fitting.evaluate(held_out, TEST)
        return perf_counter() - started, metrics, dict(fitting.module.state_dict())


def measure(work: Path, quick: bool) -> Section:
    """Runs of several epochs, and runs of one."""
    torch.set_num_threads(1)
    count, long, rounds = (2, 2, 1) if quick else (max(COUNTS), 4, 3)
    bench = _bench(work, quick, rounds)
    trained, held = (len(bench.splits[name]) for name in ("train", "test"))
    section = Section(
        "Online against cached",
        f"A CNN of width {STUDENT} learns {trained:,} of the demo's digits from the logits of a CNN of "
        f"width {TEACHER} and is judged on {held:,} others; 1 thread. Cached: the teacher answers once "
        "(`teach`, the median of "
        f"{rounds}), stored as float32, then `train` for each seed, with its planning, weights and "
        "record. Online: the same `Fitting` over the same batches in the same order, the teacher's "
        "forward pass in every batch, nothing stored. Seeds take turns; the time of N students is of "
        "all groups of N seeds. Training the teacher is counted on neither side.",
    )
    outcomes: list[tuple[str, ...]] = []
    costs: list[tuple[str, ...]] = []
    for epochs in (long, 1):
        runs = _runs(bench, work / f"{epochs}", epochs, count)
        what = f"{epochs} epoch{'s' * (epochs > 1)}"
        for number in (n for n in COUNTS if n <= count):
            once = bench.teaching.median
            ours = Timing(tuple(once + s for s in _groups(runs.cached, number)))
            other = Timing(tuple(_groups(runs.online, number)))
            title = f"{number} student{'s' * (number > 1)} of {what}, teaching included"
            section.lines.append(Line(title, f"{number} online", ours, other))
        outcomes.append((what, *_outcome(runs)))
        costs.append((what, *_costs(bench, runs, epochs)))
    section.tables += [Table(OUTCOMES, tuple(outcomes)), Table(COSTS, tuple(costs))]
    section.notes.append(
        "The teacher in a run, measured: an online run less a cached one. By the ledger: as `stillroom "
        "students --cache` has it, the seconds inside the teacher that its segments note, by the rows "
        "that a run goes through. By a probe: a live teacher on a sample of the rows, in the students' "
        "batch size. N* is the first number of runs for which the cache is the cheaper way. The ledger's "
        "teaching is that of the shards and of loading the teacher; a run also asks some rows twice, to "
        "see that the teacher is steady, hashes rows and seals: constant, so much of a small run."
    )
    return section


def _bench(work: Path, quick: bool, rounds: int) -> Bench:
    rows, splits = digits_rows(), digits_splits()
    if quick:
        splits = {"train": splits["train"][:1000], "test": splits["test"][:500]}
    pupil = Student(
        f"cnn{TEACHER}",
        partial(cnn, TEACHER),
        recipes.find("labels"),
        fit=Fit(epochs=1 if quick else 4, evaluate_every=4),
    )
    (record,) = train(
        *([pupil], rows, None),
        splits=splits,
        evaluation=TEST,
        folder=work / "teacher",
        runner=LocalRunner(),
    )
    teacher = ModuleTeacher(pupil.name, partial(cnn, TEACHER), weights=record.weights)
    keys = as_keys(splits["train"])
    taught = ArrayRows(keys, **rows.read(find_rows(rows, keys), ("image",)))
    seconds = []
    for number in range(rounds):
        started = perf_counter()
        cache = Cache.at(work / f"{number}.cache")
        snapshot = teach(cache, taught, teacher, runner=LocalRunner())
        seconds.append(perf_counter() - started)
    return Bench(rows, splits, teacher, snapshot, Timing(tuple(seconds)))


def _runs(bench: Bench, folder: Path, epochs: int, count: int) -> Runs:
    runs = Runs()
    bench.cached(bench.student(count, 1), folder / "warm")
    for seed in range(count):
        student = bench.student(seed, epochs)
        ways = ["cached", "online"] if seed % 2 else ["online", "cached"]
        for way in ways:
            if way == "cached":
                seconds, record = bench.cached(student, folder / "students")
                runs.cached.append(seconds)
                runs.records.append(record)
            else:
                seconds, metrics, weights = bench.online(student)
                runs.online.append(seconds)
                runs.metrics.append(metrics)
        stored = load_state(runs.records[-1].weights)
        apart = [float((stored[n].double() - t.double()).abs().max()) for n, t in weights.items()]
        runs.apart.append(max(apart))
    return runs


def _groups(seconds: Sequence[float], size: int) -> list[float]:
    """The sums of all whole groups of so many neighbours."""
    return [sum(seconds[at : at + size]) for at in range(0, len(seconds) - size + 1, size)]


def _outcome(runs: Runs) -> tuple[str, ...]:
    ours = [record.metrics for record in runs.records]
    difference = interval(
        [a["accuracy"] - b["accuracy"] for a, b in zip(ours, runs.metrics, strict=True)]
    )
    assert difference["low"] <= 0 <= difference["high"], difference
    spelled = f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
    same = sum(apart == 0 for apart in runs.apart)
    each = [
        [f"{mean(m[name] for m in found):.4f}" for found in (ours, runs.metrics)]
        for name in ("accuracy", "nll")
    ]
    return (*each[0], spelled, *each[1], f"{same} of {len(runs.apart)}", f"{max(runs.apart):.2g}")


def _costs(bench: Bench, runs: Runs, epochs: int) -> tuple[str, ...]:
    once, cached, online = bench.teaching.median, median(runs.cached), median(runs.online)
    cache = Cache(bench.snapshot.cache)
    told = ledger(runs.records, cache)
    fit = runs.records[0].content["fit"]
    keys = as_keys(bench.splits["train"])
    places = np.sort(find_rows(bench.rows, keys))
    seen = probe(
        bench.rows, bench.teacher, places, bench.teacher.asks(), batch_size=int(fit["batch_size"])
    )
    batches = [batch for block in seen.blocks for batch in block.batches]
    live = sum(b.teacher for b in batches) / sum(b.rows for b in batches) * len(keys) * epochs
    noted = told["online_teacher_seconds"] / len(runs.records)
    saved = online - cached
    share = f"{once / saved:.2f}" if saved > 0 else "never"
    seconds = (once, told["teaching_seconds"], cached, online, saved, noted, live)
    stars = (break_even(once, online, cached), told["students"])
    return (*(f"{s:.2f} s" for s in seconds), share, *map(str, stars))
