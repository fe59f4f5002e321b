"""Rounds: who teaches next, what goes on, and nothing computed twice."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, Fit, ModuleTeacher, Student, recipes, term
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.events import RowsTaught, StudentTrained
from stillroom.stages.proving.detection import (
    average_precision,
    candidates,
    detector,
)
from stillroom.stages.recipe import Recipe
from stillroom.stages.rounds import RoundsPlan, plan_rounds, train_rounds
from stillroom.stages.teachers.weights import load_state
from tests.stages.detection_builders import averages, small_rows, untrained


def gone(folder: Path, count: int, recipe: Recipe | None = None, **settings: Any) -> list[Any]:
    keys = small_rows(0).keys.to_pylist()
    student = Student(
        "arm",
        detector,
        recipe or recipes.find("soft-teacher"),
        inputs=("strong",),
        layers={"scores": ":scores", "boxes": ":boxes"},
        split="unlabelled",
        beside={"labelled": "labelled"},
        fit=Fit(epochs=1, batch_size=6, average=0.5, schedule="constant"),
    )
    return train_rounds(
        student,
        count,
        rows=small_rows,
        teachers=averages,
        splits={
            k: [n for n in keys if n.startswith(k)] for k in ("labelled", "unlabelled", "test")
        },
        evaluation=Evaluation("test", average_precision, columns=("boxes", "classes", "count")),
        folder=folder / "rounds",
        runner=LocalRunner(),
        start=untrained(folder),
        tables={"candidates": candidates()},
        **settings,
    )


def test_rounds_promote_the_average_and_go_on_and_are_not_computed_twice(tmp_path: Path) -> None:
    first, second = gone(tmp_path, 2)
    assert [r.number for r in (first, second)] == [1, 2]
    identities = [r.snapshot.identity("boxes")["weights"] for r in (first, second)]
    assert identities[0] != identities[1]
    given = second.record.content["identity"]["student"]
    assert given["start"] != given["start average"]
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "rounds").rglob("*")}
    again = gone(tmp_path, 2)
    assert [r.record.folder for r in again] == [first.record.folder, second.record.folder]
    unchanged = {f: f.stat().st_mtime_ns for f in stamps if f.is_file() and "leases" not in f.parts}
    assert unchanged == {f: stamps[f] for f in unchanged}


def test_the_average_goes_on_across_rounds_as_if_there_were_one(tmp_path: Path) -> None:
    """With a rate of nearly nothing the weights stay, and the average nears them by its decay alone."""
    from safetensors.torch import save_file

    begun = load_state(untrained(tmp_path))
    save_file({n: t + 1 for n, t in begun.items()}, tmp_path / "away.safetensors")
    still = Student(
        "still",
        detector,
        Recipe("zero", (term(nothing, "student.scores"),)),
        inputs=("strong",),
        layers={"scores": ":scores", "boxes": ":boxes"},
        split="all",
        start=tmp_path / "begun.safetensors",
        start_average=tmp_path / "away.safetensors",
        fit=Fit(epochs=3, batch_size=100, average=0.5, weight_decay=0.0),
    )
    (round_,) = train_rounds(
        still,
        1,
        rows=small_rows,
        teachers=lambda number, weights: [],
        splits={"all": small_rows(0).keys.to_pylist(), "test": small_rows(0).keys.to_pylist()[-4:]},
        evaluation=Evaluation("test", average_precision, columns=("boxes", "classes", "count")),
        folder=tmp_path / "still",
        runner=LocalRunner(),
        goes_on=False,
    )
    averaged, weights = load_state(round_.record.average), load_state(round_.record.weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, begun[name])
        torch.testing.assert_close(averaged[name], tensor + 1 / 8)
    with pytest.raises(
        ValueError, match=r"'still' is given an average to go on from and keeps none"
    ):
        replace(still, fit=Fit())


def nothing(scores: Tensor) -> Tensor:
    return (0 * scores).sum((1, 2))


def test_rounds_are_counted_from_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'arm': rounds are counted from 1, asked for 0"):
        gone(tmp_path, 0)


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))


WIDTHS = (6, 4, 2)


def smaller(number: int) -> Student:
    learns = recipes.find("labels") if number == 1 else recipes.find("kd", alpha=0.5)
    build = partial(net, WIDTHS[number - 1])
    return Student("down", build, learns, inputs=("x",), fit=Fit(epochs=1), seed=number)


def larger(number: int, weights: Path | None) -> list[ModuleTeacher]:
    if number == 1:
        return []
    before = partial(net, WIDTHS[number - 2])
    return [ModuleTeacher("before", before, weights=weights, inputs=("x",))]


def few(number: int, weights: Path | None) -> ArrayRows:
    x = np.random.default_rng(0).standard_normal((40, 2)).astype("float32")
    return ArrayRows([f"row-{i}" for i in range(40)], x=x, label=(x[:, 0] > 0).astype("int64"))


def test_a_plan_says_where_rounds_go_on_and_assistants_are_smaller(tmp_path: Path) -> None:
    """The student may be another in every round; each is planned from what the one before left."""
    keys = few(0, None).keys.to_pylist()
    given: dict[str, Any] = {
        "rows": few,
        "teachers": larger,
        "splits": {"train": keys[:30], "test": keys[30:]},
        "evaluation": Evaluation("test", classification),
        "folder": tmp_path / "rounds",
        "goes_on": False,
    }
    assert plan_rounds(smaller, 3, **given) == RoundsPlan(0, "round 1: down-1 has no record")
    heard: list[Any] = []
    runs: dict[str, Any] = {"runner": LocalRunner(), "listen": heard.append}
    first, second = train_rounds(smaller, 2, **given, **runs)
    assert [e.rows for e in heard if isinstance(e, RowsTaught)] == [40]
    assert [e.name for e in heard if isinstance(e, StudentTrained)] == ["down-1", "down-2"]
    assert first.snapshot is None
    shapes = [load_state(r.record.weights)["0.weight"].shape for r in (first, second)]
    assert [tuple(shape) for shape in shapes] == [(6, 2), (4, 2)]
    assert plan_rounds(smaller, 2, **given) == RoundsPlan(2, "")
    more = plan_rounds(smaller, 3, **given)
    assert (more.fresh, more.why[:18]) == (2, "round 3: before: 4")
    (second.record.folder / "record.json").unlink()
    assert plan_rounds(smaller, 3, **given) == RoundsPlan(1, "round 2: down-2 has no record")
    heard.clear()
    again = train_rounds(smaller, 2, **given, **runs)[1]
    assert not [e for e in heard if isinstance(e, RowsTaught)]
    assert again.record.folder == second.record.folder
    with pytest.raises(ValueError, match="rounds are counted from 1, asked for 0"):
        plan_rounds(smaller, 0, **given)
