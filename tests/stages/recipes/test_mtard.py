"""MTARD: two teachers on two inputs, and the two balances outside the gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    AdversarialTeacher,
    ArrayRows,
    Evaluation,
    Fit,
    ModuleTeacher,
    Student,
    classification,
    recipes,
    train,
    with_signals,
)
from stillroom.stages.objectives.logits import kl
from stillroom.stages.parts import Seen
from stillroom.stages.proving.models import mlp, untrained
from stillroom.stages.recipes.mtard import TEACHERS, balanced, entropy, softened
from stillroom.stages.rounds import train_rounds
from stillroom.storage import Cache, Snapshot
from tests.stages.builders import taught

RECIPE = recipes.find("mtard")
SETTINGS = {"temperature_rate": 0.001, "weight_rate": 0.025, "beta": 1.0, "highest": 10.0}
quick = settings(deadline=None, max_examples=30)
positive = st.floats(0.01, 10.0)


def start(**changes: float) -> dict[str, Tensor]:
    assert RECIPE.controller is not None
    begun = dict(RECIPE.controller.start(**RECIPE.controller.settings)) | changes
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in begun.items()}


def seen(clean: Tensor, robust: Tensor, losses: tuple[float, float] = (1.0, 1.0)) -> Seen:
    tensors = {"teacher.clean": clean, "teacher.robust": robust}
    return Seen(dict(zip(TEACHERS, map(torch.tensor, losses), strict=True)), tensors, 1, 10)


def update(state: dict[str, Tensor], now: Seen, **changes: float) -> dict[str, float]:
    return {n: v.item() for n, v in balanced(state, now, **(SETTINGS | changes)).items()}


def logits(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(seed)) * scale


@quick
@given(seed=st.integers(0, 1000), temperature=positive)
def test_only_the_teacher_is_softened(seed: int, temperature: float) -> None:
    student, teacher, t = logits(seed), logits(seed + 1), torch.tensor(temperature)
    found = softened(student, teacher, t)
    target = (teacher / t).softmax(-1)
    expected = (target * (target.clamp_min(1e-30).log() - student.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert softened(teacher / t, teacher, t).abs().max() < 1e-5
    torch.testing.assert_close(softened(student, teacher, torch.tensor(1.0)), kl(student, teacher))


def test_no_gradient_reaches_teachers_temperatures_or_weights() -> None:
    parts: dict[str, Any] = {
        f"student.logits{run}": logits(0).requires_grad_() for run in ("", "@adversarial")
    }
    parts |= {f"teacher.{name}": logits(1).requires_grad_() for name in TEACHERS}
    parts |= {f"state.{name}": value for name, value in start().items()}
    for name in ("clean_temperature", "robust_temperature"):
        parts[f"state.{name}"].requires_grad_()
    torch.stack([one.weighted(one.mean(parts), parts) for one in RECIPE.terms]).sum().backward()
    assert all((p.grad is not None) == n.startswith("student.") for n, p in parts.items())


@quick
@given(seed=st.integers(0, 1000), scale=positive)
def test_teachers_that_are_equally_sure_keep_their_temperatures(seed: int, scale: float) -> None:
    same = logits(seed, scale)
    after = update(start(clean_temperature=2.0, robust_temperature=2.0), seen(same, same))
    assert (after["clean_temperature"], after["robust_temperature"]) == (2.0, 2.0)


@quick
@given(seed=st.integers(0, 1000))
def test_the_surer_teacher_is_softened_and_the_other_sharpened(seed: int) -> None:
    state = start(clean_temperature=2.0, robust_temperature=2.0)
    after = update(state, seen(logits(seed, 5.0), logits(seed, 1.0)))
    assert after["clean_temperature"] == pytest.approx(2.001)
    assert after["robust_temperature"] == pytest.approx(1.999)
    mirrored = update(state, seen(logits(seed, 1.0), logits(seed, 5.0)))
    assert mirrored["clean_temperature"] == after["robust_temperature"]


def test_temperatures_meet_at_equal_entropy_and_stay_in_their_range() -> None:
    sure, unsure = logits(0, 6.0), logits(1, 1.0)
    state = start()
    for _ in range(600):
        state = balanced(state, seen(sure, unsure), **(SETTINGS | {"temperature_rate": 0.02}))
    assert 1.0 <= state["robust_temperature"] < 1.03  # it may not fall below 1
    apart = entropy(sure, state["clean_temperature"]) - entropy(unsure, torch.tensor(1.0))
    assert apart.abs() < 0.012
    low = balanced(
        start(clean_temperature=3.0), seen(sure, unsure), **(SETTINGS | {"highest": 3.0})
    )
    assert low["clean_temperature"] == 3.0


@quick
@given(first=st.tuples(positive, positive), now=st.tuples(positive, positive))
def test_weights_sum_to_one_and_rest_at_the_shares(
    first: tuple[float, float], now: tuple[float, float]
) -> None:
    same = logits(0)
    state = start(clean_first=first[0], robust_first=first[1])
    fallen = [b / a for a, b in zip(first, now, strict=True)]
    shares = [f / sum(fallen) for f in fallen]
    after = update(state, seen(same, same, now))
    assert after["clean_weight"] + after["robust_weight"] == pytest.approx(1)
    assert after["clean_weight"] == pytest.approx(0.5 + 0.025 * (shares[0] - 0.5), abs=1e-6)
    resting = start(
        clean_weight=shares[0], robust_weight=shares[1], clean_first=first[0], robust_first=first[1]
    )
    assert update(resting, seen(same, same, now))["robust_weight"] == pytest.approx(
        shares[1], abs=1e-6
    )


def test_the_first_step_is_what_later_losses_are_compared_with() -> None:
    same = logits(0)
    after = update(start(), seen(same, same, (3.0, 0.25)))
    assert (after["clean_first"], after["robust_first"]) == (3.0, 0.25)
    assert (after["clean_weight"], after["robust_weight"]) == (0.5, 0.5)
    state = {n: torch.tensor(v, dtype=torch.float64) for n, v in after.items()}
    later = update(state, seen(same, same, (1.0, 0.25)))
    assert (later["clean_first"], later["robust_first"]) == (3.0, 0.25)
    assert later["robust_weight"] > 0.5  # its loss fell less, so it counts for more


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"temperature_rate": -1.0},
        {"weight_rate": 2.0},
        {"beta": -1.0},
        {"highest": 0.5},
    ):
        with pytest.raises(ValueError, match="mtard: expected"):
            recipes.find("mtard", **wrong)


SMALL = partial(mlp, 6, 8, 3)


Told = tuple[ArrayRows, Snapshot, Student]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Both teachers' answers, the robust one's to what an untrained student is misled by."""
    tmp_path = tmp_path_factory.mktemp("told")
    numbers = np.random.default_rng(0)
    x = numbers.random((40, 6)).astype(np.float32)
    rows = ArrayRows(range(40), x=x, label=numbers.integers(3, size=40))
    begin = untrained(SMALL, tmp_path / "begin.safetensors", seed=0)
    wide = partial(mlp, 6, 16, 3)
    clean = ModuleTeacher("clean", wide, inputs=("x",))
    adversary = AdversarialTeacher("adversary", SMALL, begin, ("x",), epsilon=0.1, step=0.05)
    taught(tmp_path / "c", rows, clean)
    made = taught(tmp_path / "c", rows, adversary)
    attacked = with_signals(rows, made, attacked="adversary/adversarial")
    robust = ModuleTeacher("robust", partial(mlp, 6, 4, 3), inputs=("attacked",))
    snapshot = taught(tmp_path / "c", attacked, robust)
    names = {"clean": "clean/logits", "robust": "robust/logits"}
    fit = Fit(epochs=2, batch_size=10, schedule="constant")
    student = Student("s", SMALL, RECIPE, ("x",), signals=names, start=begin, fit=fit)
    return rows, snapshot, student


def test_a_student_goes_on_only_with_what_its_controller_keeps(told: Told, tmp_path: Path) -> None:
    rows, snapshot, student = told
    with pytest.raises(ValueError, match="start_state names 'balance', which recipe 'mtard'"):
        train(
            [replace(student, start_state={"balance": 1.0})],
            rows,
            snapshot,
            splits={"train": range(40), "test": range(10)},
            evaluation=Evaluation("test", classification),
            folder=tmp_path,
            runner=LocalRunner(),
        )


def test_clean_answers_come_from_the_ordinary_cache(told: Told) -> None:
    """Teaching on adversarial inputs computes nothing of the clean teacher's again."""
    rows, snapshot, _ = told
    assert isinstance(snapshot.cache, Path)
    segments = [s.teacher for s in Cache.at(snapshot.cache).segments()]
    assert sorted(segments) == ["adversary", "clean", "robust"]
    assert {s.teacher for s in snapshot.sources} == {"adversary", "clean", "robust"}
    assert len(snapshot) == len(rows)


def test_rounds_carry_the_controllers_state(told: Told, tmp_path: Path) -> None:
    rows, _, student = told

    def teachers(number: int, weights: Path | None) -> list[Any]:
        assert weights is not None
        ball = {"epsilon": 0.1, "step": 0.05}
        return [
            ModuleTeacher("clean", partial(mlp, 6, 16, 3), inputs=("x",)),
            AdversarialTeacher("adversary", SMALL, weights, ("x",), **ball),  # type: ignore[arg-type]
            ModuleTeacher("robust", partial(mlp, 6, 4, 3), inputs=("attacked",)),
        ]

    first, second = train_rounds(
        student,
        2,
        rows=lambda number, weights: rows,
        teachers=teachers,
        answers={"attacked": "adversary/adversarial"},
        splits={"train": range(40), "test": range(10)},
        evaluation=Evaluation("test", classification),
        folder=tmp_path / "rounds",
        runner=LocalRunner(),
        start=student.start,
    )
    begun = second.record.content["identity"]["student"]["start_state"]
    assert begun == first.record.content["state"]
    assert begun["robust_temperature"] > 1.0  # the surer one of these two
    assert "start_state" not in first.record.content["identity"]["student"]
    assert second.record.content["state"]["robust_first"] == begun["robust_first"]
