"""A trained student is written as inference needs it, and what is written answers as it did."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stillroom.stages import ExportError, Fit, export_student, load_student
from stillroom.stages.exporting.described import import_path, spelled
from stillroom.storage import FormatError, Snapshot
from stillroom.storage.errors import MissingPackageError
from tests.stages.builders import SPLITS, data, network, pupil, student, taught, trained
from tests.stages.export_builders import (
    FUSED,
    HELD,
    IMAGE,
    SHIFT,
    exported,
    fused,
    metrics,
    mixed,
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def test_the_weights_answer_as_evaluation_saw_the_student(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    learner = student(build=partial(pupil, normed=True))
    (record,) = trained(tmp_path / "s", [learner], snapshot)
    said = exported(record, learner, tmp_path / "out").content
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "student.json", "weights.safetensors"]  # fmt: skip
    whole = load_student(tmp_path / "out", partial(pupil, normed=True))
    assert not whole.training
    with torch.inference_mode():
        assert metrics(whole(IMAGE)["logits"]) == record.metrics == said["metrics"]
    # A student without heads needs nothing of ours: the file is its state dict.
    plain = pupil(normed=True)
    plain.load_state_dict(load_file(tmp_path / "out" / "weights.safetensors"))
    assert said == json.loads((tmp_path / "out" / "student.json").read_text())
    assert said["architecture"]["import"] == "tests.stages.builders:pupil"
    assert said["inputs"] == [{"name": "image", "shape": ["rows", 8], "dtype": "float32"}]
    assert said["outputs"] == [{"name": "logits", "shape": ["rows", 4], "dtype": "float32"}]
    assert said["trained"]["digest"] == record.content["digest"]
    assert str(tmp_path) not in (tmp_path / "out" / "student.json").read_text()


def test_the_answer_goes_with_its_heads_its_table_and_its_tuned_settings(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    record, learner = fused(tmp_path / "s", snapshot)
    with pytest.raises(ExportError, match=r"answers with table.shift.*give it: tables="):
        exported(record, learner, tmp_path / "out", snapshot=snapshot)
    exported(record, learner, tmp_path / "out", snapshot=snapshot, tables=SHIFT)
    share = record.content["answer"]["share"]
    whole = load_student(tmp_path / "out", pupil, FUSED)
    body, heads = pupil(), load_file(record.heads)
    body.load_state_dict(load_file(record.weights))
    with torch.inference_mode():
        feature = body[:3](IMAGE)
        second = torch.nn.functional.linear(feature, heads["second.weight"], heads["second.bias"])
        wanted = mixed(body(IMAGE), second, torch.from_numpy(SHIFT["shift"]), IMAGE, share=share)
        assert torch.equal(whole(IMAGE)["logits"], wanted)
        assert metrics(wanted) == record.metrics
    stored = load_file(tmp_path / "out" / "weights.safetensors")
    assert {n for n in stored if ":" in n} == {
        "head:second.weight", "head:second.bias", "table:shift"}  # fmt: skip
    with pytest.raises(ExportError, match="trained with recipe 'fused', whose heads or answer it"):
        load_student(tmp_path / "out", pupil)
    with pytest.raises(
        ExportError, match="needs head 'second' of recipe 'fused'; 'other' has none"
    ):
        load_student(tmp_path / "out", pupil, replace(FUSED, name="other", heads=(), terms=FUSED.terms[:1], answer=None))  # fmt: skip # noqa: E501


def test_best_last_and_average_weights_are_chosen_by_name(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    fit = Fit(*(12, 8, 0.5), schedule="constant", watch="accuracy", average=0.5, optimizer="sgd")
    learner = student(fit=fit, validation="held")
    (record,) = trained(tmp_path / "s", [learner], snapshot, splits=HELD)
    assert record.content["best_epoch"] < 12  # else best and last are one
    files = {"best": record.weights, "last": record.folder / "last.safetensors", "average": record.average}  # fmt: skip # noqa: E501
    seen = set()
    for which, file in files.items():
        said = exported(record, learner, tmp_path / which, weights=which).content
        mine = load_file(tmp_path / which / "weights.safetensors")
        theirs = load_file(file)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        with torch.inference_mode():
            logits = load_student(tmp_path / which, pupil)(IMAGE)["logits"]
        assert said["metrics"] == metrics(logits)
        seen.add(said["metrics"]["nll"])
    assert len(seen) == 3
    (plain,) = trained(tmp_path / "p", [student()], snapshot)
    with pytest.raises(ExportError, match=r"has no average weights at .*Fit\(average=0.999\)"):
        exported(plain, student(), tmp_path / "no", weights="average")
    last = exported(plain, student(), tmp_path / "no", weights="last")
    assert last.content["metrics"] == plain.metrics


def test_inner_layers_are_outputs_where_they_are_asked_for(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (record,) = trained(tmp_path / "s", [student()], snapshot)
    exported(record, student(), tmp_path / "out", outputs=("feature", "logits"))
    found = load_student(tmp_path / "out", pupil)(IMAGE)
    assert {n: tuple(t.shape) for n, t in found.items()} == {"feature": (20, 6), "logits": (20, 4)}
    with pytest.raises(ExportError, match="gives no 'logit'; did you mean 'logits'"):
        exported(record, student(), tmp_path / "no", outputs=("logit",))
    assert not (tmp_path / "no").exists()


def test_another_definition_or_architecture_is_refused(tmp_path: Path, snapshot: Snapshot) -> None:
    (record,) = trained(tmp_path / "s", [student()], snapshot)
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="its build is not the one that it was trained with"):
        exported(record, student(build=partial(pupil, 7)), out)
    with pytest.raises(ExportError, match="its recipe is not the one"):
        exported(record, student(method="labels"), out)
    with pytest.raises(ExportError, match="the record is of student 'kd', not of 'other'"):
        exported(record, student("other"), out)
    with pytest.raises(ExportError, match="holds a student's record; name another folder"):
        exported(record, student(), record.folder)
    with pytest.raises(ExportError, match="no form 'onxx'; did you mean 'onnx'"):
        exported(record, student(), out, formats=("onxx",))
    assert not out.exists()
    exported(record, student(), out)
    with pytest.raises(
        ExportError, match=r"another architecture than .*pupil\(7\) makes: .*0.weight"
    ):
        load_student(out, partial(pupil, 7))
    wide = load_file(record.weights) | {"0.weight": torch.zeros(9, 8)}
    save_file(wide, record.weights)
    with pytest.raises(
        ExportError, match=r"another architecture than .*size mismatch for 0.weight"
    ):
        exported(record, student(), out)


def test_what_is_no_number_is_named(tmp_path: Path, snapshot: Snapshot) -> None:
    (record,) = trained(tmp_path / "s", [student()], snapshot)
    whole = load_file(record.weights)
    image = np.array(data().read(np.arange(60), ["image"])["image"])
    image[47, 2] = np.nan
    with pytest.raises(ExportError, match="answers NaN in 'logits' for row 'r47'"):
        export_student(record, student(), data(image=image), tmp_path / "n", keys=SPLITS["test"])
    whole["3.bias"][1] = float("nan")
    save_file(whole, record.weights)
    with pytest.raises(ExportError, match=r"hold 1 values in '3.bias' that are no finite numbers"):
        exported(record, student(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_are_not_those_of_the_record_are_noticed(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (record,) = trained(tmp_path / "s", [student()], snapshot)
    with pytest.raises(
        ExportError, match=r"(accuracy|nll|ece) is .* on these rows, its record says"
    ):
        exported(record, student(), tmp_path / "out", keys=SPLITS["train"])


def unsteady() -> Any:
    class Unsteady(torch.nn.Module):
        def forward(self, given: Any) -> Any:
            return torch.nn.functional.dropout(given, 0.5, training=True)

    return torch.nn.Sequential(*pupil(), Unsteady())


def test_a_student_that_answers_at_random_is_refused(tmp_path: Path, snapshot: Snapshot) -> None:
    learner = student(build=unsteady)
    (record,) = trained(tmp_path / "s", [learner], snapshot)
    with pytest.raises(ExportError, match="answers 'logits' otherwise when it is asked again"):
        exported(record, learner, tmp_path / "out")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "version", "json"])
def test_a_folder_that_was_changed_is_not_loaded(
    tmp_path: Path, snapshot: Snapshot, damage: str
) -> None:
    (record,) = trained(tmp_path / "s", [student()], snapshot)
    out = tmp_path / "out"
    exported(record, student(), out)
    weights, said = out / "weights.safetensors", out / "student.json"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        weights.write_bytes(content[:-4])
    elif damage == "gone":
        said.unlink()
    elif damage == "version":
        said.write_text(said.read_text().replace('"format": 1', '"format": 2'))
    else:
        said.write_text('{"format": 1, "forms": []}')
    with pytest.raises(FormatError, match=str(out)):
        load_student(out, pupil)


def test_an_architecture_is_spelled_as_one_would_write_it() -> None:
    path = import_path(partial(partial(pupil, 7), normed=True))
    assert path["arguments"] == [7]
    assert spelled(path) == "tests.stages.builders.pupil(7, normed=True)"


def test_a_missing_package_is_said_before_anything_is_written(
    tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = student()
    (record,) = trained(tmp_path / "s", [learner], snapshot)
    monkeypatch.setattr("stillroom.stages.exporting.forms.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"onnxruntime.*'stillroom\[export\]'"):
        exported(record, learner, tmp_path / "out", formats=("onnx",))
    assert not (tmp_path / "out").exists()
