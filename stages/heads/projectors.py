"""Projectors: from the student's features to the shape of the teacher's."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def linear_projector(given: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """One linear layer over a row's flattened features (FitNets' regressor for dense layers).

    Args:
        given: shape of one row of the student's features.
        wanted: shape of one row of the teacher's features.

    Returns:
        A module from (n, *given) to (n, *wanted).
    """
    from torch import nn

    flat = nn.Flatten() if given else nn.Unflatten(0, (-1, 1))
    shaped = nn.Unflatten(1, wanted) if wanted else nn.Flatten(0)
    return nn.Sequential(flat, nn.Linear(prod(given), prod(wanted)), shaped)


def token_projector(given: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """One linear layer over the last axis, the same for every token: (n, ..., width) to (n, ..., dim).

    Args:
        given: shape of one row of the student's tokens.
        wanted: shape of one row of the teacher's tokens; only its last axis counts.
    """
    from torch import nn

    return nn.Linear(given[-1], wanted[-1])
