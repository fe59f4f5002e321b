"""Decoders: from a few tokens that a student read to the whole of its input."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def patches_of(image: Tensor, patches: int) -> Tensor:
    """(n, patches, channels * side^2): the square patches of images, row after row, channels first.

    Args:
        image: (n, channels, height, width).
        patches: how many fill an image.

    >>> import torch
    >>> patches_of(torch.arange(16.0).reshape(1, 1, 4, 4), 4)[0, 1]
    tensor([2., 3., 6., 7.])
    """
    n, channels, height, width = image.shape
    side = isqrt(height * width // patches)
    if side == 0 or height % side or width % side or height * width != patches * side**2:
        raise ValueError(f"{patches} square patches do not fill an image of {height} x {width}")
    cut = image.reshape(n, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, patches, -1)


def masked_decoder(
    given: tuple[tuple[int, ...], ...],
    wanted: tuple[int, ...],
    *,
    width: int = 512,
    depth: int = 8,
    heads: int = 16,
) -> nn.Module:
    """The decoder of masked autoencoders (He et al. 2022, arXiv:2111.06377): tokens of the patches that
    were kept go to their places, a learned token stands at the others, and a transformer guesses pixels.

    Args:
        given: shapes of a row of its inputs: tokens (1 + kept, width), a class token first; and the mask
            (patches,), True where a patch was kept.
        wanted: shape of an image (channels, height, width).

    Returns:
        A module from (n, 1 + kept, width) and (n, patches) bool, as many True in every row, to
        (n, patches, channels * side^2) as `patches_of` cuts them.
    """
    import torch
    from torch import nn

    (_, taken), (patches,) = given
    channels, rows, columns = wanted

    class MaskedDecoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Linear(taken, width)
            self.unseen = nn.Parameter(torch.randn(width) * 0.02)
            self.places = nn.Parameter(torch.randn(1 + patches, width) * 0.02)
            self.blocks = nn.Sequential(
                *(
                    nn.TransformerEncoderLayer(
                        *(width, heads, 4 * width, 0.0), "gelu", batch_first=True, norm_first=True
                    )
                    for _ in range(depth)
                )
            )
            self.norm = nn.LayerNorm(width)
            self.output = nn.Linear(width, channels * rows * columns // patches)

        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            tokens = self.embedding(tokens)
            # The k-th True of a row takes token k; the class token is token 0 of the row.
            place = (mask.cumsum(1) * mask).unsqueeze(-1)
            kept = tokens.gather(1, place.expand(-1, -1, width))
            x = torch.where(mask.unsqueeze(-1), kept, self.unseen)
            x = torch.cat([tokens[:, :1], x], 1) + self.places
            pixels: Tensor = self.output(self.norm(self.blocks(x)[:, 1:]))
            return pixels

    return MaskedDecoder()
