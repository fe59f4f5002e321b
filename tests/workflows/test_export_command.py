"""`stillroom export`: a workflow's trained student, written where a user wants it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.stages import load_student
from tests.workflows.conftest import Inside

FLOW = """
import numpy as np
from stillroom.pipeline import Step
from stillroom.stages import ArrayRows, Evaluation, Fit, Student, classification, recipes, train
from stillroom.workflows.exporting import export_wanted

def net():
    from torch import nn
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))

def training(run):
    image = np.random.default_rng(0).standard_normal((40, 4)).astype("f4")
    rows = ArrayRows([f"r{i}" for i in range(40)], x=image, label=(image[:, 0] > 0).astype("i8"))
    splits = {"train": [f"r{i}" for i in range(30)], "test": [f"r{i}" for i in range(30, 40)]}
    evaluation = Evaluation("test", classification)
    return {"rows": rows, "snapshot": None, "splits": splits, "evaluation": evaluation,
            "folder": run.folder / "students"}

def students(epochs):
    given = {"build": net, "recipe": recipes.find("labels"), "inputs": ("x",)}
    return [Student(n, seed=s, fit=Fit(epochs=epochs), **given)
            for n in ("small", "other") for s in (2, 5)]

def run_train(run, inputs, *, epochs):
    train(students(epochs), **training(run), runner=run.runner)
    return {}

def run_export(run, inputs, *, epochs):
    return export_wanted(run, students(epochs), **training(run))

def preview(run, inputs, *, epochs):
    return ""

def workflow(*, epochs: int = 2, exports: bool = True):
    actions = {"export": run_export} if exports else {}
    return [Step("train", run_train, {"epochs": epochs}, preview=preview, actions=actions)]
"""


def test_a_student_is_exported_by_the_name_that_the_table_shows(
    inside: Inside, tmp_path: Path
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    early = inside("export", "flow.py", "small")
    assert (early.code, "never ran in out/flow" in early.err) == (2, True)
    assert inside("run", "flow.py", "--workers", "0").code == 0

    done = inside("export", "flow.py", "small")
    assert done.code == 0, done.err
    place = Path("out/flow/export/small-2")
    assert re.match(
        rf"{place}/weights.safetensors  safetensors, \d+ B, 0 apart on 10 rows", done.out
    )
    said = inside("export", "flow.py", "small", "--seed", "5", "--to", "mine", "--json")
    described = json.loads(said.out)
    assert described["folder"] == "mine"
    assert described["student"] == json.loads(Path("mine/student.json").read_text())
    assert described["student"]["seed"] == 5
    assert described["student"]["architecture"]["import"] == "flow:net"
    one, other = (Path(p, "weights.safetensors").read_bytes() for p in (place, "mine"))
    assert one != other
    scope: dict[str, object] = {}
    exec(FLOW, scope)  # the user's own code makes the architecture
    build = scope["net"]
    assert callable(build)
    with torch.inference_mode():
        found = load_student("mine", build)(torch.from_numpy(np.ones((3, 4), "f4")))
    assert found["logits"].shape == (3, 2)


def test_what_cannot_be_exported_is_said(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    assert inside("run", "flow.py", "--workers", "0").code == 0
    for asked, code, said in (
        (("smal",), 1, "no student 'smal'; did you mean 'small'?"),
        (("small", "--seed", "3"), 1, "student 'small' has no seed 3; it has 2, 5"),
        (("small", "--format", "onyx"), 1, "no form 'onyx'; did you mean 'onnx'"),
        (("small", "--weights", "bset"), 1, "weights 'bset'; did you mean 'best'"),
        (("small", "--weights", "average"), 1, "has no average weights"),
        (("small", "--epochs", "3"), 1, "is not trained as it is defined now"),
        (("small", "--no-exports"), 2, "no step of workflow flow.py can export its students"),
    ):
        done = inside("export", "flow.py", *asked)
        assert (done.code, said in done.err) == (code, True), (asked, done)
        assert "Traceback" not in done.err
    assert not Path("out/flow/export").exists()


@pytest.mark.slow
def test_the_demos_students_go_to_every_form(inside: Inside) -> None:
    pytest.importorskip("onnxscript")
    small = ("--epochs", "1", "--teacher-epochs", "1", "--seeds", "1")
    assert inside("run", "digits", *small, "--workers", "0").code == 0
    for name in ("cnn4-fitnet", "mlp32-kd"):
        done = inside("export", "digits", name, *small, "--format", "pt2,onnx", "--json")
        assert done.code == 0, done.err
        forms = json.loads(done.out)["student"]["forms"]
        assert set(forms) == {"safetensors", "pt2", "onnx"}
        assert forms["safetensors"]["largest_difference"] == 0
        assert forms["onnx"]["largest_difference"] < 1e-4
