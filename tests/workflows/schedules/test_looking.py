"""What of a plan is new data, and what a new teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import Run, Step
from stillroom.pipeline.execute import execute, plan
from stillroom.stages import ArrayRows, FunctionTeacher, plan_teach, teach
from stillroom.storage import Cache
from stillroom.workflows.plan_words import preview_of
from stillroom.workflows.schedules.looking import causes, look, plan_arguments
from stillroom.workflows.schedules.schedule import Trigger
from tests.workflows.schedules.builders import quick, quick_flow


def size(run: Run, inputs: Any) -> dict[str, Any]:
    return {"size": 1}


def kinds(steps: list[Step], folder: Path) -> list[str]:
    """Which triggers a plan of these steps would set off."""
    said = [
        {"step": p.step, "why": p.why, "details": dict(p.details)} for p in plan(steps, Run(folder))
    ]
    said = json.loads(json.dumps(said))
    return [kind for kind in ("on-data", "on-teacher") if causes(said, kind)]


def test_files_are_data_and_weights_are_a_teacher(tmp_path: Path) -> None:
    rows, weights = tmp_path / "rows.csv", tmp_path / "big.safetensors"
    rows.write_text("1")
    weights.write_text("1")
    steps = [Step("fit", size, files=(rows, weights))]
    assert kinds(steps, tmp_path / "out") == ["on-data", "on-teacher"]  # it never ran
    execute(steps, Run(tmp_path / "out"))
    assert kinds(steps, tmp_path / "out") == []
    rows.write_text("2")
    assert kinds(steps, tmp_path / "out") == ["on-data"]
    execute(steps, Run(tmp_path / "out"))
    weights.write_text("2")
    assert kinds(steps, tmp_path / "out") == ["on-teacher"]
    rows.write_text("3")
    assert kinds(steps, tmp_path / "out") == ["on-data", "on-teacher"]
    execute(steps, Run(tmp_path / "out"))
    assert kinds([Step("fit", size, {}, files=(rows, weights))], tmp_path / "out") == []


def half(number: Any) -> dict[str, Any]:
    return {"half": number / 2}


def third(number: Any) -> dict[str, Any]:
    return {"half": number / 3}


def test_a_teach_step_tells_rows_from_teachers(tmp_path: Path) -> None:
    place = tmp_path / "cache"

    def steps(rows: int, function: Any) -> list[Step]:
        data = ArrayRows(range(rows), number=np.arange(rows, dtype="f4"))
        teacher = FunctionTeacher("slow", function, ("number",), ("half",))

        def work(run: Run, inputs: Any) -> dict[str, Any]:
            return {"snapshot": teach(Cache.at(place), data, teacher, runner=run.runner).number}

        return [Step("teach", work, preview=lambda run, inputs: preview_of(
            plan_teach(place, data, teacher), place))]  # fmt: skip

    assert kinds(steps(4, half), tmp_path) == ["on-data", "on-teacher"]
    execute(steps(4, half), Run(tmp_path))
    assert kinds(steps(4, half), tmp_path) == []
    assert kinds(steps(6, half), tmp_path) == ["on-data"]
    assert kinds(steps(4, third), tmp_path) == ["on-teacher"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (["--out", "x", "--workers", "0-8", "--epochs", "3"], ["--out", "x", "--epochs", "3"]),
        (["--workers=0-8", "--gpus", "1", "--json"], []),
        (["--workers", "2", "--events=e.jsonl"], ["--workers", "2"]),
    ],
)
def test_a_plan_gets_what_it_knows(said: list[str], kept: list[str]) -> None:
    assert plan_arguments(said) == kept


@pytest.mark.slow
def test_a_plan_that_fails_says_so(tmp_path: Path) -> None:
    quick_flow(tmp_path, "raise SystemError('no disk today')\n")
    found = look(quick(tmp_path, "a", Trigger("on-data", seconds=60.0)))
    assert found.cause == ""
    assert "no disk today" in found.problem
