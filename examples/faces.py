"""A face detector answers with boxes, as many as it finds; small nets learn from what it was sure of.

Photographs with pasted faces -> teach (CenterFace: a ragged record of boxes, and its map of centres)
-> students (where faces were pasted, the centres of the teacher's boxes, the teacher's map) -> table.
Run: stillroom run examples/faces.py, or python examples/faces.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from faces_scenes import NOWHERE, STEP, around, lesson, peaks
from lessons import Class, Lesson, Line, lesson_steps
from numpy.typing import NDArray

from stillroom.pipeline.step import Step
from stillroom.stages.data.rows import find_rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.term import term
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn


def faces(*, rows: int = 240, epochs: int = 10, seeds: int = 3) -> list[Step]:
    """Distil a face detector. rows: scenes, three in four to train on; epochs and seeds: of every
    student."""
    measured_on = Evaluation("test", compared, columns=("centres",), signals=("centres",))
    learn = Class(students, measured_on, ("average precision", "correlation"), teacher_itself)
    return lesson_steps(partial(lesson, scenes=rows), learn, epochs=epochs, seeds=seeds)


SHAPES = ((1, 8, 2, 1), (8, 16, 2, 1), (16, 16, 1, 1), (16, 16, 1, 2), (16, 16, 1, 3))
"""Channels in and out, stride and dilation of each convolution of the student."""


def small_net() -> nn.Module:
    """Two convolutions to a quarter of the size, three there that look around: (24, 24) logits."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for inside, out, step, spread in SHAPES:
                around = nn.Conv2d(inside, out, 3, step, spread, dilation=spread)
                layers += [around, nn.BatchNorm2d(out), nn.ReLU()]
            last = nn.Conv2d(16, 1, 1)
            assert last.bias is not None
            nn.init.constant_(last.bias, -3.0)  # most cells hold no face
            self.layers = nn.Sequential(*layers, last)

        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.layers(image[:, None].to(torch.float32) / 127.5 - 1)
            return logits[:, 0]

    return Net()


def soft(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with a probability in every cell, summed over a row's cells."""
    from torch.nn import functional

    lost = functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    return lost.flatten(1).sum(1)


def at_boxes(logits: Tensor, corners: Tensor, length: Tensor) -> Tensor:
    """The same with a bump at the centre of every box: (n, most, 4) corners, of which `length` count."""
    import torch

    middles = ((corners[..., :2] + corners[..., 2:]) / 2).numpy().copy()
    middles[np.arange(middles.shape[1]) >= length.numpy()[:, None]] = NOWHERE
    return soft(logits, torch.from_numpy(around(middles)))


BOXES = ("teacher.boxes.corners", "teacher.boxes.length")
RECIPES: Mapping[str, Recipe] = {
    "pasted": Recipe("pasted", (term(soft, "student.logits", "row.pasted"),)),
    "boxes": Recipe("boxes", (term(at_boxes, "student.logits", *BOXES),)),
    "centres": Recipe("centres", (term(soft, "student.logits", "teacher.centres"),)),
}
"""`pasted` reads no teacher; `boxes` takes those that the teacher was sure of for true."""


def students(*, epochs: int, seeds: int) -> list[Student]:
    """The same net with each recipe and each seed."""
    fit = Fit(epochs=epochs, batch_size=8, learning_rate=1e-2, evaluate_every=epochs)
    return [
        Student(name, small_net, recipe, fit=fit, seed=seed)
        for name, recipe in RECIPES.items()
        for seed in range(seeds)
    ]


def compared(tensors: Mapping[str, Any]) -> dict[str, float]:
    """Of held-out scenes: average precision of the peaks, and correlation with the teacher's map."""
    return measured(tensors["student.logits"].sigmoid(), tensors)


def measured(mine: Tensor, tensors: Mapping[str, Any]) -> dict[str, float]:
    """The same of any map."""
    import torch

    both = torch.stack([mine.flatten(), tensors["teacher.centres"].flatten()])
    maps = mine.numpy()
    row, y, x = np.nonzero(np.stack([peaks(one) for one in maps]))
    where = (np.stack([x, y], -1) + 0.5) * STEP
    centres = tensors["row.centres"].numpy()
    return {
        "average precision": precision(row, where, maps[row, y, x], centres),
        "correlation": torch.corrcoef(both)[0, 1].item(),
    }


def precision(
    row: NDArray[np.int64],
    where: NDArray[np.floating[Any]],
    score: NDArray[np.floating[Any]],
    centres: NDArray[np.float32],
) -> float:
    """Mean over all pasted faces of the precision at which each is found, 0 for those that are not.

    What was found, (k,) rows, (k, 2) pixels and scores, is taken with the highest score first; right
    is what lies within 10 pixels of a face that none before it has found.
    """
    left = {(int(r), int(face)) for r, face in np.argwhere(centres[:, :, 0] > NOWHERE)}
    faces, right, total = len(left), 0, 0.0
    for rank, at in enumerate(np.argsort(-score, kind="stable"), 1):
        away = np.hypot(*(centres[row[at]] - where[at]).T)
        near = [(int(row[at]), int(face)) for face in np.argsort(away) if away[face] < 10]
        if hit := next((each for each in near if each in left), None):
            left.remove(hit)
            right += 1
            total += right / rank
    return total / max(faces, 1)


def teacher_itself(given: Lesson, reader: Reader) -> dict[str, Line]:
    """The teacher's own lines: by its boxes, as they were read back, and by its whole map."""
    import torch

    keys = as_keys(given.splits["test"])
    read: dict[str, Any] = given.rows.read(find_rows(given.rows, keys), ["centres"])
    said: dict[str, Any] = reader.gather(keys)
    every, rows = said["boxes"].values, np.repeat(np.arange(len(keys)), said["boxes"].lengths)
    middles = (every["corners"][:, :2] + every["corners"][:, 2:]) / 2
    tensors = {f"row.{name}": torch.as_tensor(column) for name, column in read.items()}
    tensors["teacher.centres"] = torch.as_tensor(said["centres"])
    by_boxes = precision(rows, middles, every["score"], read["centres"])
    by_map = measured(tensors["teacher.centres"], tensors)
    return {
        "teacher's boxes": {"average precision": [by_boxes]},
        "teacher's map": {name: [value] for name, value in by_map.items()},
    }


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
