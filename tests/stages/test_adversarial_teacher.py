"""Adversarial inputs as a signal: inside their ball, in range, and the same whatever lies beside them."""

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

from stillroom.stages import AdversarialTeacher, ArrayRows
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.proving.models import mlp, untrained
from stillroom.stages.teachers.adversarial import perturbed
from stillroom.storage.identity import digest
from tests.stages.builders import answers, taught

DIM, CLASSES = 6, 3
BUILD = partial(mlp, DIM, 8, CLASSES)


def rows(count: int = 30) -> ArrayRows:
    numbers = np.random.default_rng(0)
    x = numbers.random((count, DIM)).astype(np.float32)
    return ArrayRows(range(count), x=x, label=numbers.integers(CLASSES, size=count))


def adversary(folder: Path, *, seed: int = 0, **more: Any) -> AdversarialTeacher:
    weights = untrained(BUILD, folder / f"{seed}.safetensors", seed=seed)
    return AdversarialTeacher("adversary", BUILD, weights, **{"given": ("x",), **more})


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    epsilon=st.floats(0.01, 0.6),
    step=st.floats(0.001, 1.0),
    steps=st.integers(0, 5),
)
def test_inputs_stay_in_the_ball_and_in_range(
    seed: int, epsilon: float, step: float, steps: int
) -> None:
    torch.manual_seed(seed)
    module, x, label = BUILD(), torch.rand(7, DIM), torch.randint(CLASSES, (7,))
    found = perturbed(
        module,
        [x],
        label,
        epsilon=epsilon,
        step=step,
        steps=steps,
        beginning=x + torch.randn(7, DIM),
    )
    assert (found - x).abs().max() <= epsilon + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert all(p.grad is None for p in module.parameters())


def test_the_attack_on_a_linear_module_is_its_closed_form() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.0, 0.25]])
    x, label = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.9, 0.5]]), torch.tensor([0, 1])

    def linear(given: Tensor) -> Tensor:
        return given @ weight.T

    apart = weight[1 - label] - weight[label]
    found = perturbed(linear, [x], label, epsilon=0.2, step=0.05, steps=10)
    torch.testing.assert_close(found, (x + 0.2 * apart.sign()).clamp(0, 1))
    free = perturbed(linear, [x], label, epsilon=0.2, step=0.05, steps=10, low=None, high=None)
    torch.testing.assert_close(free, x + 0.2 * apart.sign())


def test_it_misleads_the_module_and_is_cached(tmp_path: Path) -> None:
    given, teacher = rows(), adversary(tmp_path, epsilon=0.2, step=0.05)
    made = taught(tmp_path / "c", given, teacher)
    found = torch.as_tensor(answers(made, given, "adversarial"))
    batch = given.read(np.arange(30), ["x", "label"])
    x, label = torch.as_tensor(batch["x"]), torch.as_tensor(batch["label"])
    torch.manual_seed(0)
    module = BUILD()
    assert (found - x).abs().max() <= 0.2 + 1e-6
    assert (cross_entropy(module(found), label) > cross_entropy(module(x), label)).all()
    again = taught(tmp_path / "d", given, teacher, batch_size=7, shard_rows=30)
    torch.testing.assert_close(torch.as_tensor(answers(again, given, "adversarial")), found)


def test_its_identity_is_the_student_and_the_attack(tmp_path: Path) -> None:
    plain = adversary(tmp_path)
    others = [
        adversary(tmp_path, seed=1),
        adversary(tmp_path, epsilon=0.5),
        adversary(tmp_path, step=0.5),
        adversary(tmp_path, start=0.5),
        adversary(tmp_path, low=0.5),
        replace(plain, steps=3),
        replace(plain, high=None),
    ]
    assert len({digest(t.identity()) for t in (plain, *others)}) == 1 + len(others)
    assert digest(replace(plain, threads=2, device="cpu").identity()) == digest(plain.identity())
    assert plain.inputs == ("x", "label")


def test_an_attack_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for wrong in ({"epsilon": -1.0}, {"steps": -1}, {"given": ()}):
        with pytest.raises(ValueError, match="teacher 'adversary': epsilon, step, steps and start"):
            adversary(tmp_path, **wrong)
