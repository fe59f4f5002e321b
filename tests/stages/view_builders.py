"""Small data sets of images, a plan of every transform and a teacher that tells any pixel's change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages import ArrayRows, FunctionTeacher
from stillroom.stages.views.boxes import Crop, Erase, Flip
from stillroom.stages.views.mixing import Cutmix, Mixup
from stillroom.stages.views.pixels import Colour, Mask, Noise
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.rows import ViewedRows
from stillroom.stages.views.teacher import ViewedTeacher
from stillroom.storage import Snapshot
from tests.stages.builders import taught

EVERY = (
    *(Crop((0.3, 1.0)), Flip(), Erase(fill=0.25), Colour(), Mask(2, 0.5), Noise(0.05)),
    *(Mixup(1.0), Cutmix()),
)
SHAPE = (1, 8, 6)


def photos(rows: int, shape: tuple[int, ...] = SHAPE, dtype: Any = "float32") -> NDArray[Any]:
    """(rows, *shape) between 0 and 1, or 0 and 255; the same every time."""
    drawn = np.random.default_rng(rows).random((rows, *shape))
    return (drawn * 255).astype(dtype) if dtype == "uint8" else drawn.astype(dtype)


def album(rows: int = 12, *, edited: Sequence[int] = (), **columns: Any) -> ArrayRows:
    """Rows p0, p1, ... with `image` and `label`."""
    image = columns.pop("image", None)
    image = photos(rows) if image is None else image
    image[list(edited)] = 1 - image[list(edited)]
    given = {"image": image, "label": np.arange(rows) % 4, **columns}
    return ArrayRows([f"p{i}" for i in range(rows)], **given)


def gaze(image: NDArray[Any], **more: Any) -> dict[str, Any]:
    """Four sums over columns of pixels: the same in any batch, and other ones for a mirrored image."""
    flat = image.reshape(len(image), -1).astype(np.float64)
    weights = np.arange(1, flat.shape[1] + 1)[:, None] % np.array([3, 5, 7, 11])
    return {"logits": np.stack([(flat * w).sum(1) for w in weights.T], 1).astype(np.float32) / 32}


def looker(name: str = "looker", **more: Any) -> FunctionTeacher:
    """`gaze` as a teacher."""
    return FunctionTeacher(name, gaze, more.pop("inputs", ("image",)), ("logits",), **more)


def viewed(
    folder: Path, plan: ViewPlan, rows: Any = None, *, views: int = 2, **how: Any
) -> Snapshot:
    """Teach `looker` the views of an album."""
    given = {n: how.pop(n) for n in ("plain", "only") if n in how}
    teacher = how.pop("teacher", None) or looker()
    base = album() if rows is None else rows
    shown = ViewedRows(base, plan, views=views, **given)
    return taught(folder, shown, ViewedTeacher(teacher, plan), **how)
