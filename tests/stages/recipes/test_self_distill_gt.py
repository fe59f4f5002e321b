"""Self-distillation with ground truth: the kernel case exactly, and what its two terms are together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.stages import recipes
from stillroom.stages.recipes.self_distill_gt import (
    Floats,
    generations,
    limit,
    optimal_alpha,
    previous_error,
    smoother,
    truth_error,
)

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)
alphas = st.floats(0, 1)
ridges = st.sampled_from([0.05, 0.5, 3.0])


def problem(seed: int, rows: int = 30) -> tuple[Floats, Floats, Floats]:
    """Places on a line, their RBF kernel, and a noisy sine over them."""
    drawn = np.random.default_rng(seed)
    x = np.sort(drawn.uniform(0, 1, rows))
    y = np.sin(6 * x) + drawn.normal(0, 0.3, rows)
    return x, np.exp(-(((x[:, None] - x) / 0.2) ** 2)), y


@quick
@given(seeds, ridges, alphas)
def test_a_generation_minimises_its_objective(seed: int, ridge: float, alpha: float) -> None:
    """Its gradient over f = K c vanishes: a (f - y) + (1 - a)(f - previous) + ridge c, by K."""
    _, kernel, y = problem(seed, 12)
    for count in (1, 2, 3):
        previous = generations(kernel, y, ridge=ridge, alpha=alpha, count=count - 1)
        target = alpha * y + (1 - alpha) * previous
        c = np.linalg.solve(kernel + ridge * np.eye(12), target)
        found = generations(kernel, y, ridge=ridge, alpha=alpha, count=count)
        np.testing.assert_allclose(found, kernel @ c, atol=1e-9)
        slope = alpha * (found - y) + (1 - alpha) * (found - previous) + ridge * c
        np.testing.assert_allclose(slope, 0, atol=1e-9)


@quick
@given(seeds, ridges, st.floats(0.1, 1))
def test_with_ground_truth_generations_converge_to_a_larger_ridge(
    seed: int, ridge: float, alpha: float
) -> None:
    _, kernel, y = problem(seed)
    found = generations(kernel, y, ridge=ridge, alpha=alpha, count=300)
    np.testing.assert_allclose(found, limit(kernel, y, ridge=ridge, alpha=alpha), atol=1e-9)
    np.testing.assert_allclose(
        limit(kernel, y, ridge=ridge, alpha=alpha),
        kernel @ np.linalg.solve(kernel + ridge / alpha * np.eye(len(y)), y),
        atol=1e-8,
    )


@quick
@given(seeds, ridges, st.integers(1, 8))
def test_without_it_every_direction_shrinks_by_its_share_each_time(
    seed: int, ridge: float, count: int
) -> None:
    _, kernel, y = problem(seed)
    values, vectors = np.linalg.eigh(kernel)
    found = vectors.T @ generations(kernel, y, ridge=ridge, alpha=0.0, count=count)
    share = (values / (values + ridge)) ** count
    np.testing.assert_allclose(found, share * (vectors.T @ y), atol=1e-9)
    assert not limit(kernel, y, ridge=ridge, alpha=0.0).any()
    norms = [
        np.linalg.norm(generations(kernel, y, ridge=ridge, alpha=0.0, count=n)) for n in range(6)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(norms))


@quick
@given(seeds, ridges)
def test_with_ground_truth_alone_every_generation_is_the_first(seed: int, ridge: float) -> None:
    _, kernel, y = problem(seed)
    first = smoother(kernel, ridge) @ y
    for count in (1, 2, 9):
        made = generations(kernel, y, ridge=ridge, alpha=1.0, count=count)
        np.testing.assert_array_equal(made, first)


@quick
@given(seeds)
def test_the_optimal_alpha_is_where_a_search_ends(seed: int) -> None:
    """Held-out answers of a second generation are affine in alpha, and the error is least there."""
    x, kernel, y = problem(seed)
    held = np.random.default_rng(seed + 1).uniform(0, 1, 20)
    across, ridge = np.exp(-(((held[:, None] - x) / 0.2) ** 2)), 0.1
    first = smoother(kernel, ridge) @ y

    def answers(alpha: float) -> Floats:
        target = alpha * y + (1 - alpha) * first
        made: Floats = across @ np.linalg.solve(kernel + ridge * np.eye(len(x)), target)
        return made

    truth = np.sin(6 * held)
    best = optimal_alpha(truth, answers(1.0), answers(0.0))
    least = np.square(answers(best) - truth).sum()
    for step in (-1.0, -0.1, -1e-3, 1e-3, 0.1, 1.0):
        assert np.square(answers(best + step) - truth).sum() > least
    mixed = best * answers(1.0) + (1 - best) * answers(0.0)
    np.testing.assert_allclose(answers(best), mixed, atol=1e-6 * max(abs(best), 1))


def test_an_optimal_alpha_may_lie_outside_and_needs_two_models() -> None:
    truth, f1, f0 = np.array([0.0, 2.0]), np.array([0.0, 1.0]), np.array([0.0, 0.5])
    assert optimal_alpha(truth, f1, f0) == 3.0
    with pytest.raises(ValueError, match="answer the same on these rows; there is no best alpha"):
        optimal_alpha(truth, f1, f1.copy())


def slope(loss: Tensor, logits: Tensor) -> Tensor:
    """Of the mean loss."""
    (found,) = torch.autograd.grad(loss.mean(), logits)
    return found


@quick
@given(seeds, alphas)
def test_two_terms_have_the_gradient_of_the_error_to_their_mixture(seed: int, alpha: float) -> None:
    made = torch.Generator().manual_seed(seed)
    student, previous = torch.randn(2, 5, 7, generator=made, dtype=torch.float64) * 3
    label = torch.randint(7, (5,), generator=made)
    student.requires_grad_()
    names = {"student.logits": student, "teacher.logits": previous, "row.label": label}
    terms = recipes.find("self-distill-gt", alpha=alpha).terms
    found = sum((t.weighted(t.mean(names), names) for t in terms), torch.zeros(()))
    onehot = torch.nn.functional.one_hot(label, 7).double()
    target = alpha * onehot + (1 - alpha) * previous.softmax(-1)
    wanted = (student.softmax(-1) - target).square().mean()
    torch.testing.assert_close(slope(found, student), slope(wanted, student))
    constant = alpha * (1 - alpha) * (onehot - previous.softmax(-1)).square().mean()
    torch.testing.assert_close(found, wanted + constant)


def test_its_errors_vanish_only_where_probabilities_agree() -> None:
    sure = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    assert truth_error(sure, torch.tensor([0])).item() < 1e-20
    torch.testing.assert_close(truth_error(sure, torch.tensor([1])), torch.tensor([2 / 3]).double())
    assert previous_error(sure, sure + 5).item() < 1e-30
    assert previous_error(sure, sure.flip(-1)).item() > 0.6


def test_its_ends_read_only_what_they_need() -> None:
    first, last = (recipes.find("self-distill-gt", alpha=a) for a in (1.0, 0.0))
    assert (first.reads, first.columns) == ((), ("label",))
    assert (last.reads, last.columns) == (("logits",), ())
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"self-distill-gt: alpha must be in \[0, 1\], found"):
            recipes.find("self-distill-gt", alpha=alpha)
