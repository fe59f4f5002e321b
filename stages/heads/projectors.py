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

    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(given), prod(wanted)), nn.Unflatten(1, wanted or (1,))
    )
