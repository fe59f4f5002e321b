"""Small transformers for proofs, over tokens and over patches of images; their blocks are torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def token_transformer(
    *, vocabulary: int, tokens: int, width: int, depth: int, heads: int
) -> nn.Module:
    """(n, tokens) ids and (n, tokens) bool, which marks those that are there, to logits (n, tokens,
    vocabulary) of each token.

    Its blocks are `blocks.0`, ..., their attention modules `blocks.0.self_attn`.
    """
    import torch
    from torch import Tensor, nn

    class TokenTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            self.places = nn.Parameter(torch.randn(tokens, width))
            self.blocks = transformer_blocks(width, depth, heads)
            self.output = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

        def forward(self, ids: Tensor, there: Tensor) -> Tensor:
            x = self.embedding(ids) + self.places
            for block in self.blocks:
                x = block(x, src_key_padding_mask=~there)
            logits: Tensor = self.output(x)
            return logits

    return TokenTransformer()


def patch_transformer(
    *,
    patch: int,
    patches: int,
    width: int,
    depth: int,
    heads: int,
    channels: int = 1,
    until: int | None = None,
) -> nn.Module:
    """(n, channels, height, width) images to tokens (n, 1 + patches, width): a class token, then square
    patches of `patch` pixels, row after row.

    With a second argument (n, patches) bool, which marks equally many patches in every row, only the
    marked ones are read: (n, 1 + marked, width). Its blocks are `blocks.0`, ..., of which the first
    `until` run, all if that is None: a teacher that is asked for an inner block needs no more.
    """
    import torch
    from torch import Tensor, nn

    from stillroom.stages.heads.decoders import patches_of

    class PatchTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Linear(channels * patch**2, width)
            self.places = nn.Parameter(torch.randn(patches, width) * 0.2)
            self.first = nn.Parameter(torch.randn(width) * 0.2)
            self.blocks = transformer_blocks(width, depth, heads)
            self.norm = nn.LayerNorm(width)

        def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
            x = self.embedding(patches_of(image, patches)) + self.places
            if mask is not None:
                x = x[mask].unflatten(0, (len(x), -1))
            x = torch.cat([self.first.expand(len(x), 1, -1), x], 1)
            for block in self.blocks[:until]:
                x = block(x)
            tokens: Tensor = self.norm(x)
            return tokens

    return PatchTransformer()


def transformer_blocks(width: int, depth: int, heads: int) -> nn.ModuleList:
    """Blocks with their norms first, twice as wide inside, without dropout."""
    from torch import nn

    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            *(width, heads, 2 * width, 0.0), "gelu", batch_first=True, norm_first=True
        )
        for _ in range(depth)
    )
