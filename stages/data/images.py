"""Encoded images as numbers: what Pillow makes of a file's bytes, or why it can make nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import MissingPackageError, RowsError, nearest

Mode = Literal["RGB", "L"]
Resize = Literal["bilinear", "bicubic", "box", "nearest"]
SUFFIXES = frozenset(
    ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm")
)
"""Endings, in lower case, of files that are taken as images."""
_NARROWED = ("I", "F")
"""Pillow's modes of more than 8 bits a channel, which it would clip without a word."""


@dataclass(frozen=True)
class Decode:
    """How encoded images become uint8 arrays: (height, width, 3), of mode "L" (height, width).

    As Pillow opens and converts them: the first frame, transparency dropped, the orientation that a
    camera noted not applied. With `size` they are resized to it whole, without keeping the sides'
    ratio and without cropping; "bilinear", "bicubic" and "box" widen their filter where they shrink
    (antialiasing). Rows of one data set need one shape, so images of several sizes need `size`.

    A row's hash covers the file's bytes and these settings, not the pixels: another version of
    Pillow is no other row.
    """

    size: tuple[int, int] | None = None
    """Height and width in pixels; None: as the image is."""
    mode: Mode = "RGB"
    """What it is converted to: colours or grey."""
    resize: Resize = "bilinear"
    """How it is resized."""

    def __post_init__(self) -> None:
        """ValueError for settings that no image can have."""
        for name, value, known in (("mode", self.mode, Mode), ("resize", self.resize, Resize)):
            if value not in get_args(known):
                raise ValueError(f"Decode: {name} {value!r}; {nearest(value, get_args(known))}")
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))
            if len(self.size) != 2 or any(type(n) is not int or n < 1 for n in self.size):
                raise ValueError(f"Decode: size {self.size}; expected (height, width) in pixels")

    def __str__(self) -> str:
        """One spelling, which enters the hash of the rows."""
        if self.size is None:
            return self.mode
        return f"{self.mode} {self.size[0]}x{self.size[1]} {self.resize}"

    def __call__(self, content: bytes) -> NDArray[np.uint8]:
        """The image; RowsError says what is wrong with these bytes."""
        made: NDArray[np.uint8] = _opened(content, self._pixels)
        return made

    def _pixels(self, opened: Any) -> NDArray[np.uint8]:
        if opened.mode.startswith(_NARROWED):
            raise RowsError(
                f"the image has mode {opened.mode}, more than 8 bits a channel; convert it, or give the "
                "teacher the bytes"
            )
        made = opened.convert(self.mode)
        if self.size is not None:
            how = _pillow()[0].Resampling[self.resize.upper()]
            made = made.resize((self.size[1], self.size[0]), how)
        return np.asarray(made)


def check_image(content: bytes) -> None:
    """RowsError says what is wrong when these bytes cannot be decoded."""
    _opened(content, lambda opened: opened.load())


def _opened(content: bytes, use: Callable[[Any], Any]) -> Any:
    image, files = _pillow()
    if not content:
        raise RowsError("the image is empty: 0 bytes")
    if files.LOAD_TRUNCATED_IMAGES:
        raise RowsError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES was switched on, so that Pillow would fill up cut "
            "images without a word; switch it off"
        )
    limit = image.MAX_IMAGE_PIXELS or math.inf
    try:
        with image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            if width * height > limit:
                raise RowsError(_too_large(f"{width:,} x {height:,} pixels"))
            return use(opened)
    except (RowsError, MemoryError):
        raise
    except (image.DecompressionBombError, image.DecompressionBombWarning) as error:
        raise RowsError(_too_large(str(error))) from error
    except Exception as error:  # what a decoder raises for damaged bytes is its own affair
        raise RowsError(f"the image cannot be decoded: {_plain(error)}") from error


def _too_large(said: str) -> str:
    return (
        f"the image is larger than PIL.Image.MAX_IMAGE_PIXELS allows ({said}); a few bytes can claim "
        "any size. Raise that limit if it is honest"
    )


def _plain(error: Exception) -> str:
    said = str(error) or type(error).__name__
    return "no image that Pillow knows" if "cannot identify" in said else said


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageFile
    except ImportError as error:
        raise MissingPackageError(
            "decoding images needs the package Pillow: pip install 'stillroom[images]'"
        ) from error
    return Image, ImageFile
