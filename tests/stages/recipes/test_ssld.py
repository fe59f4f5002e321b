"""SSLD: exact properties of its two divergences, mining, and a data set without any label."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, Evaluation, Fit, Student, recipes, train
from stillroom.stages.objectives.logits import kl
from stillroom.stages.recipes.ssld import jeffreys_half, jensen_shannon, most_confident
from tests.stages.builders import data, network, pupil, taught

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([0.5, 1.0, 4.0])
both = pytest.mark.parametrize("divergence", [jeffreys_half, jensen_shannon])


def pair(seed: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, 5, 7, generator=made, dtype=torch.float64) * 3
    return drawn[0].requires_grad_(), drawn[1]


@both
@quick
@given(seed=seeds, temperature=temperatures)
def test_it_is_symmetric_and_zero_only_where_both_say_the_same(
    divergence: Any, seed: int, temperature: float
) -> None:
    student, teacher = pair(seed)
    found = divergence(student, teacher, temperature=temperature)
    assert (found > 1e-6).all()
    torch.testing.assert_close(divergence(teacher, student, temperature=temperature), found)
    same = divergence(teacher + 7.0, teacher, temperature=temperature)
    torch.testing.assert_close(same, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


@quick
@given(seeds, temperatures)
def test_jeffreys_half_is_the_mean_of_both_kl_divergences(seed: int, temperature: float) -> None:
    student, teacher = pair(seed)
    forward = kl(student, teacher, temperature=temperature)
    backward = kl(teacher, student, temperature=temperature)
    found = jeffreys_half(student, teacher, temperature=temperature)
    torch.testing.assert_close(found, forward / 2 + backward / 2)


@quick
@given(seeds, temperatures)
def test_jensen_shannon_is_the_mean_of_both_kl_divergences_to_the_middle(
    seed: int, temperature: float
) -> None:
    student, teacher = pair(seed)
    p, q = ((z / temperature).softmax(-1) for z in (student, teacher))
    middle = temperature * ((p + q) / 2).log()
    halves = (kl(middle, z, temperature=temperature) / 2 for z in (student, teacher))
    found = jensen_shannon(student, teacher, temperature=temperature)
    torch.testing.assert_close(found, sum(halves))
    assert (found <= temperature**2 * math.log(2) + 1e-12).all()


def test_jensen_shannon_is_at_most_log_2_however_far_apart_and_jeffreys_is_not() -> None:
    student = torch.tensor([[500.0, 0.0], [1e4, 0.0]])
    apart = jensen_shannon(student, -student)
    torch.testing.assert_close(apart, torch.full((2,), math.log(2)))
    torch.testing.assert_close(jeffreys_half(student, -student), torch.tensor([500.0, 1e4]))


@both
@quick
@given(seed=seeds)
def test_where_both_agree_its_gradient_is_zero(divergence: Any, seed: int) -> None:
    _, teacher = pair(seed)
    student = teacher.clone().requires_grad_()
    divergence(student, teacher).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@both
def test_no_gradient_reaches_the_teacher_and_other_classes_are_refused(divergence: Any) -> None:
    student, teacher = pair(0)
    teacher.requires_grad_()
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None
    with pytest.raises(ValueError, match=r"ssld: student \(5, 7\) against teacher \(1, 7\)"):
        divergence(student, teacher[:1])


def test_its_settings_choose_the_divergence_and_are_checked() -> None:
    functions = [
        recipes.find("ssld", divergence=name).terms[0].function
        for name in ("jeffreys_half", "jensen_shannon")
    ]
    assert functions == [jeffreys_half, jensen_shannon]
    with pytest.raises(ValueError, match=r"ssld: divergence is one of .*, found 'js'"):
        recipes.find("ssld", divergence="js")
    with pytest.raises(ValueError, match="ssld: temperature must be above 0, found 0"):
        recipes.find("ssld", temperature=0)


@quick
@given(seeds, st.integers(1, 4))
def test_mining_keeps_the_surest_of_each_class_that_is_named(seed: int, each: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((20, 3)) * 3
    keys = [f"r{i}" for i in range(20)]
    found = most_confident(keys, logits, each=each)
    sure = torch.from_numpy(logits).softmax(-1).max(-1).values.numpy()
    said = logits.argmax(1)
    for one in range(3):
        mine = [int(key[1:]) for key in found if said[int(key[1:])] == one]
        assert len(mine) == min(each, (said == one).sum())
        left = [i for i in np.flatnonzero(said == one) if i not in mine]
        assert not left or min(sure[mine]) >= max(sure[left])


def agreement(tensors: Any) -> dict[str, Any]:
    """The share of rows with the teacher's first choice."""
    same = tensors["student.logits"].argmax(-1) == tensors["teacher.logits"].argmax(-1)
    return {"agreement": same.double().mean().item()}


def test_it_learns_from_a_data_set_that_has_no_labels(tmp_path: Path) -> None:
    labelled: Any = data(200).read(np.arange(200), ["image"])
    rows = ArrayRows(data(200).keys, image=labelled["image"])
    assert rows.columns == ("image",)
    snapshot = taught(tmp_path / "cache", rows, network(), batch_size=64, shard_rows=200)
    keys = rows.keys.to_pylist()
    fit = Fit(epochs=15, batch_size=15, learning_rate=0.03, evaluate_every=15)
    (record,) = train(
        [Student("pupil", pupil, recipes.find("ssld"), fit=fit)],
        *(rows, snapshot),
        splits={"train": keys[:150], "test": keys[150:]},
        evaluation=Evaluation("test", agreement, columns=(), signals=("logits",)),
        folder=tmp_path / "students",
        runner=LocalRunner(),
    )
    assert record.metrics["agreement"] > 0.8
