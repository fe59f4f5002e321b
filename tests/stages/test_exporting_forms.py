"""A torch.export program and an ONNX file answer as the student does, or are not kept."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages import ExportError, load_student
from stillroom.stages.exporting.comparing import compare
from stillroom.stages.exporting.decomposed import adaptive_max_pool2d
from stillroom.storage import Snapshot
from tests.stages.builders import network, pupil, student, taught, trained
from tests.stages.export_builders import IMAGE, ROWS, SHIFT, exported, fused, metrics


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def peeking() -> Any:
    class Peeking(torch.nn.Module):
        def forward(self, given: Any) -> Any:
            return given * 2 if given.sum() > 0 else given

    return torch.nn.Sequential(*pupil(), Peeking())


def test_a_program_takes_any_number_of_rows_and_holds_none(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (record,) = trained(tmp_path / "s", [student()], snapshot)
    out = tmp_path / "out"
    said = exported(record, student(), out, formats=("pt2",)).content
    assert list(said["forms"]) == ["safetensors", "pt2"]
    module = torch.export.load(out / "student.pt2").module()
    whole = load_student(out, pupil)
    for rows in (1, 2, 5, 20):
        with torch.inference_mode():
            one, other = module(IMAGE[:rows]), whole(IMAGE[:rows])
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    with zipfile.ZipFile(out / "student.pt2") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert not any(part.startswith(b"PK") or b"\x80\x02" in part[:4] for part in content.values())
    assert not any(b"stack_trace" in part or b".py" in part for part in content.values())

    learner = student(build=peeking)
    (odd,) = trained(tmp_path / "odd", [learner], snapshot)
    with pytest.raises(
        ExportError, match=r"cannot be traced by torch.export .*Written and checked: safet"
    ):
        exported(odd, learner, out, formats=("pt2",))
    assert not (out / "student.pt2").exists()
    assert [p.name for p in sorted(out.iterdir())] == ["student.json", "weights.safetensors"]
    with torch.inference_mode():
        assert metrics(load_student(out, peeking)(IMAGE)["logits"]) == odd.metrics


def two_faced() -> Any:
    class TwoFaced(torch.nn.Module):
        def forward(self, given: Any) -> Any:
            return given + 0.25 if torch.compiler.is_exporting() else given

    return torch.nn.Sequential(*pupil(), TwoFaced())


@pytest.mark.slow
def test_a_form_that_answers_otherwise_is_not_kept(tmp_path: Path, snapshot: Snapshot) -> None:
    pytest.importorskip("onnxscript")
    learner = student(build=two_faced)
    (record,) = trained(tmp_path / "s", [learner], snapshot)
    with pytest.raises(ExportError) as refused:
        exported(record, learner, tmp_path / "out", formats=("pt2", "onnx"))
    said = str(refused.value)
    for form in ("student.pt2", "student.onnx"):
        assert f"{form} of student 'kd', seed 0 differs from the student by 0.2" in said
    assert "in 'logits' of row 'r4" in said or "in 'logits' of row 'r5" in said
    assert "Written and checked: safetensors" in said
    assert len(list((tmp_path / "out").iterdir())) == 2


def convolutional() -> Any:
    from torch import nn

    return nn.Sequential(
        *(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 6, 2, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 4)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["norm", "convolution", "fused"])
def test_onnx_answers_as_the_student(tmp_path: Path, snapshot: Snapshot, kind: str) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    build: Any = partial(pupil, normed=True) if kind == "norm" else convolutional
    learner = student(build=build)
    if kind == "fused":
        record, learner = fused(tmp_path / "s", snapshot)
        build = pupil
    else:
        (record,) = trained(tmp_path / "s", [learner], snapshot)
    out = tmp_path / "out"
    exported(record, learner, out, formats=("onnx",), snapshot=snapshot, tables=SHIFT)
    session = onnxruntime.InferenceSession(out / "student.onnx", providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, made.name) == ("image", ["rows", 8], "logits")
    whole = load_student(out, build, learner.recipe)
    for rows in (1, 3, 20):
        (logits,) = session.run(None, {"image": ROWS["image"][:rows]})
        with torch.inference_mode():
            wanted = whole(IMAGE[:rows])["logits"].numpy()
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * max(1, abs(wanted).max()))
    content = (out / "student.onnx").read_bytes()
    assert b".py" not in content  # neither paths nor lines of source code


arrays = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=arrays, size=st.floats(1e-3, 1e3), at=st.data())
def test_the_largest_difference_is_named_with_its_row(
    shape: tuple[int, int, int], size: float, at: Any
) -> None:
    rows, width, seed = shape
    wanted = np.random.default_rng(seed).normal(0, size, (rows, width))
    place = at.draw(st.integers(0, rows - 1)), at.draw(st.integers(0, width - 1))
    moved = at.draw(st.floats(1e-6, 10.0))
    found = wanted.copy()
    found[place] += moved
    keys = [f"row-{i}" for i in range(rows)]
    apart = abs(found[place] - wanted[place]) / max(1.0, abs(wanted).max())
    one, other = {"y": wanted}, {"y": found}
    assert compare(one, one, keys, 0.0, "it") == 0.0
    assert compare(one, other, keys, apart, "it") == apart
    with pytest.raises(ExportError, match=rf"in 'y' of row 'row-{place[0]}'"):
        compare(one, other, keys, apart * 0.999, "it")


def test_infinities_are_equal_to_themselves_alone() -> None:
    masked = np.array([[0.0, -np.inf], [1.0, np.inf]], "f4")
    assert compare({"y": masked}, {"y": masked.copy()}, ["a", "b"], 0.0, "it") == 0.0
    for wrong in (np.nan, np.inf, -1e30):
        other = masked.copy()
        other[0, 1] = wrong
        with pytest.raises(ExportError, match="row 'a'"):
            compare({"y": masked}, {"y": other}, ["a", "b"], 1e-4, "it")
    with pytest.raises(ExportError, match="gives 'y' as float64"):
        compare({"y": masked}, {"y": masked.astype("f8")}, ["a", "b"], 1.0, "it")
    with pytest.raises(ExportError, match="gives no 'y'; it gives z"):
        compare({"y": masked}, {"z": masked}, ["a", "b"], 1.0, "it")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    made=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_adaptive_pooling_in_other_words_is_the_same(
    size: tuple[int, int], made: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 3, *size)
    wanted = torch.nn.functional.adaptive_max_pool2d(x, made, return_indices=True)
    found = adaptive_max_pool2d(x, made)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
