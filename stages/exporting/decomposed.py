"""Operators that ONNX lacks, in terms of those that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def adaptive_max_pool2d(given: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(..., h, w) -> the largest of each of `size` windows, and where in h x w it lies.

    Window i of n over h begins at floor(i h / n) and ends before ceil((i + 1) h / n), as torch has it.

    >>> adaptive_max_pool2d(torch.arange(12.0).reshape(1, 3, 4), (2, 2))[0].tolist()
    [[[5.0, 7.0], [9.0, 11.0]]]
    """
    width = given.shape[-1]
    values, places = [], []
    for top, bottom in _windows(given.shape[-2], size[0]):
        for left, right in _windows(width, size[1]):
            window = given[..., top:bottom, left:right].flatten(-2)
            best = window.argmax(-1)
            values.append(window.amax(-1))
            down, along = best // (right - left), best % (right - left)
            places.append((top + down) * width + left + along)
    shape = (*given.shape[:-2], *size)
    return torch.stack(values, -1).reshape(shape), torch.stack(places, -1).reshape(shape)


def _windows(length: int, count: int) -> list[tuple[int, int]]:
    return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `ExportedProgram.run_decompositions` is to replace."""
    return {torch.ops.aten.adaptive_max_pool2d.default: adaptive_max_pool2d}
