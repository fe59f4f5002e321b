"""USKD: the soft targets that a student makes for itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stillroom.stages import recipes
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.recipes.uskd import non_target, smoothed, target, weak_head, zipf

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)


def drawn(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (6, 7) of the student and of its weak head in float64, and labels."""
    made = torch.Generator().manual_seed(seed)
    student, weak = torch.randn(2, 6, 7, generator=made, dtype=torch.float64) * scale
    label = torch.randint(7, (6,), generator=made)
    return student.requires_grad_(), weak.requires_grad_(), label


@quick
@given(seeds)
def test_the_labels_own_weight_is_its_square_about_a_mean_of_one(seed: int) -> None:
    student, _, label = drawn(seed)
    right = student.detach().softmax(-1)[torch.arange(6), label]
    losses = target(student, label)
    weight = (losses / cross_entropy(student, label)).detach()
    torch.testing.assert_close(weight.mean(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(weight, right**2 + 1 - (right**2).mean())
    # The weight has no gradient: what arrives is the weight times that of the cross-entropy.
    losses.sum().backward()
    hot = F.one_hot(label, 7).double()
    torch.testing.assert_close(student.grad, weight[:, None] * (student.softmax(-1) - hot))


@quick
@given(seeds)
def test_zipfs_shares_are_those_of_the_papers_ranking(seed: int) -> None:
    student, weak, label = drawn(seed)
    found = zipf(student, weak, label)
    torch.testing.assert_close(found.sum(-1), torch.ones(6, dtype=torch.float64))
    s, w = student.detach().softmax(-1), weak.detach().softmax(-1)
    for row, y in enumerate(label.tolist()):
        score = w[row] / (1 - w[row, y]) + s[row] / (1 - s[row, y])
        order = sorted(range(7), key=lambda i: -float(score[i]))
        share = {one: 1 / rank for rank, one in enumerate(order, 1) if one != y}
        wanted = torch.tensor([share[i] for i in range(7) if i != y], dtype=torch.float64)
        torch.testing.assert_close(found[row], wanted / wanted.sum())


def test_a_student_that_is_sure_of_the_label_still_ranks_the_others() -> None:
    student = torch.tensor([[1e3, 1.0, 3.0, 2.0]])
    weak = torch.tensor([[1e3, 0.0, 0.0, 0.0]])
    shares = torch.tensor([[1 / 4, 1 / 2, 1 / 3]])
    found = zipf(student, weak, torch.tensor([0]))
    torch.testing.assert_close(found, shares / shares.sum())


@quick
@given(seeds)
def test_the_other_classes_part_moves_neither_the_label_nor_the_weak_head(seed: int) -> None:
    student, weak, label = drawn(seed)
    losses = non_target(student, weak, label)
    losses.sum().backward()
    assert weak.grad is None
    assert student.grad is not None
    assert (student.grad.gather(-1, label[:, None]) == 0).all()
    others = torch.ones(6, 7).scatter(-1, label[:, None], 0).bool()
    mine = student.detach()[others].reshape(6, 6)
    shares = zipf(student, weak, label)
    torch.testing.assert_close(student.grad[others].reshape(6, 6), mine.softmax(-1) - shares)
    torch.testing.assert_close(losses, -(shares * mine.log_softmax(-1)).sum(-1))


@quick
@given(seeds, st.sampled_from([0.0, 0.1, 1.0]))
def test_smoothing_is_torchs_own(seed: int, smoothing: float) -> None:
    student, _, label = drawn(seed)
    reference = F.cross_entropy(student, label, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(smoothed(student, label, smoothing=smoothing), reference)


def test_with_no_targets_of_its_own_it_is_labels() -> None:
    student, weak, label = drawn(1)
    given = {"student.logits": student, "head.weak": weak, "row.label": label}
    terms = recipes.find("uskd", alpha=0.0, beta=0.0, mu=0.0).terms
    found = sum(one.weighted(one.mean(given), given) for one in terms)
    torch.testing.assert_close(found, cross_entropy(student, label).mean())
    assert recipes.find("uskd").reads == ()
    with pytest.raises(ValueError, match="uskd: alpha, beta and mu must be at least 0"):
        recipes.find("uskd", beta=-0.1)


def test_the_weak_head_takes_a_feature_or_the_means_of_a_map() -> None:
    assert weak_head((5,), (3,))(torch.zeros(2, 5)).shape == (2, 3)
    head = weak_head((5, 4, 2), (3,))
    maps = torch.randn(2, 5, 4, 2)
    assert head(maps).shape == (2, 3)
    torch.testing.assert_close(head(maps), head(maps.flip(-1, -2)))
