"""Transforms of views that mix a row with a partner: mixup and cutmix.

The partner went through the transforms before them, with the parameters of the row's own view: so a
view is told by its own parameters and the partner's row, and by nothing of the partner's views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stillroom.stages.views.boxes import (
    Drawn,
    Fields,
    Shape,
    covered,
    require_inside,
    require_number,
)
from stillroom.stages.views.numbers import Numbers
from stillroom.stages.views.resizing import Images, finished


@dataclass(frozen=True)
class Mixup:
    """w x + (1 - w) partner, w from Beta(alpha, alpha) (Zhang et al. 2018, arXiv:1710.09412)."""

    alpha: float = 0.2
    p: float = 1.0
    """Probability of mixing at all."""
    kind: ClassVar[str] = "mixup"
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a distribution that does not exist."""
        require_number("Mixup alpha", self.alpha, 1e-3, 1e3)
        require_number("Mixup p", self.p, 0, 1)

    def check(self, shape: Shape) -> None:
        """Every image can be mixed."""

    def after(self, shape: Shape) -> Shape:
        """The shape stays."""
        return shape

    def fields(self, shape: Shape) -> Fields:
        """`mix`: the row's own weight."""
        return [("mix", "float32", ())]

    def rest(self, shape: Shape) -> dict[str, Any]:
        """What changes nothing."""
        return {"mix": 1}

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """A weight for each view; 1 where the toss says so."""
        weight = numbers.beta("mixup", self.alpha)
        return {"mix": np.where(numbers.uniform("mixup p") < self.p, weight, np.float32(1))}

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """In float32; uint8 is rounded at the end."""
        assert partner is not None
        weight = drawn["mix"].astype(np.float32)[:, None, None, None]
        mixture = images.astype(np.float32) * weight + partner.astype(np.float32) * (1 - weight)
        return finished(mixture, images.dtype)


@dataclass(frozen=True)
class Cutmix:
    """A box of the partner in the place of the row's own (Yun et al. 2019, arXiv:1905.04899).

    A box of the share 1 - w of the area, w from Beta(alpha, alpha), around a uniform centre, cut at
    the image's sides.
    """

    alpha: float = 1.0
    p: float = 1.0
    """Probability of mixing at all."""
    kind: ClassVar[str] = "cutmix"
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a distribution that does not exist."""
        require_number("Cutmix alpha", self.alpha, 1e-3, 1e3)
        require_number("Cutmix p", self.p, 0, 1)

    def check(self, shape: Shape) -> None:
        """Every image can be mixed."""

    def after(self, shape: Shape) -> Shape:
        """The shape stays."""
        return shape

    def fields(self, shape: Shape) -> Fields:
        """`cut`: top, left, height, width of the partner's box; all 0 where nothing is mixed."""
        return [("cut", "int32", (4,))]

    def rest(self, shape: Shape) -> dict[str, Any]:
        """What changes nothing."""
        return {"cut": 0}

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """A box for each view that the toss chooses."""
        side = np.sqrt(1 - numbers.beta("cutmix", self.alpha).astype(np.float64))
        edges = []
        for length, purpose in ((shape[0], "cutmix row"), (shape[1], "cutmix column")):
            half = np.rint(side * length) / 2
            centre = numbers.uniform(purpose) * length
            start = np.clip(np.rint(centre - half), 0, length)
            edges.append((start, np.clip(np.rint(centre + half), 0, length) - start))
        (top, height), (left, width) = edges
        box = np.stack([top, left, height, width], axis=1).astype(np.int32)
        box[(box[:, 2:].min(axis=1) == 0) | (numbers.uniform("cutmix p") >= self.p)] = 0
        return {"cut": box}

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """The partner's pixels in the box."""
        assert partner is not None
        require_inside(drawn["cut"], images.shape, "partner's box")
        return np.where(covered(drawn["cut"], images.shape), partner, images)
