"""Boxes of images resized: nearest and bilinear, by formulas that no library's next version changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.views.numbers import Int64s

Images = NDArray[Any]
"""(n, height, width, channels), uint8 or float32."""


def finished(values: NDArray[np.float32], dtype: np.dtype[Any]) -> Images:
    """float32 as they are; to uint8 rounded half to even, from 0 to 255."""
    if dtype == np.float32:
        return values
    return np.clip(np.rint(values), 0, 255).astype(dtype)


def nearest(images: Images, box: NDArray[np.int32], size: tuple[int, ...]) -> Images:
    """Pixel i of `size` along a side of length n is pixel floor((2 i + 1) n / (2 size)) of the box."""
    top, left, height, width = (side[:, None] for side in box.astype(np.int64).T)
    down = top + (2 * np.arange(size[0]) + 1) * height // (2 * size[0])
    along = left + (2 * np.arange(size[1]) + 1) * width // (2 * size[1])
    return _columns(_rows(images, down), along)


def bilinear(images: Images, box: NDArray[np.int32], size: tuple[int, ...]) -> Images:
    """Between the four pixels around each place, which never lie outside the box; not antialiased.

    Pixel i along a side of length n lies at p = (2 i + 1) n / (2 size) - 1/2, held within 0 and n - 1
    (float64). With f = p - floor(p) in float32: first (1 - f) a + f b of the row above and the row
    below, then the same along each row, all in float32; uint8 is rounded once, at the end.
    """
    top, left, height, width = (side[:, None] for side in box.astype(np.int64).T)
    low, high, down = _around(size[0], top, height)
    first, last, along = _around(size[1], left, width)
    f = down[:, :, None, None]
    between = (1 - f) * _rows(images, low) + f * _rows(images, high)
    f = along[:, None, :, None]
    values = (1 - f) * _columns(between, first) + f * _columns(between, last)
    return finished(values, images.dtype)


# Taking from a flat array is several times faster than indexing three axes at once.
def _rows(images: Images, rows: Int64s) -> Images:
    """(n, out, width, channels): rows (n, out) of each image."""
    n, height, width, channels = images.shape
    flat = np.ascontiguousarray(images).reshape(n * height, width * channels)
    taken = flat.take(np.arange(n)[:, None] * height + rows, axis=0)
    return np.asarray(taken.reshape(n, -1, width, channels))


def _columns(images: Images, columns: Int64s) -> Images:
    """(n, height, out, channels): columns (n, out) of each image."""
    n, height, width, channels = images.shape
    start = np.arange(n * height).reshape(n, height, 1) * width
    flat = np.ascontiguousarray(images).reshape(n * height * width, channels)
    # Single channels as plain numbers: items of one number each cost twice the time.
    flat = flat[:, 0] if channels == 1 else flat
    taken = flat.take(start + columns[:, None, :], axis=0)
    return np.asarray(taken.reshape(n, height, -1, channels))


def _around(size: int, start: Int64s, length: Int64s) -> tuple[Int64s, Int64s, NDArray[np.float32]]:
    """Along one side: the pixel before each place, the one behind it, and how far it is between."""
    place = (2 * np.arange(size) + 1) * length / (2 * size) - 0.5
    place = np.clip(place, 0, length - 1)
    before = np.floor(place).astype(np.int64)
    between = (place - before).astype(np.float32)
    return start + before, start + np.minimum(before + 1, length - 1), between
