"""NKD: how it follows from plain distillation, and what its two parts do to which logit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.stages import ArrayRows, recipes
from stillroom.stages.objectives.logits import cross_entropy, kl, other_classes
from stillroom.stages.proving.data import flipped, relabelled
from stillroom.stages.recipes.nkd import non_target, target

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)
taus = st.sampled_from([0.5, 1.0, 3.0])


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A student's and a teacher's logits (5, 7) in float64, and labels."""
    made = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 7, generator=made, dtype=torch.float64) * 3
    return student.requires_grad_(), teacher, torch.randint(7, (5,), generator=made)


@quick
@given(seeds)
def test_plain_distillation_is_a_binary_part_and_the_others_weighed_by_doubt(seed: int) -> None:
    student, teacher, label = drawn(seed)
    s, t = (z.softmax(-1).gather(-1, label[:, None]).squeeze(-1) for z in (student, teacher))
    binary = t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()
    others = kl(other_classes(student, label), other_classes(teacher, label))
    torch.testing.assert_close(kl(student, teacher), binary + (1 - t) * others)


@quick
@given(seeds, taus)
def test_the_non_target_part_is_the_cross_entropy_of_the_normalised_others(
    seed: int, tau: float
) -> None:
    student, teacher, label = drawn(seed)
    wanted = []
    for s, t, y in zip(student, teacher, label.tolist(), strict=True):
        keep = [i for i in range(7) if i != y]
        n_s, n_t = ((z[keep] / tau).softmax(-1) for z in (s, t))
        wanted.append(-(tau**2) * (n_t * n_s.log()).sum())
    found = non_target(student, teacher, label, temperature=tau)
    torch.testing.assert_close(found, torch.stack(wanted))


@quick
@given(seeds, taus)
def test_the_non_target_part_leaves_the_labels_logit_alone(seed: int, tau: float) -> None:
    student, teacher, label = drawn(seed)
    non_target(student, teacher, label, temperature=tau).sum().backward()
    assert student.grad is not None
    at = student.grad.gather(-1, label[:, None])
    assert (at == 0).all()
    assert student.grad.abs().sum() > 0
    torch.testing.assert_close(student.grad.sum(-1), torch.zeros(5, dtype=torch.float64))


@quick
@given(seeds, taus, st.floats(-5, 5))
def test_the_non_target_part_is_smallest_where_the_others_are_alike(
    seed: int, tau: float, shift: float
) -> None:
    _, teacher, label = drawn(seed)
    # The label's own logit may be anything, and a constant more on all others changes nothing.
    student = (teacher + shift).scatter(-1, label[:, None], 40.0).requires_grad_()
    least = non_target(student, teacher, label, temperature=tau)
    least.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    moved = student.detach() + torch.randn(5, 7, dtype=torch.float64)
    assert (non_target(moved, teacher, label, temperature=tau) >= least - 1e-12).all()


@quick
@given(seeds)
def test_the_target_part_is_cross_entropy_weighed_by_the_teachers_own_share(seed: int) -> None:
    student, teacher, label = drawn(seed)
    share = teacher.softmax(-1).gather(-1, label[:, None]).squeeze(-1)
    torch.testing.assert_close(
        target(student, teacher, label), share * cross_entropy(student, label)
    )


def test_no_gradient_reaches_the_teacher_and_a_sure_teacher_gives_numbers() -> None:
    student, teacher, label = drawn(0)
    teacher = (teacher * 1e3).requires_grad_()
    loss = target(student, teacher, label) + non_target(student * 1e3, teacher, label)
    loss.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_without_other_classes_it_is_labels_weighed_anew() -> None:
    student, teacher, label = drawn(3)
    given = {"student.logits": student, "teacher.logits": teacher, "row.label": label}
    terms = recipes.find("nkd", gamma=0.0, tau=2.0).terms
    found = sum(one.weighted(one(given), given) for one in terms)
    wanted = cross_entropy(student, label) + target(student, teacher, label)
    torch.testing.assert_close(found, wanted)
    for bad in ({"gamma": -1.0}, {"tau": 0.0}):
        with pytest.raises(ValueError, match="nkd: gamma must be at least 0 and tau above 0"):
            recipes.find("nkd", **bad)


@quick
@given(seeds, st.sampled_from([0.0, 0.2, 1.0]))
def test_wrong_labels_are_as_many_as_were_asked_for_and_all_wrong(seed: int, share: float) -> None:
    keys = [f"r{i}" for i in range(50)]
    rows = ArrayRows(keys, label=np.arange(50) % 10)
    wrong = partial(flipped, share=share, classes=10, seed=seed)
    before, after = (
        np.asarray(r.read(np.arange(50), ["label"])["label"])
        for r in (rows, relabelled(rows, keys[:40], wrong))
    )
    assert (before != after).sum() == round(share * 40)
    assert (before == after)[40:].all()
    assert set(after) <= set(range(10))
