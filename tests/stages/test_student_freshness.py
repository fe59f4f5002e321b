"""A student is stale when what it learns from changed, and only then; no teacher is ever needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.stages import ArrayRows, Evaluation, Fit, classification, plan_train
from stillroom.storage import Snapshot
from tests.stages.builders import (
    SPLITS,
    data,
    images,
    network,
    plain,
    pupil,
    student,
    taught,
    trained,
)

STUDENTS = [student(), student("l", "labels")]
EVALUATION = Evaluation("test", classification)


def stale(folder: Path, snapshot: Snapshot | None, **how: Any) -> tuple[str, ...]:
    """Names of the students that would be trained."""
    given: dict[str, Any] = {
        "students": STUDENTS,
        "rows": data(),
        "splits": SPLITS,
        "evaluation": EVALUATION,
        **how,
    }
    return plan_train(
        given.pop("students"), given.pop("rows"), snapshot, folder=folder / "s", **given
    ).names


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """A taught cache at `c`, and its students at `s`."""
    found = taught(tmp_path / "c", teacher=plain())
    trained(tmp_path / "s", STUDENTS, found)
    assert stale(tmp_path, found) == ()
    return found


def test_a_cache_that_grew_by_another_teacher_makes_none_stale(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    grown = taught(tmp_path / "c", teacher=network("other", layers={"hidden": "1"}))
    assert grown.number == 2
    assert stale(tmp_path, grown) == ()


def test_rows_outside_the_splits_make_none_stale(tmp_path: Path, snapshot: Snapshot) -> None:
    image = np.concatenate([images(60), images(9, seed=5)])
    label = np.concatenate([data().read(np.arange(60), ["label"])["label"], np.zeros(9, np.int64)])
    rows = ArrayRows([f"r{i}" for i in range(69)], image=image, label=label)
    grown = taught(tmp_path / "c", rows, plain())
    assert grown.rows == 69
    assert stale(tmp_path, grown, rows=rows) == ()


def test_a_changed_teacher_makes_only_its_own_students_stale(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    changed = taught(tmp_path / "c", teacher=plain(version="2"))
    assert stale(tmp_path, changed) == ("kd",)
    assert stale(tmp_path, snapshot) == ()  # what they learnt from is still there


def test_an_edited_row_makes_the_students_that_read_it_stale(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    for place in (3, 45):  # one to learn from, one to be measured on
        rows = data(edited=[place])
        assert stale(tmp_path, taught(tmp_path / "c", rows, plain()), rows=rows) == ("kd", "l")


def test_answers_to_other_questions_make_a_student_stale(tmp_path: Path) -> None:
    # The teacher reads a column that students do not.
    def rows(seed: int) -> ArrayRows:
        label = data().read(np.arange(60), ["label"])["label"]
        columns = {"large": images(60, seed), "image": images(60), "label": label}
        return ArrayRows(data().keys, **columns)

    teacher = plain(answer=answered_large)
    reading = type(teacher)("plain", answered_large, ("large",), ("logits",))
    first = taught(tmp_path / "c", rows(1), reading)
    trained(tmp_path / "s", STUDENTS, first, rows=rows(1))
    second = taught(tmp_path / "c", rows(2), reading)
    assert stale(tmp_path, second, rows=rows(2)) == ("kd",)


def answered_large(large: Any) -> dict[str, Any]:
    """A teacher of another column."""
    return {"logits": large[:, :4]}


@pytest.mark.parametrize(
    "how",
    [
        {"students": [student(seed=1)]},
        {"students": [student(fit=Fit(epochs=4))]},
        {"students": [student(method="fitnet", recipe=None, build=pupil, name="kd")]},
        {"evaluation": Evaluation("train", classification)},
        {"evaluation": Evaluation("test", classification, signals=("logits",))},
        {"splits": {**SPLITS, "train": SPLITS["train"][1:]}},
        {"splits": {**SPLITS, "train": SPLITS["train"][::-1]}},
    ],
    ids=["seed", "epochs", "recipe", "held-out", "compared", "fewer-rows", "order-of-rows"],
)
def test_what_decides_a_students_numbers_makes_it_stale(tmp_path: Path, how: Any) -> None:
    snapshot = taught(tmp_path / "c", teacher=plain(signals=("logits", "feature")))
    trained(tmp_path / "s", STUDENTS, snapshot)
    assert "kd" in stale(tmp_path, snapshot, **how)


def test_a_renamed_student_is_trained_under_its_new_name(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    assert stale(tmp_path, snapshot, students=[student("other")]) == ("other",)


PREPARE = """
import sys
import numpy as np, torch
import secret_teacher
from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, ModuleTeacher, teach
from stillroom.storage import Cache

torch.save(secret_teacher.build().state_dict(), "teacher.pt")
rows = ArrayRows(range(60), image=np.load("images.npy"), label=np.arange(60) % 4)
teacher = ModuleTeacher("secret", secret_teacher.build, weights="teacher.pt")
teach(Cache.at("c"), rows, teacher, runner=LocalRunner())
"""
TEACHER = """
from torch import nn

def build():
    return nn.Linear(8, 4)
"""
LEARN = """
import sys
import numpy as np
from torch import nn
from stillroom.pipeline import LocalRunner
from stillroom.stages import *
from stillroom.storage import Cache

def build():
    return nn.Linear(8, 4)

try:
    import secret_teacher
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the teacher is still there")
opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(str(given[0])))
rows = ArrayRows(range(60), image=np.load("images.npy"), label=np.arange(60) % 4)
evaluation = Evaluation("test", classification, signals=("logits",))
fit = Fit(epochs=60, batch_size=10, learning_rate=0.05)
(record,) = train(
    [Student("kd", build, recipes.find("kd", alpha=1.0), fit=fit)],
    rows, Cache("c").snapshot(), splits={"train": range(50), "test": range(50, 60)},
    evaluation=evaluation, folder="s", runner=LocalRunner(),
)
assert "secret_teacher" not in sys.modules
assert "stillroom.stages.teachers.teacher" in sys.modules  # light: it describes, and loads nothing
assert not [path for path in opened if "teacher.pt" in path or "secret" in path.split("/")[-1]]
assert record.metrics["agreement"] >= 0.9, record.metrics
"""


def test_a_student_learns_when_the_teachers_weights_and_code_are_gone(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images(60))
    for name, text in [("prepare", PREPARE), ("secret_teacher", TEACHER), ("learn", LEARN)]:
        (tmp_path / f"{name}.py").write_text(text)
    subprocess.run([sys.executable, "prepare.py"], cwd=tmp_path, check=True, timeout=120)
    (tmp_path / "secret_teacher.py").unlink()
    (tmp_path / "teacher.pt").unlink()
    for cached in tmp_path.glob("__pycache__/secret*"):
        cached.unlink()
    subprocess.run([sys.executable, "learn.py"], cwd=tmp_path, check=True, timeout=120)
