"""Robustness for proofs: data on which accuracy and robustness pull apart, attacks, hardened teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.stages.data.rows import ArrayRows, find_rows
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.proving.models import mlp
from stillroom.stages.recipe import Recipe
from stillroom.stages.teachers.adversarial import AdversarialTeacher, perturbed
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teachers.weights import load_state
from stillroom.storage.keys import as_keys

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.stages.learning import Learning
    from stillroom.stages.proving.bench import Bench


def trade_off(rows: int, seed: int, *, weak: int = 15, size: float = 0.6) -> ArrayRows:
    """x (1 + weak,) float32 and label 0 or 1, by the model of Tsipras et al. 2019 (arXiv:1805.12152).

    The first number is the label's sign (-1, 1) with probability 0.85 and its opposite else; the others
    are N(size * sign, 1). Together these tell the label almost surely, and a change of each by `size`
    takes all of it away; the first alone is right less often, and stays.
    """
    numbers = np.random.default_rng(seed)
    sign = numbers.choice([-1.0, 1.0], rows)
    first = sign * np.where(numbers.random(rows) < 0.85, 1, -1)
    others = numbers.standard_normal((rows, weak)) + size * sign[:, None]
    x = np.concatenate([first[:, None], others], axis=1).astype(np.float32)
    return ArrayRows([f"row-{i}" for i in range(rows)], x=x, label=(sign > 0).astype(np.int64))


def hardened(*, epsilon: float, step: float, steps: int = 10) -> Recipe:
    """Adversarial training (Madry et al. 2018, arXiv:1706.06083): labels, on inputs that are attacked
    anew at every step. It makes robust teachers."""
    attack = partial(_hardened, epsilon=epsilon, step=step, steps=steps)
    return Recipe("hardened", (), step=attack, takes=("row.label",), family="robustness")


def _hardened(learning: Learning, *, epsilon: float, step: float, steps: int) -> Tensor:
    given = [learning.tensors[f"row.{name}"] for name in learning.student.inputs]
    label = learning.tensors["row.label"]
    learning.module.eval()
    found = perturbed(
        *(learning.module, given, label),
        epsilon=epsilon,
        step=step,
        steps=steps,
        low=None,
        high=None,
    )
    learning.module.train()
    loss = cross_entropy(learning.module(found, *given[1:]), label).mean()
    learning.descend(loss)
    return loss


def two_teachers(
    bench: Bench, rows: ArrayRows, keys: Sequence[str], *, epsilon: float
) -> tuple[ModuleTeacher, ModuleTeacher]:
    """`clean`, of x, and `robust`, of the column attacked: MLPs of 64 units, the second hardened."""
    build = partial(mlp, rows.read(np.zeros(1, np.int64), ["x"])["x"].shape[1], 64, 2)  # type: ignore[union-attr]
    fit = Fit(bench.size(20, 1))
    made = partial(bench.trained, build=build, rows=rows, keys=keys, inputs=("x",))
    hard = hardened(epsilon=epsilon, step=epsilon / 2, steps=3)
    robust = made("robust", fit=replace(fit, learning_rate=2e-2), recipe=hard)
    clean = ModuleTeacher("clean", build, made("clean", fit=fit), ("x",))
    return clean, ModuleTeacher("robust", build, robust, ("attacked",))


def free_adversary(
    build: Callable[[], nn.Module], weights: Path, *, epsilon: float
) -> AdversarialTeacher:
    """The adversary of `x`, whose numbers may be any, in ten steps of a quarter of epsilon."""
    ball = partial(AdversarialTeacher, epsilon=epsilon, step=epsilon / 4, low=None, high=None)
    return ball("adversary", build, weights, given=("x",))


def robustness(
    build: Callable[[], nn.Module],
    weights: Path,
    rows: ArrayRows,
    keys: Sequence[str],
    *,
    epsilon: float,
    steps: int = 20,
) -> dict[str, float]:
    """Accuracy on `x` as it is (`clean`), under attack (`robust`), and the mean of both (`weighted`)."""
    module = build()
    module.load_state_dict(load_state(weights))
    module.eval()
    import torch

    batch = rows.read(find_rows(rows, as_keys(keys)), ["x", "label"])
    x, label = torch.as_tensor(batch["x"]), torch.as_tensor(batch["label"])
    found = perturbed(
        *(module, [x], label), epsilon=epsilon, step=epsilon / 4, steps=steps, low=None, high=None
    )
    with torch.no_grad():
        clean, robust = (
            (module(given).argmax(-1) == label).double().mean().item() for given in (x, found)
        )
    return {"clean": clean, "robust": robust, "weighted": (clean + robust) / 2}
