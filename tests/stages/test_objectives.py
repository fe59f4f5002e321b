"""Losses equal their formulas, their references in torch, and give the teacher no gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.features import cosine_distance, squared_error
from stillroom.stages.objectives.logits import cross_entropy, kl

# The first call of anything in torch takes long; how long a case takes is not what is tested.
quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 4.0, 20.0])


def pair(seed: int, *shape: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """A student's and a teacher's values in float64, both asking for gradients."""
    made = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, *shape, generator=made, dtype=torch.float64) * scale
    return drawn[0].clone().requires_grad_(), drawn[1].clone().requires_grad_()


@quick
@given(seeds, temperatures)
def test_kl_is_never_negative_and_zero_for_logits_that_differ_by_a_constant(
    seed: int, temperature: float
) -> None:
    student, teacher = pair(seed, 5, 7)
    assert (kl(student, teacher, temperature=temperature) > 1e-6).all()
    same = kl(teacher + 11.0, teacher, temperature=temperature)
    torch.testing.assert_close(same, torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)


@quick
@given(seeds, temperatures)
def test_kl_equals_torchs_own_with_hintons_factor(seed: int, temperature: float) -> None:
    student, teacher = pair(seed, 5, 7)
    reference = F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    torch.testing.assert_close(
        kl(student, teacher, temperature=temperature), reference * temperature**2
    )


@quick
@given(seeds, temperatures)
def test_the_gradient_of_kl_is_t_times_the_difference_of_probabilities(
    seed: int, temperature: float
) -> None:
    student, teacher = pair(seed, 5, 7)
    kl(student, teacher, temperature=temperature).sum().backward()
    p, q = ((x.detach() / temperature).softmax(-1) for x in (teacher, student))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, temperature * (q - p))
    assert teacher.grad is None


@quick
@given(seeds)
def test_at_high_temperature_kl_is_half_the_squared_error_of_centred_logits(seed: int) -> None:
    # Hinton, Vinyals, Dean 2015, equation 4; per class the mean in place of the sum.
    student, teacher = pair(seed, 5, 7)
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = gap.square().sum(-1) / (2 * 7)
    torch.testing.assert_close(kl(student, teacher, temperature=1e4), limit, rtol=1e-2, atol=1e-4)


@quick
@given(seeds)
def test_cross_entropy_equals_torchs_own(seed: int) -> None:
    logits, _ = pair(seed, 5, 7)
    label = torch.randint(7, (5,), generator=torch.Generator().manual_seed(seed))
    reference = F.cross_entropy(logits, label, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, label), reference)
    torch.testing.assert_close(cross_entropy(logits, label.to(torch.uint8)), reference)


def test_cross_entropy_of_a_sure_answer_is_the_log_of_the_classes_it_left() -> None:
    assert cross_entropy(torch.zeros(1, 8), torch.tensor([3])).item() == pytest.approx(math.log(8))


@quick
@given(seeds)
def test_squared_error_equals_torchs_own_and_takes_one_number_a_row(seed: int) -> None:
    student, teacher = pair(seed, 5, 3, 2)
    reference = F.mse_loss(student, teacher, reduction="none").mean((1, 2))
    torch.testing.assert_close(squared_error(student, teacher), reference)
    one = squared_error(student[:, 0, 0], teacher[:, 0, 0])
    torch.testing.assert_close(one, (student - teacher)[:, 0, 0].square())


@quick
@given(seeds)
def test_cosine_distance_equals_torchs_own_and_sees_directions_only(seed: int) -> None:
    student, teacher = pair(seed, 5, 6)
    reference = 1 - F.cosine_similarity(student, teacher)
    torch.testing.assert_close(cosine_distance(student, teacher), reference)
    torch.testing.assert_close(cosine_distance(student * 9, teacher / 9), reference)
    ends = torch.tensor([0.0, 2.0], dtype=torch.float64)
    both = cosine_distance(torch.stack([student[0]] * 2), torch.stack([student[0], -student[0]]))
    torch.testing.assert_close(both, ends)


def test_cosine_distance_of_nothing_is_a_number_with_a_gradient() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    losses = cosine_distance(student, torch.ones(2, 3))
    losses.sum().backward()
    assert losses.tolist() == [1.0, 1.0]
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("objective", [squared_error, cosine_distance, kl])
def test_no_gradient_reaches_the_teacher(objective: object) -> None:
    student, teacher = pair(0, 5, 7)
    objective(student, teacher).sum().backward()  # type: ignore[operator]
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("objective", [squared_error, cosine_distance, kl])
@pytest.mark.parametrize("other", [(5, 1), (1, 7), (5, 6), (4, 7)])
def test_shapes_that_would_only_broadcast_are_refused(
    objective: object, other: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"student \(5, 7\) against teacher"):
        objective(torch.zeros(5, 7), torch.zeros(other))  # type: ignore[operator]


@pytest.mark.parametrize("given_shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("wanted", [(), (4,), (2, 5, 1)])
def test_a_projector_goes_from_any_shape_to_any_shape(
    given_shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    projector = linear_projector(given_shape, wanted)
    assert projector(torch.zeros(6, *given_shape)).shape == (6, *wanted)
