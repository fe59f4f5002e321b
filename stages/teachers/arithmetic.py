"""How torch computes while a teacher runs: process-wide settings, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Matmul = Literal["highest", "high", "medium"]


@contextmanager
def arithmetic(threads: int, matmul: Matmul, cudnn_tf32: bool) -> Iterator[None]:
    """So many CPU threads; float32 products and convolutions as precise as said.

    The two last ones are set and not only read: what a worker's process happens to have set would
    otherwise change the numbers of one identity.
    """
    import torch

    convolutions = torch.backends.cudnn
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), convolutions.allow_tf32
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    convolutions.allow_tf32 = cudnn_tf32
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        convolutions.allow_tf32 = before[2]
