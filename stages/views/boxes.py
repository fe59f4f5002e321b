"""Transforms of views that move or cover pixels: crops, flips, erased boxes.

All transforms take images as (n, height, width, channels), uint8 or float32, and the parameters of
each, and give images of the same dtype. Only single IEEE operations in the order that is written stand
between the two, so that equal parameters give equal bits on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.views.numbers import Numbers
from stillroom.stages.views.resizing import Images, bilinear, finished, nearest
from stillroom.storage.errors import ViewError

Shape = tuple[int, int, int]
"""(height, width, channels) of an image."""
Fields = list[tuple[str, str, tuple[int, ...]]]
"""Name, dtype and shape of what a transform stores for each view."""
Drawn = dict[str, NDArray[Any]]
_TRIES = 10
_LARGEST = 1 << 12
"""Pixels to a side; bounds what a made-up plan can make us allocate."""


def require_range(what: str, given: Any, low: float, high: float) -> None:
    """ValueError unless `given` is a pair of rising numbers from `low` to `high`."""
    fits = isinstance(given, tuple) and len(given) == 2
    fits = fits and all(isinstance(g, int | float) and isfinite(g) for g in given)
    if not fits or not low <= given[0] <= given[1] <= high:
        raise ValueError(f"{what}: expected two rising numbers from {low:g} to {high:g}: {given!r}")


def require_number(what: str, given: Any, low: float, high: float) -> None:
    """ValueError unless `given` is one number from `low` to `high`."""
    if not isinstance(given, int | float) or not low <= given <= high:
        raise ValueError(f"{what}: expected a number from {low:g} to {high:g}, found {given!r}")


def require_inside(box: NDArray[Any], shape: tuple[int, ...], what: str) -> None:
    """ViewError when a stored box does not lie in an image of this shape (n, height, width, ...)."""
    top, left, height, width = box.astype(np.int64).T
    outside = (box < 0).any(axis=1) | (top + height > shape[1]) | (left + width > shape[2])
    if outside.any():
        raise ViewError(
            f"the stored {what} {box[outside][0].tolist()} (top, left, height, width) lies outside "
            f"an image of {shape[1]} x {shape[2]}: the student's images have another size than those "
            "that the teacher saw. Read them at that size, or teach this data set again"
        )


def covered(box: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(n, height, width, 1) bool: the pixels in boxes (n, 4) of top, left, height, width."""
    top, left, height, width = (side[:, None] for side in box.astype(np.int64).T)
    rows, columns = np.arange(shape[1]), np.arange(shape[2])
    down = (rows >= top) & (rows < top + height)
    along = (columns >= left) & (columns < left + width)
    inside: NDArray[np.bool_] = (down[:, :, None] & along[:, None, :])[..., None]
    return inside


def drawn_box(
    numbers: Numbers,
    purpose: str,
    shape: Shape,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int32]:
    """(n, 4) int32 boxes: a share of the area, width over height log-uniform in `ratio`.

    The first of ten draws that fits into the image; failing all, the last one cut to its sides.
    """
    height, width, _ = shape
    sides = []
    for attempt in range(_TRIES):
        share = area[0] + (area[1] - area[0]) * numbers.uniform(f"{purpose} area", attempt)
        turn = numbers.uniform(f"{purpose} ratio", attempt)
        aspect = np.exp(log(ratio[0]) + (log(ratio[1]) - log(ratio[0])) * turn)
        pixels = share * (height * width)
        sides.append(np.rint(np.stack([np.sqrt(pixels / aspect), np.sqrt(pixels * aspect)])))
    tries = np.stack(sides)
    fits = (tries[:, 0] <= height) & (tries[:, 1] <= width) & (tries.min(axis=1) >= 1)
    chosen = np.where(fits.any(axis=0), fits.argmax(axis=0), _TRIES - 1)
    found = tries[chosen, :, np.arange(len(chosen))]
    tall = np.clip(found[:, 0], 1, height).astype(np.int64)
    wide = np.clip(found[:, 1], 1, width).astype(np.int64)
    top = numbers.whole(f"{purpose} top", height - tall + 1)
    left = numbers.whole(f"{purpose} left", width - wide + 1)
    return np.stack([top, left, tall, wide], axis=1).astype(np.int32)


@dataclass(frozen=True)
class Crop:
    """A random box of the image, resized (Szegedy et al. 2015, arXiv:1409.4842, section 6)."""

    scale: tuple[float, float] = (0.08, 1.0)
    """The box's share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Its width over its height."""
    size: tuple[int, int] | None = None
    """Height and width afterwards; None keeps those of the image."""
    resize: Literal["bilinear", "nearest"] = "bilinear"
    kind: ClassVar[str] = "crop"
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse ranges that name no box."""
        require_range("Crop scale", self.scale, 1e-6, 1)
        require_range("Crop ratio", self.ratio, exp(-5), exp(5))
        if self.size is not None:
            sides = self.size if isinstance(self.size, tuple) else ()
            if len(sides) != 2 or any(type(n) is not int or not 1 <= n <= _LARGEST for n in sides):
                raise ValueError(f"Crop size: expected (height, width) in pixels: {self.size!r}")
        if self.resize not in ("bilinear", "nearest"):
            raise ValueError(f"Crop resize is bilinear or nearest, found {self.resize!r}")

    def check(self, shape: Shape) -> None:
        """Every image can be cropped."""

    def after(self, shape: Shape) -> Shape:
        """The shape of a cropped image."""
        return (*(self.size or shape[:2]), shape[2])

    def fields(self, shape: Shape) -> Fields:
        """`crop`: top, left, height, width of the box."""
        return [("crop", "int32", (4,))]

    def rest(self, shape: Shape) -> dict[str, Any]:
        """What changes nothing."""
        return {"crop": (0, 0, *shape[:2])}

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """A box for each view."""
        return {"crop": drawn_box(numbers, "crop", shape, self.scale, self.ratio)}

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """The boxes, resized."""
        box = drawn["crop"]
        require_inside(box, images.shape, "crop box")
        if len(box) and box[:, 2:].min() < 1:
            raise ViewError("a stored crop box is empty; the cache is damaged")
        size = self.size or images.shape[1:3]
        return (bilinear if self.resize == "bilinear" else nearest)(images, box, size)


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged, with probability `p`."""

    p: float = 0.5
    kind: ClassVar[str] = "flip"
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        require_number("Flip p", self.p, 0, 1)

    def check(self, shape: Shape) -> None:
        """Every image can be flipped."""

    def after(self, shape: Shape) -> Shape:
        """The shape stays."""
        return shape

    def fields(self, shape: Shape) -> Fields:
        """`flip`: whether."""
        return [("flip", "bool", ())]

    def rest(self, shape: Shape) -> dict[str, Any]:
        """What changes nothing."""
        return {"flip": False}

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """A toss for each view."""
        return {"flip": numbers.uniform("flip") < self.p}

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """Columns in reverse where it says so."""
        return np.where(drawn["flip"][:, None, None, None], images[:, :, ::-1], images)


@dataclass(frozen=True)
class Erase:
    """A box filled with one value (Zhong et al. 2017, arXiv:1708.04896)."""

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    """The box's share of the image's area."""
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Its width over its height."""
    fill: float = 0.0
    kind: ClassVar[str] = "erase"
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse ranges that name no box."""
        require_number("Erase p", self.p, 0, 1)
        require_range("Erase area", self.area, 1e-6, 1)
        require_range("Erase ratio", self.ratio, exp(-5), exp(5))
        require_number("Erase fill", self.fill, -1e6, 1e6)

    def check(self, shape: Shape) -> None:
        """Every image can be erased."""

    def after(self, shape: Shape) -> Shape:
        """The shape stays."""
        return shape

    def fields(self, shape: Shape) -> Fields:
        """`erase`: top, left, height, width; all 0 where nothing is erased."""
        return [("erase", "int32", (4,))]

    def rest(self, shape: Shape) -> dict[str, Any]:
        """What changes nothing."""
        return {"erase": 0}

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """A box for those views that the toss chooses."""
        box = drawn_box(numbers, "erase", shape, self.area, self.ratio)
        box[numbers.uniform("erase") >= self.p] = 0
        return {"erase": box}

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """The value in the box."""
        require_inside(drawn["erase"], images.shape, "erased box")
        fill = finished(np.array(self.fill, np.float32), images.dtype)
        return np.where(covered(drawn["erase"], images.shape), fill, images)
