"""Sixteen students of one architecture from one cache: together, one after another, on Ray, batched."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.batched import BatchedFitting
from benchmarks.measuring import Line, Section, Timing, Way, interleaved
from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import (
    ArrayRows,
    Evaluation,
    Fit,
    FunctionTeacher,
    Student,
    recipes,
    teach,
    train,
)
from stillroom.stages.fitting import Fitting
from stillroom.stages.loading import Loader
from stillroom.stages.streams import Streams
from stillroom.storage import Cache, Reader, Snapshot
from stillroom.workflows.digits_models import CNN_FEATURE, MLP_FEATURE, cnn, mlp

COUNT = 16
GOAL = 1.1
FEATURES = 2048
"""float16: 4 kB a row."""
KINDS = {
    "mlp32, logits": (partial(mlp, 32), MLP_FEATURE, "kd"),
    "mlp32, logits and a feature of 4 kB": (partial(mlp, 32), MLP_FEATURE, "fitnet"),
    "cnn4, logits": (partial(cnn, 4), CNN_FEATURE, "kd"),
}


def said(logits: Any, feature: Any) -> dict[str, Any]:
    """A teacher that repeats two columns."""
    return {"logits": logits, "feature": feature}


def nothing(tensors: Any) -> dict[str, Any]:
    """What is measured is training."""
    return {}


def measure(work: Path, quick: bool) -> Section:
    """Every kind of student in every way of training sixteen of them."""
    rows, epochs, rounds = (1_000, 1, 1) if quick else (5_000, 1, 3)
    cores = len(os.sched_getaffinity(0))
    section = Section(
        "Sixteen students from one cache",
        f"{COUNT} seeds of one student with one order of batches (`Student(order=0)`), {rows:,} rows in "
        f"batches of 100, {epochs} epoch, one thread a process, nothing evaluated. Against is {COUNT} "
        f"times the arithmetic of one student, divided by the {cores} cores where the way uses "
        "Ray: a plain loop over batches that lie in memory, so no gather and no process to start. Ways "
        "on Ray have their workers running and torch imported.",
    )
    data, snapshot = _taught(work, rows)
    torch.set_num_threads(1)
    with ExitStack() as stack:
        ray = stack.enter_context(RayRunner(workers=cores))
        for what, (build, feature, method) in KINDS.items():
            recipe = recipes.find(method, **({"alpha": 1.0} if method == "kd" else {}))
            fit = Fit(epochs=epochs, evaluate_every=epochs)
            layers = {"logits": "", "feature": feature}
            students = [
                Student("s", build, recipe, layers=layers, fit=fit, seed=seed, order=0)
                for seed in range(COUNT)
            ]
            _compare(section, what, students, data, snapshot, ray, work, rounds)
    section.notes.append(
        "Batched is `torch.func.vmap` over stacked parameters with one AdamW over the stack and the same "
        "gathered batches, without recipes, schedules or checkpoints (`benchmarks/batched.py`); only for "
        "students without batch norm."
    )
    return section


def _taught(work: Path, rows: int) -> tuple[ArrayRows, Snapshot]:
    rng = np.random.default_rng(0)
    columns = {
        "logits": rng.normal(0, 3, (rows, 10)).astype(np.float16),
        "feature": rng.random((rows, FEATURES), np.float32).astype(np.float16),
    }
    names = tuple(columns)
    teacher = FunctionTeacher("said", said, names, names, dict.fromkeys(names, "float16"))
    taught = ArrayRows(np.arange(rows), **columns)
    snapshot = teach(Cache.at(work / "students.cache"), taught, teacher, runner=LocalRunner())
    return ArrayRows(np.arange(rows), image=rng.random((rows, 1, 28, 28), np.float32)), snapshot


def _compare(
    section: Section,
    what: str,
    students: Sequence[Student],
    data: ArrayRows,
    snapshot: Snapshot,
    ray: RayRunner,
    work: Path,
    rounds: int,
) -> None:
    cores, numbers = len(os.sched_getaffinity(0)), itertools.count()
    splits = {"train": data.keys, "test": data.keys[:100]}

    def trained(runner: Any, together: bool) -> Way:
        def way() -> float:
            started = time.perf_counter()
            train(
                students,
                *(data, snapshot),
                splits=splits,
                evaluation=Evaluation("test", nothing, ()),
                folder=work / f"{next(numbers)}",
                runner=runner,
                together=together,
            )
            return time.perf_counter() - started

        return way

    ways: dict[str, Way] = {
        "together, one process": trained(LocalRunner(), True),
        "in sequence, one process": trained(LocalRunner(), False),
        f"together, {cores} Ray workers": trained(ray, True),
        f"{COUNT} Ray tasks": trained(ray, False),
        "arithmetic": partial(_arithmetic, students[0], data, snapshot),
    }
    if BatchedFitting.takes(students):
        ways["batched, one process"] = partial(_batched, students, data, snapshot)
    times = interleaved(ways, rounds, warm=rounds > 1)
    alone = Timing(tuple(seconds * COUNT for seconds in times.pop("arithmetic").seconds))
    for way, ours in times.items():
        other = alone.per(cores if "Ray" in way else 1)
        goal = GOAL if way.startswith("together") else None
        section.lines.append(
            Line(f"{what}: {way}", f"{COUNT} times one's arithmetic", ours, other, goal)
        )


def _streams(student: Student, data: ArrayRows, snapshot: Snapshot) -> Streams:
    reader = Reader(snapshot, student.reads)
    size, seed = student.fit.batch_size, student.order_seed
    loader = Loader(data, data.keys, student.columns, reader, batch_size=size, seed=seed)
    return Streams(loader, seed=seed)


def _arithmetic(student: Student, data: ArrayRows, snapshot: Snapshot) -> float:
    """One student's steps on batches that were gathered before."""
    streams = _streams(student, data, snapshot)
    fitting, epochs = Fitting(student, streams), range(1, student.fit.epochs + 1)
    gathered = [list(streams.epoch(number)) for number in epochs]
    started = time.perf_counter()
    for number, batches in zip(epochs, gathered, strict=True):
        fitting.begin_epoch()
        for chosen, loaded in batches:
            fitting.take(loaded, number, chosen)
        fitting.end_epoch()
    return time.perf_counter() - started


def _batched(students: Sequence[Student], data: ArrayRows, snapshot: Snapshot) -> float:
    started = time.perf_counter()
    first = students[0]
    fitting = BatchedFitting(students, (FEATURES,))
    streams = _streams(first, data, snapshot)
    for number in range(1, first.fit.epochs + 1):
        for _, loaded in streams.epoch(number):
            fitting.take(loaded)
    return time.perf_counter() - started
