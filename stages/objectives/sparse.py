"""Logits of which the k largest are stored: both sides on those k classes and one bucket for the others.

The buckets of a student and of a teacher are two distributions over the same k + 1 things, which any
divergence compares; with k = all classes they are the distributions themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def buckets(logits: Tensor, indices: Tensor) -> Tensor:
    """(n, tokens, k + 1) log-probabilities of k classes and of all others together, (n, tokens, k) where
    there are no others.

    Args:
        logits: (n, tokens or more, classes).
        indices: (n, tokens, k) whole numbers, different ones for each token.
    """
    import torch

    every = logits[:, : indices.shape[1]].log_softmax(-1)
    kept = every.gather(-1, indices)
    if indices.shape[-1] == every.shape[-1]:
        return kept
    others = every.scatter(-1, indices, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([kept, others], -1)


def stored_buckets(logits: Tensor, indices: Tensor, values: Tensor, tail: Tensor) -> Tensor:
    """The teacher's own, as topk(k) stores them: log-probabilities (n, tokens, k), and the tail's
    probability (n, tokens). No gradient reaches them."""
    import torch

    values, tail = values.detach(), tail.detach()
    if indices.shape[-1] == logits.shape[-1]:
        return values
    return torch.cat([values, tail.clamp_min(1e-30).log().unsqueeze(-1)], -1)
