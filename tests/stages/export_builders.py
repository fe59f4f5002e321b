"""Students that the tests of exporting share: a recipe with all that inference may need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.stages import (
    Answer,
    Evaluation,
    Head,
    Recipe,
    Record,
    Student,
    classification,
    export_student,
    term,
)
from stillroom.stages.exporting.exporting import Exported
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.storage import Snapshot
from tests.stages.builders import SPLITS, data, student, trained

TEST = Evaluation("test", classification)
HELD = {**SPLITS, "held": SPLITS["train"][30:]}
ROWS = data().read(np.arange(40, 60), ["image", "label"])
IMAGE, LABEL = torch.from_numpy(ROWS["image"]), torch.from_numpy(ROWS["label"])


def exported(record: Record, learner: Student, folder: Path, **how: Any) -> Exported:
    wanted = {"keys": SPLITS["test"], "evaluation": TEST, **how}
    return export_student(record, learner, data(), folder, **wanted)


def linear(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
    return torch.nn.Linear(shape[0], wanted[0])


def mixed(one: Any, other: Any, shift: Any, image: Any, *, share: float) -> Any:
    return share * one + (1 - share) * other + shift + image[:, :1] * 0.125


def right(answer: Any, label: Any) -> float:
    return float((answer.argmax(-1) == label).double().mean())


FUSED = Recipe(
    "fused",
    (
        term(cross_entropy, "student.logits", "row.label"),
        term(squared_error, "head.second", "teacher.logits"),
        term(squared_error, "head.hint", "teacher.feature"),
    ),
    heads=(
        Head("second", linear, "student.feature", like="teacher.logits", kept=True),
        Head("hint", linear, "student.feature", like="teacher.feature"),
    ),
    answer=Answer(
        mixed,
        ("student.logits", "head.second", "table.shift", "row.image"),
        settings={"share": 0.5},
        grid={"share": (0.0, 0.25, 1.0)},
        score=right,
    ),
)
SHIFT = {"shift": np.linspace(-1, 1, 4, dtype="f4")}


def fused(folder: Path, snapshot: Snapshot) -> tuple[Record, Student]:
    learner = student(recipe=FUSED, validation="held")
    (record,) = trained(folder, [learner], snapshot, splits=HELD, tables=SHIFT)
    return record, learner


def metrics(logits: Any) -> dict[str, Any]:
    return classification({"student.logits": logits, "row.label": LABEL})
