"""Associative memories: patterns as buffers, recalled by the dynamics of dense Hopfield networks.

With patterns p_mu (k, size), states s of -1 and 1, and the overlaps n_mu = p_mu s / size, the energy of
interactions of order P is -size / 2 sum_mu n_mu^P (Krotov and Hopfield 2016, arXiv:1606.01164); P = 2 is
Hopfield's network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def overlaps(patterns: Tensor, state: Tensor) -> Tensor:
    """n_mu: (k, size) patterns and (n, size) states -> (n, k), in [-1, 1] where patterns are."""
    return state @ patterns.T / patterns.shape[1]


def energy(patterns: Tensor, state: Tensor, *, order: int) -> Tensor:
    """(n,): of each state; parallel updates at no temperature never raise it where `order` is even."""
    return -(patterns.shape[1] / 2) * overlaps(patterns, state).pow(order).sum(-1)


def updated(patterns: Tensor, state: Tensor, *, order: int) -> Tensor:
    """(n, size): every s_i <- sign(sum_mu n_mu^(P - 1) p_mu,i) at once; where that is 0 it stays.

    >>> import torch
    >>> updated(torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 1.0]]), order=4)
    tensor([[ 1.,  1., -1.]])
    """
    import torch

    field = overlaps(patterns, state).pow(order - 1) @ patterns
    return torch.where(field == 0, state, field.sign())


def recalled(patterns: Tensor, cue: Tensor, *, order: int, most: int = 50) -> Tensor:
    """(n, size): the states that these cues come to rest in, or are in after `most` updates."""
    state = cue
    for _ in range(most):
        moved = updated(patterns, state, order=order)
        if bool((moved == state).all()):
            break
        state = moved
    return state


def memory(slots: int, size: int, *, order: int = 4) -> nn.Module:
    """A module with a buffer `patterns` (slots, size), empty at first; nothing in it is optimised.

    Cues (n, size) in, a dict out: `state` (n, size) at rest, `overlaps` (n, slots) with each pattern.
    """
    import torch
    from torch import nn

    class Memory(nn.Module):
        patterns: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("patterns", torch.zeros(slots, size))
            self.order = order

        def forward(self, cue: Tensor) -> dict[str, Tensor]:
            state = recalled(self.patterns, cue.to(self.patterns.dtype), order=order)
            return {"state": state, "overlaps": overlaps(self.patterns, state)}

    return Memory()
