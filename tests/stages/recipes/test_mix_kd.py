"""mix-kd: a row's scale and offset do not count, and unmixed views are the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    ArrayRows,
    Evaluation,
    Fit,
    Student,
    ViewedRows,
    recipes,
    train,
)
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.recipes import mix_kd
from tests.stages.view_builders import album, viewed

floats = st.floats(0.125, 10)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 2**16), floats, floats, st.floats(-5, 5), st.floats(-5, 5))
@settings(max_examples=25, deadline=None)
def test_scale_and_offset_of_either_side_do_not_count(
    seed: int, a: float, c: float, b: float, d: float
) -> None:
    student, teacher = drawn(seed, 4, 7), drawn(seed + 1, 4, 7)
    plainly = mix_kd.scaled_kl(student, teacher)
    torch.testing.assert_close(mix_kd.scaled_kl(a * student + b, c * teacher + d), plainly)
    label = torch.tensor([0, 3, 6, 1])
    one = mix_kd.mixed_cross_entropy(student, label, label, torch.ones(4))
    torch.testing.assert_close(
        mix_kd.mixed_cross_entropy(a * student + b, label, label, torch.ones(4)), one
    )


def test_the_gradient_changes_neither_a_rows_offset_nor_its_scale() -> None:
    student, teacher = drawn(0, 5, 10).requires_grad_(), drawn(1, 5, 10).requires_grad_()
    mix_kd.scaled_kl(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0.1
    centred = student.detach() - student.detach().mean(-1, keepdim=True)
    zeros = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(student.grad.sum(-1), zeros, atol=1e-12, rtol=0)
    torch.testing.assert_close((student.grad * centred).sum(-1), zeros, atol=1e-12, rtol=0)


def test_equal_logits_stay_finite_with_their_gradient() -> None:
    student = torch.ones(2, 4, requires_grad=True)
    mix_kd.scaled_kl(student, torch.zeros(2, 4)).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_labels_are_mixed_by_the_weight() -> None:
    logits, label, partner = drawn(3, 2, 4), torch.tensor([1, 1]), torch.tensor([2, 2])
    weight = torch.tensor([1.0, 0.25])
    found = mix_kd.mixed_cross_entropy(logits, label, partner, weight, scale=False)
    own, other = cross_entropy(logits, label), cross_entropy(logits, partner)
    torch.testing.assert_close(found[0], own[0])
    torch.testing.assert_close(found[1], 0.25 * own[1] + 0.75 * other[1])


def pixels(count: int = 400) -> ArrayRows:
    image = np.random.default_rng(0).random((count, 1, 2, 2)).astype(np.float32)
    return ArrayRows([f"r{i}" for i in range(count)], image=image, label=np.arange(count) % 4)


def test_a_share_of_views_is_mixed_and_the_others_are_the_rows_themselves() -> None:
    rows = pixels()
    image = rows.read(np.arange(400), ["image"])["image"]
    for share, low, high in ((0.0, 0, 0), (0.1, 50, 120), (1.0, 800, 800)):
        plan = mix_kd.plan(share=share)
        shown = ViewedRows(rows, plan, views=2, plain=False)
        read = shown.read(np.arange(800), ["image", "view.parameters"])
        weight = plan.weight(np.asarray(read["view.parameters"]), (1, 2, 2))
        assert low <= (weight < 1).sum() <= high
        same = np.concatenate([image, image])[weight == 1]
        assert np.array_equal(np.asarray(read["image"])[weight == 1], same)


def test_what_is_read_follows_from_what_counts() -> None:
    assert recipes.find("mix-kd").columns == ("label", "partner.label", "weight")
    assert recipes.find("mix-kd", gamma=0.0).columns == ()
    assert recipes.find("mix-kd", alpha=0.0).reads == ()
    with pytest.raises(ValueError, match=r"mix-kd: alpha and gamma must be .*found 0 and 0"):
        recipes.find("mix-kd", alpha=0, gamma=0)


def four(*sizes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4))


def deviation(tensors: Mapping[str, Any]) -> dict[str, Any]:
    logits = tensors["student.logits"]
    return {"deviation": logits.std(-1).mean().item()}


def test_it_learns_from_replayed_mixes_and_answers_with_scaled_logits(tmp_path: Path) -> None:
    rows = album(24)
    snapshot = viewed(tmp_path / "c", mix_kd.plan(share=0.5), rows)
    fit = Fit(epochs=2, batch_size=12, views=2)
    keys = rows.keys.to_pylist()
    (record,) = train(
        [Student("s", four, recipes.find("mix-kd"), fit=fit)],
        rows,
        snapshot,
        splits={"train": keys[:20], "test": keys[20:]},
        evaluation=Evaluation("test", deviation),
        folder=tmp_path / "s",
        runner=LocalRunner(),
    )
    assert record.metrics["deviation"] == pytest.approx(1.0, abs=1e-5)
    assert record.content["reads"] == ["logits"]
