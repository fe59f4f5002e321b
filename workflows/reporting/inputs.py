"""A row of the data set as something to look at: a picture, a text, or its first numbers."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Column

LONGEST_TEXT = 400
"""Characters of a text that are shown."""
LARGEST_PICTURE = 160
"""Pixels of the longer side; larger pictures are averaged down."""
LARGEST_FILE_BYTES = 60_000
"""Of an encoded picture that is put into the page as it is."""
_NUMBERS = 8
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}


def shown_inputs(
    batch: Mapping[str, Column], columns: Sequence[str], rows: int
) -> list[list[dict[str, Any]]]:
    """For each of the rows its columns, each as `column`, `kind` and what that kind has."""
    return [[shown_input(name, batch[name][row]) for name in columns] for row in range(rows)]


def shown_input(column: str, value: Any) -> dict[str, Any]:
    """A value as it is put into a page.

    `picture`: `source` (a data: URI), `width`, `height` and, where brightness was stretched, `note`.
    `text`: `text`. Of anything else `numbers`: a text with the first of them and how many there are.
    """
    if isinstance(value, str):
        cut = len(value) > LONGEST_TEXT
        text = value[:LONGEST_TEXT].rstrip() + "…" if cut else value
        return {"column": column, "kind": "text", "text": text}
    if isinstance(value, bytes):
        return {"column": column, **_encoded(value)}
    array = np.asarray(value)
    picture = as_picture(array)
    if picture is None:
        return {"column": column, "kind": "numbers", "text": _numbers(array)}
    pixels, note = _stretched(_smaller(picture))
    return {
        "column": column,
        **_picture(png(pixels), "png", pixels.shape[1], pixels.shape[0]),
        **note,
    }


def as_picture(array: NDArray[Any]) -> NDArray[Any] | None:
    """(H, W, 1) or (H, W, 3) where an array is shaped as a picture of at least 4 by 4; else None."""
    if array.dtype.kind not in "uif" or array.ndim not in (2, 3):
        return None
    if array.ndim == 2:
        array = array[..., None]
    elif array.shape[0] in (1, 3) and min(array.shape[1:]) >= 4:
        array = np.moveaxis(array, 0, -1)
    fits = array.shape[-1] in (1, 3) and min(array.shape[:2]) >= 4
    # A table of tokens by features is no picture: one that is much longer than wide is shown as numbers.
    return array if fits and max(array.shape[:2]) <= 8 * min(array.shape[:2]) else None


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of (H, W, 1) or (H, W, 3) uint8 pixels; the same pixels give the same bytes."""
    height, width, channels = pixels.shape
    raw = np.zeros(
        (height, 1 + width * channels), np.uint8
    )  # each line begins with its filter, none
    raw[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in parts)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _picture(content: bytes, kind: str, width: int | None, height: int | None) -> dict[str, Any]:
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"kind": "picture", "source": source, "width": width, "height": height}


def _encoded(value: bytes) -> dict[str, Any]:
    """An encoded picture as it is, or how many bytes there are."""
    kind = next((name for magic, name in _KINDS.items() if value.startswith(magic)), "")
    if kind and len(value) <= LARGEST_FILE_BYTES:
        return _picture(value, kind, None, None)
    what = f"a {kind.upper()} of " if kind else ""
    return {"kind": "numbers", "text": f"{what}{len(value):,} bytes"}


def _smaller(picture: NDArray[Any]) -> NDArray[Any]:
    """Averaged over blocks until it is no larger than LARGEST_PICTURE."""
    step = -(-max(picture.shape[:2]) // LARGEST_PICTURE)
    if step == 1:
        return picture
    high, wide = (size // step * step for size in picture.shape[:2])
    blocks = picture[:high, :wide].reshape(high // step, step, wide // step, step, -1)
    smaller: NDArray[Any] = blocks.astype(np.float64).mean((1, 3)).astype(picture.dtype)
    return smaller


def _stretched(picture: NDArray[Any]) -> tuple[NDArray[np.uint8], Mapping[str, str]]:
    """As bytes: uint8 as they are, numbers from 0 to 1 times 255, others from their least to largest."""
    if picture.dtype == np.uint8:
        return picture, {}
    values = np.nan_to_num(picture.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    if picture.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(values * 255).astype(np.uint8), {}
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    note = f"brightness from {low:.3g} to {high:.3g}"
    return np.rint(scaled * 255).astype(np.uint8), {"note": note}


def _numbers(array: NDArray[Any]) -> str:
    flat = array.reshape(-1)
    if flat.dtype.names is not None:
        return f"{len(flat):,} records"
    first = ", ".join(f"{value:.4g}" for value in flat[:_NUMBERS].tolist())
    return first if len(flat) <= _NUMBERS else f"{first}, … ({len(flat):,} numbers)"
