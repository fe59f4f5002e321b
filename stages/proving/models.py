"""Networks for proofs: small enough that five seeds take seconds."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between, over flattened rows: `mlp(64, 32, 10)`."""
    from torch import nn

    layers: list[nn.Module] = [nn.Flatten()]
    for given, made in pairwise(sizes):
        layers += [nn.Linear(given, made), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_layers(*sizes: int) -> dict[str, str]:
    """Its output and its last hidden layer, (n, sizes[-2]), as `logits` and `feature`."""
    return {"logits": "", "feature": str(2 * (len(sizes) - 2))}
