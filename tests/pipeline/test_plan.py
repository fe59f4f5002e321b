"""A plan says what a run would do, and does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.pipeline import Run, Step
from tests.pipeline.conftest import Watch

Inputs = Mapping[str, dict[str, Any]]


def number(run: Run, inputs: Inputs, *, value: int = 1) -> dict[str, Any]:
    return {"value": value}


def total(run: Run, inputs: Inputs) -> dict[str, Any]:
    return {"total": sum(result["value"] for result in inputs.values())}


def grow(run: Run, inputs: Inputs, *, to: int) -> dict[str, Any]:
    """Finds by itself what is missing: files up to a number."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for n in range(to):
        (run.folder / f"{n}.part").touch()
    return {"value": len(list(run.folder.glob("*.part")))}


def missing(run: Run, inputs: Inputs, *, to: int) -> str:
    lacking = [n for n in range(to) if not (run.folder / f"{n}.part").exists()]
    return f"{len(lacking)} parts to make" if lacking else ""


def growing(to: int) -> Step:
    return Step("total", total, needs=(Step("grow", grow, {"to": to}, preview=missing),))


def test_nothing_is_run_or_written_by_a_plan(watch: Watch) -> None:
    def never(run: Run, inputs: Inputs) -> dict[str, Any]:
        raise AssertionError("it ran")

    steps = Step("b", never, needs=(Step("a", never),))
    assert watch.plan(steps) == {"a": "it never ran here", "b": "after a"}
    assert not watch.folder.exists()


def test_a_plan_agrees_with_the_run_that_follows(watch: Watch, tmp_path: Path) -> None:
    def steps(value: int) -> Step:
        needs = (Step("one", number, {"value": value}), Step("two", number))
        return Step("total", total, needs=needs)

    watch.execute(steps(1))
    assert watch.plan(steps(1)) == {"one": "", "two": "", "total": ""}
    planned = watch.plan(steps(5))
    assert planned == {"one": "setting value: 1 became 5", "two": "", "total": "after one"}
    watch.execute(steps(5))
    assert watch.why.keys() == {name for name, why in planned.items() if why}


def test_a_step_with_a_preview_says_what_it_would_compute(watch: Watch) -> None:
    assert watch.plan(growing(3)) == {"grow": "3 parts to make", "total": "after grow"}
    watch.execute(growing(3))
    assert watch.plan(growing(3)) == {"grow": "", "total": ""}
    (watch.folder / "1.part").unlink()
    assert watch.plan(growing(3)) == {"grow": "1 parts to make", "total": "after grow"}


def test_a_step_with_a_preview_is_always_called_and_fresh_when_nothing_came_of_it(
    watch: Watch,
) -> None:
    watch.execute(growing(3))
    watch.execute(growing(3))
    assert watch.fresh == ["grow", "total"]
    assert watch.why == {"grow": ""}
    (watch.folder / "5.part").touch()
    watch.execute(growing(3))  # its own settings are the same, its result is not
    assert watch.fresh == []
    assert watch.why["total"] == "result of grow: value: 3 became 4"


def test_a_step_with_a_preview_that_never_ran_is_not_shown_as_fresh(watch: Watch) -> None:
    watch.execute(growing(3))
    (watch.folder / "steps" / "grow.json").unlink()
    assert watch.plan(growing(3)) == {"grow": "it never ran here", "total": "after grow"}


def test_a_changed_setting_of_a_step_with_a_preview_is_shown(watch: Watch) -> None:
    watch.execute(growing(3))
    # Nothing to make, but its result, and what follows from it, may be another.
    assert watch.plan(growing(2)) == {"grow": "setting to: 3 became 2", "total": "after grow"}
