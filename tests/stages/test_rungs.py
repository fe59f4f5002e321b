"""Rungs: who is stopped by a pruner of Optuna's when all students of a rung are there at once."""

from __future__ import annotations

import math
import sys
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import MedianPruner, NopPruner, PercentilePruner

from stillroom.stages.rungs import Rungs, halving_pruner, spelled
from stillroom.storage.errors import MissingPackageError


@pytest.mark.parametrize(
    ("pruner", "left"),
    [
        (MedianPruner(n_startup_trials=2), (5, 3)),
        (PercentilePruner(25.0, n_startup_trials=2), (3, 1)),
        (NopPruner(), (9, 9)),
    ],
)
def test_any_pruner_of_optuna_decides(pruner: Any, left: tuple[int, int]) -> None:
    race = Rungs(9, larger=True, pruner=pruner)
    values = dict(enumerate([0.1, 0.9, 0.5, 0.4, 0.8, 0.3, 0.7, 0.2, 0.6]))
    for epoch, count in zip((1, 3), left, strict=True):
        for number in race.judged(epoch, values):
            del values[number]
        best = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
        assert sorted(values.values(), reverse=True) == best[:count]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    values=st.lists(
        st.sampled_from([-3.0, 0.0, 0.25, 1.5, 4.0, math.nan]), min_size=1, max_size=12
    ),
    factor=st.integers(2, 4),
    larger=st.booleans(),
    shuffle=st.randoms(use_true_random=False),
)
def test_halving_keeps_the_best_part_whatever_the_order(
    values: list[float], factor: int, larger: bool, shuffle: Any
) -> None:
    """Of n students that report a number, those as good as the (n // factor)-th best, at least one."""
    pruner = halving_pruner((1, factor))
    sign = -1 if larger else 1
    numbers = sorted(sign * v for v in values if not math.isnan(v))
    kept = numbers[max(len(numbers) // factor, 1) - 1] if numbers else math.nan
    expected = {n for n, v in enumerate(values) if not sign * v <= kept}
    for order in (list(range(len(values))), shuffle.sample(range(len(values)), len(values))):
        race = Rungs(len(values), larger=larger, pruner=pruner)
        stopped = race.judged(1, {place: values[n] for place, n in enumerate(order)})
        assert {order[place] for place in stopped} == expected


def test_two_rungs_divide_the_students_twice() -> None:
    race, left = Rungs(27, larger=True, pruner=halving_pruner((2, 6))), set(range(27))
    for epoch, count in ((2, 9), (6, 3)):
        left -= set(race.judged(epoch, {n: float(n % 27) for n in left}))
        assert left == set(range(27 - count, 27))


def test_optuna_says_nothing_and_its_settings_stay(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    Rungs(3, larger=True, pruner=halving_pruner((1,))).judged(1, {0: 1.0, 1: 2.0, 2: 3.0})
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
    assert spelled(halving_pruner((2, 4))).startswith(
        "SuccessiveHalvingPruner(min_resource=2, reduction_factor=2"
    )


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r"optuna.*'stillroom\[sweep\]'"):
        halving_pruner((1, 3))
