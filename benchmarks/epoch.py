"""A student's epoch from the cache against the same student on tensors that lie in memory."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bare_epoch import BareFitting, bare_images, bare_tokens
from benchmarks.measuring import Line, Section, Timing, interleaved
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages import recipes
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.fit import Fit
from stillroom.stages.fitting import Fitting
from stillroom.stages.loading import Loader
from stillroom.stages.objectives.sparse import buckets, stored_buckets
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.function import FunctionTeacher
from stillroom.stages.teaching import teach
from stillroom.stages.term import term
from stillroom.storage import Cache, Ragged, Reader
from stillroom.workflows.digits_models import CNN_FEATURE, MLP_FEATURE, cnn, mlp

FEATURES = 2048
"""float16: 4 kB a row."""
GOAL = 1.03
TOKENS, TOP, CLASSES = 512, 50, 1_000
STUDENTS = {"cnn4": (partial(cnn, 4), CNN_FEATURE), "mlp32": (partial(mlp, 32), MLP_FEATURE)}
RECIPES = {
    "logits": recipes.find("kd", alpha=1.0),
    "logits and a feature of 4 kB": recipes.find("fitnet"),
}


def said(logits: NDArray[Any], feature: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A teacher that repeats two columns."""
    return {"logits": logits, "feature": feature}


def measure(work: Path, quick: bool) -> Section:
    """Two students and two recipes over rows of one shape; one over rows of tokens."""
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
            bare = bare_images(student, feature, torch.from_numpy(image), ready)
            _compare(section, f"{name}, {recipe_name}", Fitting(student, loader), bare, rounds)
    _ragged(section, work, *((48, 1) if quick else (256, 5)))
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


PARTS = ("indices", "values", "tail")


def top_losses(
    logits: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    tail: torch.Tensor,
    length: torch.Tensor,
) -> torch.Tensor:
    """(n,): the mean over a row's tokens of the divergence on the teacher's top classes and the rest."""
    wanted = stored_buckets(logits, indices, values, tail)
    each = (wanted.exp() * (wanted - buckets(logits, indices))).sum(-1)
    there = torch.arange(each.shape[1]) < length[:, None]
    return (each * there).sum(-1) / length


def said_of_tokens(number: NDArray[np.int64]) -> dict[str, Ragged]:
    """Logits for up to 512 tokens a row, at least 256."""
    rows = []
    for each in number:
        draw = np.random.default_rng(int(each))
        length = int(draw.integers(TOKENS // 2, TOKENS + 1))
        rows.append(draw.standard_normal((length, CLASSES), np.float32) * 3)
    return {"logits": Ragged.of(rows)}


def reader_of_tokens() -> torch.nn.Module:
    """Tokens (n, 512) -> logits (n, 512, classes), each from its own token alone."""
    return torch.nn.Sequential(torch.nn.Embedding(CLASSES, 32), torch.nn.Linear(32, CLASSES))


def _ragged(section: Section, work: Path, rows: int, rounds: int) -> None:
    names = tuple(f"teacher.logits.{part}" for part in (*PARTS, "length"))
    recipe = Recipe("top", (term(top_losses, "student.logits", *names),))
    fit = Fit(epochs=rounds + 1, batch_size=8)
    student = Student("tokens", reader_of_tokens, recipe, inputs=("token",), fit=fit)
    teacher = FunctionTeacher(
        *("said", said_of_tokens, ("number",), ("logits",), {"logits": f"topk({TOP})"})
    )
    snapshot = teach(
        Cache.at(work / "tokens.cache"),
        ArrayRows(np.arange(rows), number=np.arange(rows)),
        teacher,
        runner=LocalRunner(),
        batch_size=8,
        shard_rows=max(rows // 2, 1),
    )
    token = np.random.default_rng(1).integers(0, CLASSES, (rows, TOKENS))
    data = ArrayRows(np.arange(rows), token=token)
    reader = Reader(snapshot, recipe.reads)
    loader = Loader(
        data, data.keys, ("token",), reader, batch_size=fit.batch_size, parts=recipe.parts
    )
    whole = loader.batch(np.arange(rows))
    padded = {part: whole[f"teacher.logits.{part}"].clone() for part in PARTS}
    length = whole["teacher.logits.length"].clone()
    bare = bare_tokens(student, torch.from_numpy(token), padded, length, top_losses)
    what = f"{rows} rows of {TOKENS // 2} to {TOKENS} tokens, top {TOP} of {CLASSES:,} classes"
    _compare(
        section, f"{what}, batches of {fit.batch_size}", Fitting(student, loader), bare, rounds
    )
