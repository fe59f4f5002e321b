"""Transforms of views that change pixels where they are: colour, noise, masks of patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.views.boxes import (
    Drawn,
    Fields,
    Shape,
    require_number,
    require_range,
)
from stillroom.stages.views.numbers import Numbers, noise
from stillroom.stages.views.resizing import Images, finished
from stillroom.storage.errors import RowsError

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Luma of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True)
class Colour:
    """Brightness, contrast and saturation, each scaled by a factor; 1 changes nothing.

    float32 images lie between 0 and 1, uint8 between 0 and 255; what leaves that is cut off after
    each of the three. uint8 is rounded once, at the end.
    """

    brightness: tuple[float, float] = (0.6, 1.4)
    contrast: tuple[float, float] = (0.6, 1.4)
    saturation: tuple[float, float] = (0.6, 1.4)
    kind: ClassVar[str] = "colour"
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse ranges of factors below 0."""
        for name in ("brightness", "contrast", "saturation"):
            require_range(f"Colour {name}", getattr(self, name), 0, 100)

    def check(self, shape: Shape) -> None:
        """RowsError unless images are grey or of red, green and blue."""
        if shape[2] not in (1, 3):
            raise RowsError(
                f"Colour needs images of 1 or 3 channels, found {shape[2]}; is the plan's layout right?"
            )

    def after(self, shape: Shape) -> Shape:
        """The shape stays."""
        return shape

    def fields(self, shape: Shape) -> Fields:
        """`colour`: the three factors."""
        return [("colour", "float32", (3,))]

    def rest(self, shape: Shape) -> dict[str, Any]:
        """What changes nothing."""
        return {"colour": 1}

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """Three factors for each view."""
        ranges = (self.brightness, self.contrast, self.saturation)
        factors = [numbers.between(f"colour {i}", *given) for i, given in enumerate(ranges)]
        return {"colour": np.stack(factors, axis=1)}

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """x f, then x f + m (1 - f) with the mean grey m of the image, then with the pixel's grey."""
        largest = np.float32(255 if images.dtype == np.uint8 else 1)
        factors = drawn["colour"].astype(np.float32)
        bright, contrast, colourful = (factors[:, i, None, None, None] for i in range(3))
        x = np.clip(images.astype(np.float32) * bright, 0, largest)
        x = np.clip(x * contrast + _mean(_grey(x)) * (1 - contrast), 0, largest)
        x = np.clip(x * colourful + _grey(x) * (1 - colourful), 0, largest)
        return finished(x, images.dtype)


def _grey(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, height, width, 1): the sum of the weighted channels from the first to the last."""
    if images.shape[3] == 1:
        return images
    weighted = images * _GREY
    return np.asarray(weighted[..., :1] + weighted[..., 1:2] + weighted[..., 2:])


def _mean(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each image; summed pixel after pixel in float64, as numpy's own sum has no stated order."""
    flat = grey.reshape(len(grey), -1)
    total = np.add.accumulate(flat, axis=1, dtype=np.float64)[:, -1]
    return (total / flat.shape[1]).astype(np.float32)[:, None, None, None]


@dataclass(frozen=True)
class Noise:
    """Nearly normal noise of standard deviation `std`, in the image's own unit.

    The generator is `view_numbers.noise`; what is stored is its seed.
    """

    std: float
    kind: ClassVar[str] = "noise"
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a negative deviation."""
        require_number("Noise std", self.std, 0, 1e6)

    def check(self, shape: Shape) -> None:
        """Every image can be noisy."""

    def after(self, shape: Shape) -> Shape:
        """The shape stays."""
        return shape

    def fields(self, shape: Shape) -> Fields:
        """`noise`: the seed; 0 is no noise."""
        return [("noise", "uint64", ())]

    def rest(self, shape: Shape) -> dict[str, Any]:
        """What changes nothing."""
        return {"noise": 0}

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """A seed for each view."""
        return {"noise": np.maximum(numbers.word("noise"), np.uint64(1))}

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """x + std z; what leaves a float32's range of values is not cut off."""
        seeds = np.ascontiguousarray(drawn["noise"])
        z = noise(seeds, int(np.prod(images.shape[1:]))) * np.float32(self.std)
        z[seeds == 0] = 0
        return finished(images.astype(np.float32) + z.reshape(images.shape), images.dtype)


@dataclass(frozen=True)
class Mask:
    """Which square patches are kept, as masked autoencoders choose them (arXiv:2111.06377).

    Of L patches, L - floor(ratio L) are kept. They are the column `mask` (n, L) bool, True where kept,
    row of patches after row.
    """

    patch: int
    """Pixels to a side."""
    ratio: float = 0.75
    """The share that is not kept."""
    fill: float | None = None
    """What is put where nothing is kept; None leaves the image whole."""
    kind: ClassVar[str] = "mask"
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse patches without pixels."""
        if type(self.patch) is not int or self.patch < 1:
            raise ValueError(f"Mask patch: expected pixels to a side, found {self.patch!r}")
        require_number("Mask ratio", self.ratio, 0, 1)
        if self.fill is not None:
            require_number("Mask fill", self.fill, -1e6, 1e6)

    def check(self, shape: Shape) -> None:
        """RowsError unless patches fill the image."""
        if shape[0] % self.patch or shape[1] % self.patch:
            raise RowsError(
                f"Mask: patches of {self.patch} pixels do not fill an image of {shape[0]} x {shape[1]}"
            )

    def after(self, shape: Shape) -> Shape:
        """The shape stays."""
        return shape

    def patches(self, shape: Shape) -> int:
        """How many there are."""
        return (shape[0] // self.patch) * (shape[1] // self.patch)

    def fields(self, shape: Shape) -> Fields:
        """`mask`: a bit for each patch, the first in the highest bit of the first byte."""
        return [("mask", "uint8", (-(-self.patches(shape) // 8),))]

    def rest(self, shape: Shape) -> dict[str, Any]:
        """What changes nothing."""
        return {"mask": np.packbits(np.ones(self.patches(shape), bool))}

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """The patches with the smallest of random words are kept."""
        count = self.patches(shape)
        words = np.stack([numbers.word("mask", lane) for lane in range(count)], axis=1)
        kept = np.zeros(words.shape, bool)
        few = np.argsort(words, axis=1, kind="stable")[:, : count - int(self.ratio * count)]
        np.put_along_axis(kept, few, True, axis=1)
        return {"mask": np.packbits(kept, axis=1)}

    def kept(self, drawn: Any, shape: Shape) -> NDArray[np.bool_]:
        """(n, L) bool: the column `mask`."""
        bits = np.unpackbits(drawn["mask"], axis=1, count=self.patches(shape))
        return bits.astype(bool)

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """The fill in every patch that is not kept."""
        if self.fill is None:
            return images
        height, width = images.shape[1] // self.patch, images.shape[2] // self.patch
        kept = self.kept(drawn, images.shape[1:]).reshape(-1, height, width)
        whole = kept.repeat(self.patch, axis=1).repeat(self.patch, axis=2)[..., None]
        return np.where(whole, images, finished(np.array(self.fill, np.float32), images.dtype))
