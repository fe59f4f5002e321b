"""A workflow of one's own gets its page: by a step, by `stillroom report FLOW`, by a folder alone."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillroom.stages import Record
from stillroom.storage import Cache
from tests.workflows.conftest import Inside

FLOW = '''"""Squares: a teacher that is a function, two students, a page."""

from functools import partial

import numpy as np
from torch import nn

from stillroom.pipeline import Step
from stillroom.stages import (
    ArrayRows, Evaluation, Fit, FunctionTeacher, Student, classification, recipes, teach, train)
from stillroom.storage import Cache
from stillroom.workflows.reporting.held_out import HeldOut
from stillroom.workflows.reporting.step import report_run

KEYS = [f"square-{i}" for i in range(48)]
SPLITS = {"train": KEYS[:32], "test": KEYS[32:]}


def rows(edited=0):
    image = np.random.default_rng(0).random((48, 1, 6, 6), dtype=np.float32)
    image[:edited] = 1 - image[:edited]
    return ArrayRows(KEYS, image=image, label=image.mean((1, 2, 3)).argsort().argsort() // 16,
                     name=[f"number {i}" for i in range(48)])


def answer(image):
    flat = image.reshape(len(image), -1)
    return {"logits": np.stack([flat[:, :12].sum(1), flat[:, 12:24].sum(1), flat[:, 24:].sum(1)], 1)}


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def measured(tensors):
    found = classification(tensors)
    del found["reliability"]  # drawn elsewhere
    return {**found, "wobble": tensors["student.logits"].std().item()}


EVALUATION = Evaluation("test", measured, signals=("logits",))


def students(epochs):
    shared = dict(fit=Fit(epochs=epochs, batch_size=16), inputs=("image",))
    return [Student(name, net, recipes.find(name), seed=seed, **shared)
            for name in ("kd", "labels") for seed in (0, 1)]


def teach_squares(run, inputs, *, edited):
    teacher = FunctionTeacher("thirds", answer, ("image",), ("logits",))
    snapshot = teach(Cache.at(run.folder / "a.cache"), rows(edited), teacher, runner=run.runner)
    return {"snapshot": snapshot.number}


def train_squares(run, inputs, *, edited, epochs):
    snapshot = Cache(run.folder / "a.cache").snapshot(inputs["teach"]["snapshot"])
    records = train(students(epochs), rows(edited), snapshot, splits=SPLITS, evaluation=EVALUATION,
                    folder=run.folder / "students", runner=run.runner)
    return {"records": [str(r.folder.relative_to(run.folder)) for r in records]}


def held_out(run, inputs, *, edited, epochs, named):
    show, words = (("name",), None) if not named else (("image", "name"), lambda b: b["name"])
    return HeldOut(rows(edited), SPLITS["test"], students(epochs), EVALUATION, label="label",
                   classes=("dark", "grey", "light"), show=("image",) if not named else show, words=words)


def squares(*, epochs: int = 2, edited: int = 0, named: bool = False):
    """Dark, grey and light squares."""
    first = Step("teach", teach_squares, {"edited": edited})
    both = {"edited": edited, "epochs": epochs}
    second = Step("students", train_squares, both, (first,))
    look = partial(held_out, named=named, **both)
    said = {"title": "Squares", "better": {"wobble": "lower"}}
    return [Step("report", partial(report_run, held_out=look), said, (second, first))]
'''
Ran = tuple[Inside, Path]


@pytest.fixture
def ran(inside: Inside, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The command line, and the folder of a run that is done; it is made once and then copied."""
    Path("squares.py").write_text(FLOW)
    folder, made = Path("out/squares"), tmp_path_factory.getbasetemp() / "squares that were run"
    if made.exists():
        shutil.copytree(made, folder)
        return inside, folder
    done = inside("run", "squares.py", "--workers", "0")
    assert done.code == 0, done.err
    assert "report: out/squares/report.html" in done.out
    shutil.copytree(folder, made)
    return inside, folder


def rows_shown(page: str) -> list[str]:
    return re.findall(r"<li>\n<p class=\"head\"><code>(.*?)</code>", page)


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


def test_a_step_writes_the_page_of_any_workflow(ran: Ran) -> None:
    inside, folder = ran
    page, results = (folder / "report.html").read_text(), results_of(folder)
    assert results["title"] == "Squares"
    assert [s["name"] for s in results["students"]] == ["kd", "labels"]
    assert results["metrics"]["wobble"] == {"better": "lower", "share": False}
    records = [Record.read(p.parent) for p in folder.glob("students/*/record.json")]
    for line in results["students"]:
        mine = [r for r in records if r.name == line["name"]]
        values = [r.metrics["accuracy"] for r in mine]
        assert line["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
        assert (line["architecture"], line["seconds"]["mean"] > 0) == ("net", True)
    kd, labels = results["students"]
    assert (kd["learns_from"], labels["learns_from"]) == (["logits", "label"], ["label"])
    # The teacher's line is measured on what the cache holds of it.
    (teacher,) = results["references"]
    assert (teacher["name"], teacher["what"]) == ("thirds", "teacher")
    assert 0 < teacher["metrics"]["accuracy"] <= 1
    assert results["cost"]["teacher_rows"] == 48

    # What is shown of a row is the row.
    (shown,) = results["differing"]
    assert (shown["student"], shown["seed"], shown["compared"]) == ("kd", 0, 16)
    kd_zero = next(r for r in records if (r.name, r.seed) == ("kd", 0))
    assert shown["agree"] == kd_zero.metrics["agreement"]
    right = shown["right"]
    assert (right["both"] + right["student"]) / 16 == kd_zero.metrics["accuracy"]
    keys = rows_shown(page)
    assert keys == [row["key"] for row in shown["rows"]]
    image = np.random.default_rng(0).random((48, 1, 6, 6), dtype=np.float32)
    sources = re.findall(r'src="data:image/png;base64,(.*?)"', page)
    assert len(sources) == len(keys) == 12
    for key, source in zip(keys, sources, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
        expected = np.rint(image[int(key.split("-")[1]), 0].astype(np.float64) * 255)
        np.testing.assert_array_equal(picture, expected)
    assert {row["label"] for row in shown["rows"]} <= {"dark", "grey", "light"}

    # Nothing is written twice that did not change, neither by the step nor by the command.
    before = [(folder / name).read_bytes() for name in ("report.html", "results.json")]
    assert "nothing to do" in inside("run", "squares.py", "--workers", "0").out
    again = inside("report", "squares.py")
    assert again.out == "report: out/squares/report.html\n", again.err
    assert [(folder / n).read_bytes() for n in ("report.html", "results.json")] == before


def test_the_next_page_says_what_the_run_has_changed(ran: Ran) -> None:
    inside, folder = ran
    shown = rows_shown((folder / "report.html").read_text())
    shutil.rmtree(folder / "steps")  # they name the file of the flow, which lay in another folder
    changed = ("--edited", "3", "--epochs", "3", "--named")
    done = inside("run", "squares.py", "--workers", "0", *changed)
    assert done.code == 0, done.err
    changes = results_of(folder)["changes"]
    assert [(c["name"], c["retrained"]) for c in changes["changed"]] == [
        ("kd", [0, 1]),
        ("labels", [0, 1]),
    ]
    (segment,) = changes["taught"]
    assert (segment["teacher"], segment["rows"]) == ("thirds", 3)
    page = (folder / "report.html").read_text()
    assert "What changed since" in page
    assert "3 rows" in page
    assert "<blockquote>number " in page
    assert "<img" not in page
    assert len(rows_shown(page)) == len(shown)
    # Earlier students stay in their folders; a folder's page shows the last of each.
    found = inside("report", str(folder), "--out", "folder.html", "--lower", "wobble")
    assert found.code == 0, found.err
    kept = json.loads(Path("folder-results.json").read_text())
    before = results_of(folder)
    assert kept["students"] == before["students"]
    assert kept["cost"]["trainings"] == 4
    assert kept["differing"] == []
    assert len(list(folder.glob("students/*/record.json"))) == 8


def test_a_folder_is_enough(ran: Ran) -> None:
    inside, folder = ran
    shutil.copytree(folder / "students", "kept")
    assert inside("report", "kept", "--title", "Kept", "--main", "wobble").code == 0
    page = Path("kept/report.html").read_text()
    assert "<h1>Kept</h1>" in page
    assert "Where student and teacher differ" not in page
    assert "The cache" not in page
    assert "wobble direction not known" in re.sub(r"<[^>]+>|\s+", " ", page).replace("  ", " ")
    given = inside("report", "kept", "--cache", str(folder / "a.cache"), "--out", "with.html")
    assert given.code == 0, given.err
    assert "thirds" in Path("with.html").read_text()

    shutil.copytree(folder / "a.cache", folder / "b.cache")
    two = inside("report", str(folder))
    assert two.code == 1
    assert "has several caches: a.cache, b.cache" in two.err
    wrong = inside("report", "kept", "--cache", "nowhere")
    assert wrong.code == 1
    assert "nowhere" in wrong.err
    Path("empty").mkdir()
    assert "no trained student below empty" in inside("report", "empty").err
    assert "did you mean" in inside("report", "sqares.py").err
    never = inside("report", "squares.py", "--folder", "elsewhere")
    assert "no trained student below elsewhere" in never.err


def test_a_student_that_is_another_by_now_is_said_on_the_page(ran: Ran) -> None:
    inside, folder = ran
    text = Path("squares.py").read_text()
    Path("squares.py").write_text(text.replace("nn.Linear(36, 3))", "nn.Linear(36, 3), nn.ReLU())"))
    done = inside("report", "squares.py")
    assert done.code == 0, done.err
    page = (folder / "report.html").read_text()
    assert "The rows on which they differ are not shown" in page
    assert "its build is not the one that it was trained with" in page
    assert Cache(folder / "a.cache").snapshots() == [1]
