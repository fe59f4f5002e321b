"""The student: a bag of hashed words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentences_data import BUCKETS

if TYPE_CHECKING:
    from torch import Tensor, nn


def bag(width: int, *, drop: float) -> nn.Module:
    """A weighted mean of word vectors and one linear layer: no order, no context.

    While it trains, each word is left out with probability `drop`.
    """
    import torch
    from torch import nn

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vectors = nn.EmbeddingBag(BUCKETS, width, mode="sum", padding_idx=0)
            self.weight = nn.Embedding(BUCKETS, 1, padding_idx=0)
            self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 384))
            nn.init.normal_(self.vectors.weight, std=0.05)
            nn.init.zeros_(self.weight.weight)

        def forward(self, summary: Tensor, details: Tensor) -> dict[str, Tensor]:
            return {"summary": self.embed(summary), "details": self.embed(details)}

        def embed(self, ids: Tensor) -> Tensor:
            there = ids > 0
            if self.training:
                there &= torch.rand(ids.shape, device=ids.device) >= drop
            weight = nn.functional.softplus(self.weight(ids)[..., 0]) * there
            joined = self.vectors(ids, per_sample_weights=weight)
            joined = joined / weight.sum(1, keepdim=True).clamp_min(1e-6).sqrt()
            return nn.functional.normalize(self.out(joined), dim=-1)

    return Bag()
