"""ViewPlan: how views of rows are made: named transforms with explicit ranges, as frozen data.

What a plan draws for a view are parameters, one record of fixed fields; they are what is stored and
replayed. Ranges and the seed decide only what is drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import hash_rows
from stillroom.stages.views.boxes import Crop, Drawn, Erase, Fields, Flip, Shape
from stillroom.stages.views.mixing import Cutmix, Mixup
from stillroom.stages.views.numbers import Numbers, Words
from stillroom.stages.views.pixels import Colour, Mask, Noise
from stillroom.stages.views.resizing import Images
from stillroom.storage.code import code_digest
from stillroom.storage.errors import GARBLED, RowsError, ViewError
from stillroom.storage.folder import Hashes

TRANSFORMS: Mapping[str, type[Any]] = {
    t.kind: t for t in (Crop, Flip, Erase, Colour, Mask, Noise, Mixup, Cutmix)
}
_TOGETHER_BYTES = 1 << 23
"""Images are transformed in pieces of about this size, which stay in a processor's cache."""


class Transform(Protocol):
    """One step of a plan, over many images at once."""

    @property
    def kind(self) -> str:
        """Names it in the plan's identity; a plan has at most one of a kind."""

    @property
    def mixes(self) -> bool:
        """Whether it takes a partner's image."""

    def check(self, shape: Shape) -> None:
        """RowsError when images of this shape cannot be transformed."""

    def after(self, shape: Shape) -> Shape:
        """The shape that it gives."""

    def fields(self, shape: Shape) -> Fields:
        """What it stores for each view."""

    def rest(self, shape: Shape) -> dict[str, Any]:
        """The parameters, by field, of a view that it leaves as it is."""

    def draw(self, numbers: Numbers, shape: Shape) -> Drawn:
        """Parameters by field, each (n, ...)."""

    def apply(self, images: Images, drawn: Any, partner: Images | None) -> Images:
        """(n, height, width, channels) images by (n,) records; ViewError for impossible ones."""


@dataclass(frozen=True)
class ViewPlan:
    """Transforms in their order, applied to one column of images.

    >>> plan = ViewPlan((Crop(scale=(0.5, 1.0)), Flip()))
    >>> plan.record((1, 28, 28)).names
    ('crop', 'flip')
    """

    transforms: tuple[Transform, ...]
    seed: int = 0
    """Other seeds draw other views."""
    column: str = "image"
    """The column that is transformed: uint8 or float32."""
    layout: Literal["CHW", "HWC"] = "CHW"
    """Of one row: (channels, height, width) or (height, width, channels)."""

    def __post_init__(self) -> None:
        """Refuse what is no plan."""
        kinds = [getattr(t, "kind", None) for t in self.transforms]
        known = isinstance(self.transforms, tuple) and kinds
        if not known or any(
            type(t) is not TRANSFORMS.get(str(kind))
            for t, kind in zip(self.transforms, kinds, strict=True)
        ):
            raise ValueError(
                f"a plan needs transforms, each of {', '.join(TRANSFORMS)}; found {self.transforms!r}"
            )
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"a plan has at most one transform of a kind, found {kinds}")
        if self.layout not in ("CHW", "HWC"):
            raise ValueError(f"layout is CHW or HWC, found {self.layout!r}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected a whole number from 0 to 2^63 - 1: {self.seed!r}")

    @property
    def mixes(self) -> bool:
        """Whether a view may have a partner."""
        return any(t.mixes for t in self.transforms)

    @property
    def masks(self) -> Mask | None:
        """The transform that says which patches are kept."""
        return next((t for t in self.transforms if isinstance(t, Mask)), None)

    def _shapes(self, shape: tuple[int, ...]) -> list[Shape]:
        """(height, width, channels) before every transform, and at the end."""
        if len(shape) != 3 or min(shape) < 1:
            raise RowsError(
                f"column {self.column!r}: rows of shape {shape}; a view plan takes images of three axes "
                f"laid out as {self.layout}"
            )
        height, width, channels = shape if self.layout == "HWC" else (*shape[1:], shape[0])
        shapes = [(height, width, channels)]
        for transform in self.transforms:
            transform.check(shapes[-1])
            shapes.append(transform.after(shapes[-1]))
        return shapes

    def check(self, images: Any) -> tuple[int, ...]:
        """The shape of one row of the column; RowsError when the plan cannot transform it."""
        if not isinstance(images, np.ndarray) or images.dtype not in (np.uint8, np.float32):
            found = images.dtype if isinstance(images, np.ndarray) else "texts"
            raise RowsError(
                f"column {self.column!r} is {found}; views need uint8 or float32 images"
            )
        shape: tuple[int, ...] = images.shape[1:]
        self._shapes(shape)
        return shape

    def after(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a view of a row of this shape, both in the plan's layout."""
        height, width, channels = self._shapes(shape)[-1]
        return (height, width, channels) if self.layout == "HWC" else (channels, height, width)

    def record(self, shape: tuple[int, ...]) -> np.dtype[Any]:
        """What is stored of a view of a row of this shape: packed fields of the transforms, in order."""
        steps = zip(self.transforms, self._shapes(shape), strict=False)
        return np.dtype(
            [field for transform, before in steps for field in transform.fields(before)]
        )

    def draw(self, keys: Words, views: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[Any]:
        """(n,) records for keys as `key_words` makes them; for view 0, ones that change nothing."""
        numbers = Numbers.of(self.seed, keys, views)
        found = np.zeros(len(keys), self.record(shape))
        mixing = []
        for transform, before in zip(self.transforms, self._shapes(shape), strict=False):
            for name, values in transform.draw(numbers, before).items():
                found[name] = values
            for name, value in transform.rest(before).items():
                found[name][views == 0] = value
            mixing += [transform.rest(before)] if transform.mixes else []
        if len(mixing) > 1:  # a toss decides which of the two a view is mixed by
            toss = numbers.uniform("mixing") < 0.5
            for chosen, rest in ((toss, mixing[0]), (~toss, mixing[1])):
                for name, value in rest.items():
                    found[name][chosen] = value
        return found

    def apply(self, images: Images, drawn: NDArray[Any], partner: Images | None) -> Images:
        """The views that the records describe of (n, ...) rows of the column, and of their partners.

        ViewError when a record cannot be of these images.
        """
        if len(images) == 0:
            return np.zeros((0, *self.after(images.shape[1:])), images.dtype)
        largest = max(prod(images.shape[1:]), prod(self.after(images.shape[1:])))
        step = max(1, _TOGETHER_BYTES // (largest * images.itemsize))
        pieces = []
        for start in range(0, len(images), step):
            some = slice(start, start + step)
            other = None if partner is None else self._channels_last(partner[some])
            made = transformed(
                self.transforms, self._channels_last(images[some]), drawn[some], other
            )
            pieces.append(np.moveaxis(made, 3, 1) if self.layout == "CHW" else made)
        return np.ascontiguousarray(np.concatenate(pieces))

    def _channels_last(self, images: Images) -> Images:
        return np.moveaxis(images, 1, 3) if self.layout == "CHW" else images

    def kept(self, drawn: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """(n, patches) bool, True where a patch is kept; None for a plan without masks."""
        for transform, before in zip(self.transforms, self._shapes(shape), strict=False):
            if isinstance(transform, Mask):
                return transform.kept(drawn, before)
        return None

    def weight(self, drawn: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """(n,) float32: the share of the row's own label; the partner's is what is missing to 1."""
        weight = np.ones(len(drawn), np.float32)
        for transform, before in zip(self.transforms, self._shapes(shape), strict=False):
            if isinstance(transform, Mixup):
                weight *= drawn["mix"].astype(np.float32)
            elif isinstance(transform, Cutmix):
                area = drawn["cut"][:, 2].astype(np.float64) * drawn["cut"][:, 3]
                weight *= (1 - area / (before[0] * before[1])).astype(np.float32)
        return weight

    def seen(self, images: Images, kept: NDArray[np.bool_] | None) -> Hashes:
        """(n,) items of 16 bytes: xxh3_128 of each tensor, with its name, dtype and shape as seed."""
        return hash_rows({self.column: images} | ({} if kept is None else {"mask": kept}))

    def to_json(self) -> dict[str, Any]:
        """Transforms, ranges, seed, column and layout, as plain JSON."""
        return {
            "transforms": [{"kind": t.kind, **_plain(t)} for t in self.transforms],
            "seed": self.seed,
            "column": self.column,
            "layout": self.layout,
        }

    @classmethod
    def from_json(cls, value: Any) -> ViewPlan:
        """Read back `to_json`, also inside an `identity`; ViewError where it is none."""
        try:
            steps = []
            for described in value["transforms"]:
                settings = {
                    name: tuple(given) if isinstance(given, list) else given
                    for name, given in described.items()
                    if name != "kind"
                }
                steps.append(TRANSFORMS[described["kind"]](**settings))
            return cls(tuple(steps), value["seed"], str(value["column"]), value["layout"])
        except GARBLED as error:
            raise ViewError(
                f"the cache describes its views in a way that this stillroom does not know: {error}. "
                "Upgrade stillroom, or teach again"
            ) from error

    def identity(self) -> dict[str, Any]:
        """The plan, the code of its transforms, and the version of the library under them."""
        code = _code(tuple(type(t) for t in self.transforms))
        return {**self.to_json(), "code": code, "libraries": {"numpy": np.__version__}}


def transformed(
    transforms: tuple[Transform, ...], images: Images, drawn: Any, partner: Images | None
) -> Images:
    """One transform after the other; what comes before a mixing one is done to the partner too."""
    mixing = [transform.mixes for transform in transforms]
    for place, transform in enumerate(transforms):
        images = transform.apply(images, drawn, partner)
        if partner is not None and any(mixing[place + 1 :]) and not mixing[place]:
            partner = transform.apply(partner, drawn, None)
    return images


@functools.cache
def _code(kinds: tuple[type, ...]) -> str:
    """What decides a view's bits: the transforms' source, and how a plan applies them."""
    return code_digest([*kinds, transformed])


def _plain(transform: Any) -> dict[str, Any]:
    given = asdict(transform)
    return {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()}
