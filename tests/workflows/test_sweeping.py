"""Sweeps: students with names that are unique and stay, over grids and drawn points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages import recipes
from stillroom.stages.student import Record, Student
from stillroom.storage.errors import SettingsError
from stillroom.workflows.sweeping import Between, draw, grid, ranked

RECIPE = recipes.find("labels")


def build() -> Any:
    raise AssertionError("nothing is built by a sweep")


def student(*, seed: int = 0, **point: Any) -> Student:
    recipe = point.get("recipe", RECIPE)
    return Student("kd", build, recipe, seed=seed)


def names(found: list[Student]) -> list[str]:
    return [one.name for one in found]


def test_a_grid_is_every_combination_the_last_axis_fastest() -> None:
    found = grid(student, temperature=[1.0, 2.5], alpha=[0, 1], seed=range(2))
    assert [(one.name, one.seed) for one in found] == [
        (f"kd-temperature{t}-alpha{a}", seed)
        for t in ("1", "2p5")
        for a in (0, 1)
        for seed in (0, 1)
    ]


def test_values_reach_the_function_and_names_say_them() -> None:
    seen: list[Any] = []

    def make(**point: Any) -> Student:
        seen.append(point)
        return student()

    other = recipes.find("kd")
    found = grid(
        make, recipe={"labels": RECIPE, "kd 2": other}, x=[1e-5, -3, 1e6, True, None, "a.b/c"]
    )
    assert seen[:2] == [{"recipe": RECIPE, "x": 1e-5}, {"recipe": RECIPE, "x": -3}]
    assert [name.rpartition("-x")[2] for name in names(found)[:6]] == [
        *("1em05", "m3", "1e06", "True", "None", "apbc")
    ]
    assert names(found)[6] == "kd-recipekd_2-x1em05"


def test_more_values_leave_the_other_names_as_they_are() -> None:
    few = names(grid(student, a=[1, 2], b=["x"]))
    assert set(few) < set(names(grid(student, a=[0, 1, 2], b=["y", "x"])))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False) | st.integers(), min_size=1, max_size=5, unique_by=repr),
    st.lists(st.text("abc", min_size=1, max_size=90), min_size=1, max_size=3, unique=True),
)
def test_names_are_unique_and_valid_or_the_grid_is_refused(numbers: Any, texts: Any) -> None:
    try:
        found = names(grid(student, number=numbers, text=texts))
    except SettingsError as error:
        # 1 and 1.0 are one name.
        assert "two students are" in str(error)  # noqa: PT017
        assert len({float(n) for n in numbers}) < len(numbers)
        return
    assert len(set(found)) == len(numbers) * len(texts)
    assert all(len(name) <= 64 for name in found)


def test_a_larger_draw_keeps_the_points_of_a_smaller_one() -> None:
    axes: dict[str, Any] = {
        "lr": Between(1e-4, 1e-1, log=True),
        "width": Between(4, 64, whole=True),
    }
    few, many = draw(student, 5, **axes), draw(student, 40, **axes)
    assert names(many)[:5] == names(few)
    assert len(set(names(many))) == 40
    assert names(draw(student, 5, draws=1, **axes)) != names(few)
    # A further axis leaves what is drawn on the others.
    more = draw(student, 5, **axes, depth=[1, 2, 3])
    assert [name.rpartition("-depth")[0] for name in names(more)] == names(few)


def test_what_is_drawn_lies_between_and_the_name_says_it_exactly() -> None:
    seen: list[Any] = []

    def make(**point: Any) -> Student:
        seen.append(point)
        return student()

    axes: dict[str, Any] = {"lr": Between(1e-4, 1e-1, log=True), "width": Between(4, 8, whole=True)}
    found = draw(make, 200, **axes, kind=["a", "b"])
    assert {point["width"] for point in seen} == {4, 5, 6, 7, 8}
    assert all(isinstance(point["width"], int) for point in seen)
    assert all(1e-4 <= point["lr"] <= 1e-1 for point in seen)
    assert 60 < sum(point["lr"] < 1e-3 for point in seen) * 2 < 200  # a third of them, by decades
    for point, one in zip(seen, found, strict=True):
        said = one.name.split("-")[1].removeprefix("lr")
        assert float(said.replace("p", ".").replace("m", "-")) == point["lr"]


def test_points_that_come_twice_are_one_and_seeds_are_not_drawn() -> None:
    found = draw(student, 50, kind=["a", "b"], seed=range(3))
    assert sorted((one.name, one.seed) for one in found) == [
        (f"kd-kind{kind}", seed) for kind in "ab" for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"a": []}, "axis a has no values"),
        ({"a": "text"}, "axis a: expected a list of values"),
        ({"a": 3}, "axis a: expected a list of values"),
        ({"a": Between(0, 1)}, "axis a: expected a list of values"),
        ({"a": [RECIPE]}, "axis a: Recipe.* has no name; write {'name': value, ...}"),
        ({"a": ["..", "!"]}, "has no name"),
        ({"a": [1, 1]}, "two students are 'kd-a1' with seed 0"),
        ({"a": [1, 1.0]}, "two students are"),
    ],
)
def test_axes_that_name_nothing_are_refused(axes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        grid(student, **axes)


def test_a_seed_that_is_not_passed_on_is_noticed() -> None:
    with pytest.raises(SettingsError, match="a `seed` that it passes on"):
        grid(lambda seed: student(), seed=range(2))


@pytest.mark.parametrize(
    ("low", "high", "more"),
    [
        (1, 1, {}),
        (2, 1, {}),
        (0, 1, {"log": True}),
        (0, float("inf"), {}),
        (1.2, 1.8, {"whole": True}),
    ],
)
def test_ranges_that_hold_nothing_are_refused(low: float, high: float, more: Any) -> None:
    with pytest.raises(SettingsError, match="Between"):
        Between(low, high, **more)


def record(name: str, **metrics: float) -> Record:
    return Record(Path(), {"student": name, "seed": 0, "metrics": metrics})


def test_students_are_ranked_by_their_mean_over_seeds() -> None:
    records = [record("a", loss=1.0), record("b", loss=0.5), record("a", loss=3.0)]
    records.append(record("c", loss=float("nan")))
    assert [name for name, _ in ranked(records, "loss", least=True)] == ["b", "a", "c"]
    assert ranked(records, "loss")[0] == ("a", 2.0)
    assert [name for name, _ in ranked(records, "loss")] == ["a", "b", "c"]
    with pytest.raises(SettingsError, match="'a' has no metric 'acc'; known: loss"):
        ranked(records, "acc")
