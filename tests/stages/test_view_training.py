"""Students learn from views in the cache; what they read of them decides whether they are stale."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    ArrayRows,
    Evaluation,
    Fit,
    FunctionTeacher,
    Recipe,
    Student,
    classification,
    plan_train,
    recipes,
    term,
    train,
)
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.views.boxes import Crop, Erase, Flip
from stillroom.stages.views.mixing import Cutmix, Mixup
from stillroom.stages.views.pixels import Mask
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.replay import Replay
from stillroom.storage import NotACacheError, RowsError
from stillroom.storage.errors import ViewError
from stillroom.workflows.digits_data import digits_rows, digits_splits
from stillroom.workflows.digits_models import cnn
from tests.stages.builders import chosen, taught
from tests.stages.view_builders import album, gaze, looker, viewed

KEYS = [f"p{i}" for i in range(12)]


@pytest.fixture
def plan() -> ViewPlan:
    """Crops, flips and partners."""
    return ViewPlan((Crop((0.3, 1.0)), Flip(), Mixup(1.0)))


def mixed_labels(logits: Any, label: Any, other: Any, weight: Any) -> Any:
    """Cross entropy against both labels by their weights."""
    return weight * cross_entropy(logits, label) + (1 - weight) * cross_entropy(logits, other)


def _mixed_recipe() -> Recipe:
    names = ("student.logits", "row.label", "row.partner.label", "row.weight")
    return Recipe("mixed", (term(mixed_labels, *names),))


def ten(image: Any) -> dict[str, Any]:
    """As many numbers as there are digits."""
    said = gaze(image)["logits"]
    return {"logits": np.concatenate([said, -said, said[:, :2] / 2], axis=1)}


def test_digits_are_learned_from_views_in_the_cache(tmp_path: Path) -> None:
    keys, splits = digits_rows().keys.to_pylist(), digits_splits()
    few, held_out = splits["train"][:120], splits["test"][:40]
    places = [keys.index(key) for key in (*few, *held_out)]
    rows = chosen(digits_rows(), places)
    plan = ViewPlan((Crop((0.7, 1.0)), Erase(), Mixup(0.4), Cutmix()))
    how: dict[str, Any] = {"only": few, "batch_size": 64, "shard_rows": 128}
    how["teacher"] = FunctionTeacher("looker", ten, ("image",), ("logits",))
    snapshot = viewed(tmp_path / "cache", plan, rows, views=2, **how)
    assert snapshot.rows == 160 + 2 * 120
    build = partial(cnn, 2)

    def pupil(name: str, recipe: Recipe, views: int) -> Student:
        return Student(name, build, recipe, fit=Fit(epochs=3, batch_size=40, views=views))

    soft = recipes.find("kd", alpha=1.0)
    students = [pupil("soft", soft, 2), pupil("mixed", _mixed_recipe(), 2), pupil("plain", soft, 0)]
    shared: dict[str, Any] = {
        "splits": {"train": few, "test": held_out},
        "evaluation": Evaluation("test", classification, signals=("logits",)),
        "folder": tmp_path / "students",
    }
    records = train(students, rows, snapshot, runner=LocalRunner(), **shared)
    assert [r.content["fit"]["views"] for r in records] == [2, 2, 0]
    assert all(np.isfinite(r.metrics["nll"]) for r in records)
    assert "views" not in records[2].content["identity"]["student"]["fit"]
    losses = {tuple(point["loss"] for point in r.content["curve"]) for r in records}
    assert len(losses) == 3
    assert plan_train(students, rows, snapshot, **shared).stale == ()
    # More views in the cache, or plain rows that nobody reads, change no student.
    more = viewed(tmp_path / "cache", plan, rows, views=3, **how)
    assert plan_train(students, rows, more, **shared).stale == ()
    column: Any = rows.read(np.arange(160), ["image", "label"])
    image = column["image"].copy()
    image[7] = image[7, :, ::-1]
    edited = ArrayRows(rows.keys, image=image, label=column["label"])
    for student in students:
        with pytest.raises(RowsError, match=f"changed since teacher 'looker' .*{few[7]}"):
            plan_train([student], edited, snapshot, **shared)


def test_what_a_student_of_views_reads_decides_whether_it_is_stale(
    tmp_path: Path, plan: ViewPlan
) -> None:
    snapshot = viewed(tmp_path / "cache", plan)
    build = partial(torch.nn.Sequential)

    def digest(rows: Any, recipe: Recipe, views: int = 2, split: int = 4) -> str:
        fit = Fit(views=views)
        student = Student("s", build, recipe, fit=fit)
        splits = {"train": KEYS[:split], "test": KEYS[:1]}
        evaluation = Evaluation("test", classification, columns=())
        found = plan_train(
            *([student], rows, snapshot), splits=splits, evaluation=evaluation, folder=tmp_path
        )
        return found.stale[0].digest

    soft = recipes.find("kd", alpha=1.0)
    partners = Replay(album(), snapshot, KEYS[:4], views=2).partners.reshape(-1)
    (far, *_) = [int(p) for p in partners if p >= 4]
    near = next(i for i in range(4, 12) if i not in partners)
    label = np.arange(12) % 4

    def relabelled(place: int) -> Any:
        image: Any = album().read(np.arange(12), ["image"])["image"]
        return ArrayRows(KEYS, image=image, label=np.where(np.arange(12) == place, 9, label))

    mixed = _mixed_recipe()
    assert digest(album(), soft) == digest(relabelled(0), soft)
    assert digest(album(), mixed) != digest(relabelled(0), mixed)
    assert digest(album(), mixed) != digest(relabelled(far), mixed)
    assert digest(album(), mixed) == digest(relabelled(near), mixed)
    assert len({digest(album(), soft, views) for views in (0, 1, 2)}) == 3


def test_students_of_views_need_a_snapshot_that_has_them(tmp_path: Path) -> None:
    student = Student("s", partial(torch.nn.Sequential), recipes.find("labels"), fit=Fit(views=1))
    shared: dict[str, Any] = {
        "splits": {"train": KEYS, "test": KEYS},
        "evaluation": Evaluation("test", classification),
        "folder": tmp_path,
    }
    with pytest.raises(NotACacheError, match="trains on views"):
        plan_train([student], album(), None, **shared)
    other = Student("s", student.build, _mixed_recipe(), fit=Fit(views=1))
    snapshot = viewed(tmp_path / "v", ViewPlan((Flip(),)))
    other = Student("s", student.build, _mixed_recipe(), fit=Fit(views=1))
    snapshot = viewed(tmp_path / "v", ViewPlan((Flip(),)))
    with pytest.raises(ViewError, match="train with views=0"):
        plan_train([student], album(), taught(tmp_path / "c", album(), looker()), **shared)
    with pytest.raises(RowsError, match=r"'partner\.label'"):
        plan_train([other], album(), snapshot, **shared)
    with pytest.raises(ValueError, match="views counts from 0"):
        Fit(views=-1)


def test_a_teacher_may_read_the_mask(tmp_path: Path) -> None:
    plan = ViewPlan((Mask(2, 0.5), Flip()))
    teacher = looker(inputs=("image", "mask"))
    snapshot = viewed(tmp_path, plan, teacher=teacher)
    replay = Replay(album(), snapshot, KEYS, views=2)
    batch: Any = replay.read(np.arange(12), 2, ["image", "mask"])
    assert batch["mask"].shape == (12, 12)
    assert (batch["mask"].sum(1) == 6).all()
    student = Student("s", partial(torch.nn.Sequential), recipes.find("kd", alpha=1.0))
    shared: dict[str, Any] = {
        "splits": {"train": KEYS, "test": KEYS},
        "evaluation": Evaluation("test", classification),
        "folder": tmp_path,
    }
    with pytest.raises(RowsError, match="changed since teacher"):
        plan_train([student], album(edited=[1]), snapshot, **shared)
