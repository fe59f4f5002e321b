"""A student's epoch from the cache against the same student on tensors that lie in memory."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bare_epoch import BareFitting
from benchmarks.measuring import Line, Section, Timing, interleaved
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages import recipes
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.fit import Fit
from stillroom.stages.fitting import Fitting
from stillroom.stages.loading import Loader
from stillroom.stages.student import Student
from stillroom.stages.teachers.function import FunctionTeacher
from stillroom.stages.teaching import teach
from stillroom.storage import Cache, Reader
from stillroom.workflows.digits_models import CNN_FEATURE, MLP_FEATURE, cnn, mlp

FEATURES = 2048
"""float16: 4 kB a row."""
GOAL = 1.03
STUDENTS = {"cnn4": (partial(cnn, 4), CNN_FEATURE), "mlp32": (partial(mlp, 32), MLP_FEATURE)}
RECIPES = {
    "logits": recipes.find("kd", alpha=1.0),
    "logits and a feature of 4 kB": recipes.find("fitnet"),
}


def said(logits: NDArray[Any], feature: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A teacher that repeats two columns."""
    return {"logits": logits, "feature": feature}


def measure(work: Path, quick: bool) -> Section:
    """Two students, two recipes."""
    rows, rounds = (4_000, 2) if quick else (10_000, 7)
    fit = Fit(epochs=rounds + 1)
    section = Section(
        "A student's epoch",
        f"{rows:,} rows in shuffled batches of {fit.batch_size}, AdamW, 1 thread. From the cache: "
        "`Fitting` over `Loader`, teacher signals stored as float16 in two segments. In memory: a "
        "plain torch loop over tensors, teacher signals decoded to float32 beforehand; same seed, "
        "order, losses and optimiser. Every epoch's mean loss is the same number on both sides, bit "
        "by bit (checked).",
    )
    rng = np.random.default_rng(0)
    image = rng.random((rows, 1, 28, 28), np.float32)
    columns: dict[str, NDArray[Any]] = {
        "logits": rng.normal(0, 3, (rows, 10)).astype(np.float16),
        "feature": rng.random((rows, FEATURES), np.float32).astype(np.float16),
    }
    cache = Cache.at(work / "epoch.cache")
    names = tuple(columns)
    teacher = FunctionTeacher("said", said, names, names, dict.fromkeys(names, "float16"))
    for count in (rows // 2, rows):
        taught = {name: column[:count] for name, column in columns.items()}
        teach(cache, ArrayRows(np.arange(count), **taught), teacher, runner=LocalRunner())
    data = ArrayRows(np.arange(rows), image=image)
    ready = {n: torch.from_numpy(c.astype(np.float32)) for n, c in columns.items()}
    torch.set_num_threads(1)
    for recipe_name, recipe in RECIPES.items():
        for name, (build, feature) in STUDENTS.items():
            layers = {"logits": "", "feature": feature}
            student = Student(name, build, recipe, layers=layers, fit=fit)
            reader = Reader(cache.snapshot(), recipe.reads)
            loader = Loader(data, data.keys, ("image",), reader, batch_size=fit.batch_size)
            bare = BareFitting(student, feature, torch.from_numpy(image), ready)
            _compare(section, f"{name}, {recipe_name}", Fitting(student, loader), bare, rounds)
    section.notes.append(
        "The smaller the student, the more of a step is what surrounds it. Decoding is part of it: "
        "the plain loop's teacher tensors are float32 already and take twice the memory that the "
        "cache takes on disk."
    )
    return section


def _compare(section: Section, what: str, ours: Fitting, bare: BareFitting, rounds: int) -> None:
    losses: dict[str, list[float]] = {"ours": [], "bare": []}

    def epoch(name: str, fitting: Fitting | BareFitting) -> float:
        number = len(losses[name]) + 1
        started = time.perf_counter()
        loss = fitting.epoch(number)
        seconds = time.perf_counter() - started
        losses[name].append(loss)
        return seconds

    times: dict[str, Timing] = interleaved(
        {"ours": lambda: epoch("ours", ours), "bare": lambda: epoch("bare", bare)}, rounds
    )
    assert losses["ours"] == losses["bare"], (what, losses)
    section.lines.append(Line(what, "tensors in memory", times["ours"], times["bare"], GOAL))
