"""Self-training of detectors for proofs: few labelled signals, many without, rounds of their average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.stages.data.rows import find_rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.boxes import iou
from stillroom.stages.proving.detection import (
    DetectorTeacher,
    average_precision,
    candidates,
    detector,
    rank_correlation,
)
from stillroom.stages.proving.pulses import pulse_rows, pulses
from stillroom.stages.recipe import Recipe
from stillroom.stages.rounds import Round, train_rounds
from stillroom.stages.student import Student
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from stillroom.stages.proving.bench import Bench

MEASURED = Evaluation("test", average_precision, columns=("boxes", "classes", "count"))
LABELLED, UNLABELLED, TEST = 20, 300, 200
"""Signals of each kind."""


def in_rounds(bench: Bench, burn_in: Recipe, arms: Mapping[str, Recipe]) -> dict[str, list[Round]]:
    """Each arm's rounds, its last student's `ap50` and `ap75` noted.

    All arms start from one detector that learned from the labelled signals by `burn_in`, as
    `burn-in`. Then each goes three rounds: the moving average of its weights answers for a weak view
    of every signal, and it learns from strong views, of all unlabelled signals three times and of as
    many labelled ones beside (the stream `labelled`). Every arm makes the same steps on the same views.
    """
    sizes = (LABELLED, bench.size(UNLABELLED, 24), bench.size(TEST, 12))
    kinds = np.repeat(["labelled", "unlabelled", "test"], sizes)
    drawn = pulses(len(kinds), np.random.default_rng(bench.seed))
    views = partial(pulse_rows, drawn, kinds, bench.seed)
    keys = views(0).keys.to_pylist()
    fit = Fit(
        epochs=(epochs := bench.size(3, 1)),
        batch_size=16,
        learning_rate=5e-3,
        schedule="constant",
        evaluate_every=epochs,
        average=0.98,
    )
    burnt = replace(
        fit,
        epochs=bench.size(80, 1),
        learning_rate=1e-2,
        schedule="onecycle",
        evaluate_every=80,
    )
    student = Student(
        "burn-in",
        detector,
        burn_in,
        inputs=("strong",),
        layers={"scores": ":scores", "boxes": ":boxes"},
        split="labelled",
        fit=burnt,
        seed=bench.seed,
    )
    shared: dict[str, Any] = {
        "rows": lambda number, weights: views(number),
        "splits": {kind: [k for k in keys if k.startswith(kind)] for kind in np.unique(kinds)},
        "evaluation": MEASURED,
        "folder": bench.folder / "rounds",
        "runner": bench.runner,
        "tables": {"candidates": candidates()},
    }
    (begun,) = train_rounds(student, 1, teachers=_nobody, **shared)
    bench.note("burn-in", **begun.record.metrics)
    found = {}
    for arm, recipe in arms.items():
        learner = replace(
            student,
            name=arm.replace(" ", "-"),
            recipe=recipe,
            split="unlabelled",
            beside={"labelled": "labelled"},
            fit=fit,
        )
        count, start = bench.size(3, 1), begun.record.weights
        asked = _average if recipe.reads else _nobody
        found[arm] = train_rounds(learner, count, teachers=asked, start=start, **shared)
        bench.note(arm, **found[arm][-1].record.metrics)
    return found


def _nobody(number: int, weights: Path | None) -> list[DetectorTeacher]:
    return []


def _average(number: int, weights: Path | None) -> list[DetectorTeacher]:
    assert weights is not None
    return [DetectorTeacher("average", detector, weights, "weak")]


def note_what_tells_overlap(bench: Bench, first: Round) -> None:
    """Of a round's teacher, over its boxes in test signals: the rank correlation of their overlap with
    the truth with their score, and with the negative of what jitter does to them; and the share of them
    that the paper's thresholds keep."""
    import torch

    assert first.snapshot is not None
    keys = [key for key in first.rows.keys.to_pylist() if key.startswith("test")]
    said: Any = Reader(first.snapshot, ["boxes"]).gather(keys)["boxes"]
    places = find_rows(first.rows, as_keys(keys))
    truth = torch.from_numpy(np.asarray(first.rows.read(places, ["boxes"])["boxes"]))
    owner = np.repeat(np.arange(len(keys)), np.diff(said.offsets))
    boxes = torch.from_numpy(np.ascontiguousarray(said.values["box"]))
    overlap = iou(boxes[:, None], truth[owner])[:, 0].amax(-1).numpy()
    sides = boxes[:, 1] - boxes[:, 0]
    steady = -said.values["jitter"].mean(-1) / sides.numpy()
    told = {"score": said.values["score"], "jitter": steady}
    limits = {"score": 0.9, "jitter": -0.02}
    for name, values in told.items():
        enough = len(overlap) > 2
        bench.note(
            name,
            correlation=rank_correlation(values, overlap) if enough else 0.0,
            kept=(values > limits[name]).mean() if enough else 0.0,
        )
