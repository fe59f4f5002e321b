"""Losses on features: inner layers of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the features of (student - teacher)^2.

    FitNets' hint loss (Romero et al. 2015, arXiv:1412.6550, equation 3) with the mean in place of
    half the sum, so that its size does not grow with the width. No gradient reaches the teacher.

    Args:
        student: (n, ...) features, already projected to the teacher's shape.
        teacher: (n, ...) features of the same shape, as cached.

    Returns:
        (n,) losses.

    >>> import torch
    >>> squared_error(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([12.5000])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"squared_error: student {tuple(student.shape)} against teacher {tuple(teacher.shape)}; "
            "put a projector (stages.heads.projectors) between them"
        )
    return (student - teacher.detach()).square().reshape(len(student), -1).mean(-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(student, teacher) over all features of a row: 0 for the same direction, 2 for opposite.

    Args:
        student: (n, ...) features.
        teacher: (n, ...) features of the same shape, as cached.

    Returns:
        (n,) losses.

    >>> import torch
    >>> cosine_distance(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 7.0]]))
    tensor([0.])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"cosine_distance: student {tuple(student.shape)} against teacher {tuple(teacher.shape)}; "
            "put a projector (stages.heads.projectors) between them"
        )
    a, b = student.reshape(len(student), -1), teacher.detach().reshape(len(teacher), -1)
    norms = (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-12)
    cosine: Tensor = (a * b).sum(-1) / norms
    return 1 - cosine
