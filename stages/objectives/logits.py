"""Losses on class scores (logits): labels and soft targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits)[label].

    Args:
        logits: (n, classes) floating point.
        label: (n,) integer class of each row; below 0: it has none, and its loss is NaN, which a mask
            (`where=`) must leave out.

    Returns:
        (n,) losses in nats.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([2, -1]))
    tensor([1.3863,    nan])
    """
    known = label.long().clamp_min(0).unsqueeze(-1)
    losses = -logits.log_softmax(-1).gather(-1, known).squeeze(-1)
    return losses.masked_fill(label < 0, float("nan"))


def soft_cross_entropy(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-sum over classes of target log softmax(logits / T), without T^2.

    Args:
        logits: (n, classes) floating point.
        target: (n, classes) weights of the classes, as they are; no gradient reaches them.
        temperature: T > 0, of the logits alone.

    Returns:
        (n,) losses in nats.

    >>> import torch
    >>> soft_cross_entropy(torch.zeros(1, 4), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    tensor([1.3863])
    """
    if logits.shape != target.shape:
        raise ValueError(
            f"soft_cross_entropy: logits {tuple(logits.shape)} against target {tuple(target.shape)}; "
            "both need the same classes"
        )
    return -(target.detach() * (logits / temperature).log_softmax(-1)).sum(-1)


def other_classes(logits: Tensor, label: Tensor) -> Tensor:
    """The logits of every class but the label, in their order: what is normalised over non-targets.

    Args:
        logits: (n, classes) floating point.
        label: (n,) integer class of each row.

    Returns:
        (n, classes - 1) logits.

    >>> import torch
    >>> other_classes(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1]))
    tensor([[1., 3.]])
    """
    others = logits.new_ones(logits.shape).scatter(-1, label.long().unsqueeze(-1), 0).bool()
    return logits[others].reshape(len(logits), -1)


def kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)).

    The factor T^2 keeps gradients of one size as T changes (Hinton, Vinyals, Dean 2015,
    arXiv:1503.02531, section 2). No gradient reaches the teacher.

    Args:
        student: (n, classes) logits.
        teacher: (n, classes) logits, as cached.
        temperature: T > 0.

    Returns:
        (n,) losses in nats, zero where the two agree up to a constant.

    >>> import torch
    >>> kl(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 2.0]]), temperature=4.0).abs() < 1e-6
    tensor([True])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"kl: student {tuple(student.shape)} against teacher {tuple(teacher.shape)}; both need the "
            "same classes"
        )
    target = (teacher.detach() / temperature).log_softmax(-1)
    answer = (student / temperature).log_softmax(-1)
    return (target.exp() * (target - answer)).sum(-1) * temperature**2
