"""ONNX models as teachers: any tensor by name, equal to the same maths in numpy; files as identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, OnnxTeacher, teach
from stillroom.stages.data.rows import Batch
from stillroom.stages.teachers.onnx_files import OnnxFile
from stillroom.storage import Cache, Reader
from stillroom.storage.errors import (
    FormatError,
    IdentityError,
    SignalError,
    UnknownSignalError,
)
from stillroom.storage.identity import differences
from stillroom.storage.ragged import Ragged
from tests.stages.builders import answers, taught

RECORDED = Path(__file__).parent / "recorded"
WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)
slow = pytest.mark.slow


def recorded(folder: Path) -> OnnxFile:
    """relu(x @ weights), with the weights in a file beside it."""
    folder.mkdir(exist_ok=True)
    for name in ("outside.onnx", "weights.bin"):
        (folder / name).write_bytes((RECORDED / name).read_bytes())
    return OnnxFile(folder / "outside.onnx")


def test_a_file_says_which_tensors_it_computes_and_which_files_lie_beside_it(
    tmp_path: Path,
) -> None:
    file = recorded(tmp_path / "a")
    assert (file.tensors, file.beside) == (("mid", "y"), ("weights.bin",))
    assert file.digests().keys() == {"model", "data/weights.bin"}
    assert recorded(tmp_path / "b").digests() == file.digests()  # where it lies does not count
    before, weights = file.digests(), tmp_path / "a" / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[5] ^= 1
    weights.write_bytes(content)
    assert differences(before, OnnxFile(file.path).digests()) == ["data/weights.bin changed"]
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"keeps weights in 'weights\.bin'"):
        file.digests()


def test_what_is_no_model_is_refused_by_name_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = (RECORDED / "outside.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            OnnxFile(path)
        except FormatError:
            refused += 1
    assert refused > len(whole) * 0.9  # what lies behind the graph may be missing
    for content in (b"\x00" * 40, b"\xff" * 40, bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="is no ONNX model"):
            OnnxFile(path)
    with pytest.raises(FileNotFoundError, match="no model at"):
        OnnxFile(tmp_path / "none.onnx")


def test_weights_outside_the_models_folder_are_never_read(tmp_path: Path) -> None:
    whole = (RECORDED / "outside.onnx").read_bytes()
    (tmp_path / "secret.txt").write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / "model.onnx"
    assert whole.count(b"weights.bin") == 1
    for name in (b"../secr.txt", b"/etc/passwd"):
        path.write_bytes(whole.replace(b"weights.bin", name))
        with pytest.raises(FormatError, match="outside its own folder"):
            OnnxFile(path).digests()


def test_settings_that_cannot_be_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="provider 'gpu'"):
        OnnxTeacher("t", "m.onnx", provider="gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optimise 'full'"):
        OnnxTeacher("t", "m.onnx", optimise="full")  # type: ignore[arg-type]
    with pytest.raises(SignalError, match="does not give 'boxes'"):
        OnnxTeacher("t", "m.onnx", ragged=("boxes",))


Node = tuple[str, Sequence[str], Sequence[str]]


def saved(
    path: Path,
    nodes: Sequence[Node],
    inputs: Sequence[tuple[str, str, Sequence[Any]]],
    outputs: Sequence[tuple[str, str | None, Sequence[Any]]],
    weights: dict[str, NDArray[Any]] | None = None,
    **attributes: Any,
) -> Path:
    """A model of these nodes; attributes belong to the last one."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto

    def value(name: str, kind: str | None, shape: Sequence[Any]) -> Any:
        if kind is None:
            return helper.make_tensor_sequence_value_info(name, kinds.FLOAT, None)
        return helper.make_tensor_value_info(name, getattr(kinds, kind), shape)

    made = [helper.make_node(kind, list(given), list(gives)) for kind, given, gives in nodes]
    made[-1].attribute.extend([helper.make_attribute(n, v) for n, v in attributes.items()])
    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in (weights or {}).items()]
    graph = helper.make_graph(
        made, "g", [value(*i) for i in inputs], [value(*o) for o in outputs], tensors
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def linear(path: Path, batch: Any = "n", kind: str = "FLOAT", dtype: str = "float32") -> Path:
    nodes: list[Node] = [("MatMul", ["x", "w"], ["mid"]), ("Relu", ["mid"], ["y"])]
    return saved(
        path,
        nodes,
        [("x", kind, [batch, 3])],
        [("y", kind, [batch, 2])],
        {"w": WEIGHTS.astype(dtype)},
    )


def column(rows: int, dtype: str = "float32") -> NDArray[Any]:
    return np.random.default_rng(1).standard_normal((rows, 3)).astype(dtype)


BOTH = {"logits": "", "hidden": "mid"}


@slow
@pytest.mark.parametrize("place", ["inside", "beside"])
def test_outputs_and_inner_tensors_equal_numpy_and_a_flipped_byte_is_another_teacher(
    tmp_path: Path, place: str
) -> None:
    pytest.importorskip("onnxruntime")
    if place == "inside":
        path = changed = linear(tmp_path / "m.onnx")
    else:
        path = recorded(tmp_path / "m").path
        changed = path.parent / "weights.bin"
    x = column(23)
    rows = ArrayRows(range(23), x=x)
    teacher = OnnxTeacher("lin", path, BOTH, ("x",))
    snapshot = taught(tmp_path / "c", rows, teacher)
    expected = x @ WEIGHTS
    np.testing.assert_allclose(answers(snapshot, rows, "hidden"), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        answers(snapshot, rows, "logits"), np.maximum(answers(snapshot, rows, "hidden"), 0)
    )
    before = teacher.identity()
    assert before["provider"] == "CPUExecutionProvider"
    content = bytearray(changed.read_bytes())
    place_of_one = content.index(np.float32(5).tobytes())
    content[place_of_one] ^= 1
    changed.write_bytes(content)
    [change] = differences(before, teacher.identity())
    assert change.startswith("files differ in ")
    again = taught(tmp_path / "c", rows, teacher)
    assert again.number == 2
    assert not np.array_equal(answers(again, rows, "hidden"), answers(snapshot, rows, "hidden"))


@slow
@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_of_a_fixed_batch_says_what_one_of_any_batch_says(
    tmp_path: Path, batch: int
) -> None:
    free = OnnxTeacher("t", linear(tmp_path / "free.onnx"), BOTH, ("x",)).load()
    fixed = OnnxTeacher("t", linear(tmp_path / "fixed.onnx", batch), BOTH, ("x",)).load()
    for rows in (1, 3, 4, 9):
        given: Batch = {"x": column(rows)}
        for name, values in free(given).items():
            found: Any = fixed(given)[name]
            expected: Any = values
            assert found.shape == (rows, 2)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@slow
def test_half_floats_stay_half_and_wider_floats_are_narrowed_to_them(tmp_path: Path) -> None:
    path = linear(tmp_path / "half.onnx", kind="FLOAT16", dtype="float16")
    x = column(5)
    found: Any = OnnxTeacher("t", path, {"logits": "y"}, ("x",)).load()({"x": x})["logits"]
    assert found.dtype == np.float16
    expected = np.maximum(x.astype(np.float16).astype(np.float64) @ WEIGHTS, 0)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def fed(x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"x": x.astype("float32") / 2}


def pair(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    return x, x


@slow
def test_preparation_feeds_by_name_and_is_part_of_the_identity(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    whole = np.arange(12).reshape(4, 3)
    plain = OnnxTeacher("t", path, {"logits": "y"}, ("x",))
    prepared = OnnxTeacher("t", path, {"logits": "y"}, ("x",), prepare=fed)
    assert differences(plain.identity(), prepared.identity()) == ["prepare: new"]
    found = prepared.load()({"x": whole})["logits"]
    np.testing.assert_array_equal(found, whole / 2 @ WEIGHTS)
    with pytest.raises(
        SignalError, match=r"input 'x' takes tensor\(float\), found int64.*prepare="
    ):
        plain.load()({"x": whole})
    renamed = OnnxTeacher("t", path, {"logits": "y"}, ("image",), feeds={"image": "x"})
    np.testing.assert_array_equal(
        renamed.load()({"image": column(4)})["logits"], plain.load()({"x": column(4)})["logits"]
    )


@slow
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"outputs": {"logits": "mud"}}, UnknownSignalError, "no tensor 'mud'.*did you mean 'mid'"),
        ({"feeds": {"x": "xs"}}, SignalError, "no input 'xs'; did you mean 'x'"),
        ({"prepare": pair}, SignalError, r"takes 1 inputs \(x\), 2 were given"),
        (
            {"provider": "cuda"},
            IdentityError,
            "was to run on CUDAExecutionProvider, and cannot here",
        ),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"outputs": {"logits": ""}, "inputs": ("x",), **change}
    teacher = OnnxTeacher("t", linear(tmp_path / "m.onnx"), **given)
    with pytest.raises(error, match=message):
        teacher.load()({"x": column(4)})


@slow
def test_rows_of_another_width_and_files_that_are_none_are_named(tmp_path: Path) -> None:
    teacher = OnnxTeacher("t", linear(tmp_path / "m.onnx"), inputs=("x",))
    with pytest.raises(SignalError, match=r"cannot take what it is given \(x \(4, 5\) float32\)"):
        teacher.load()({"x": np.zeros((4, 5), np.float32)})
    content = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(content.replace(b"MatMul", b"MutMal"))
    with pytest.raises(FormatError, match=r"m\.onnx cannot be loaded"):
        teacher.load()


def with_batch(path: Path) -> Path:
    """(1, 3) -> (1, k, 2): the places of what is not zero, with the batch as first axis."""
    nodes: list[Node] = [
        ("NonZero", ["x"], ["places"]),
        ("Transpose", ["places"], ["each"]),
        ("Unsqueeze", ["each", "zero"], ["found"]),
    ]
    shape = [("found", "INT64", [1, "k", 2])]
    return saved(path, nodes, [("x", "FLOAT", [1, 3])], shape, {"zero": np.array([0])})


def without_batch(path: Path) -> Path:
    nodes: list[Node] = [("NonZero", ["x"], ["places"]), ("Transpose", ["places"], ["found"])]
    return saved(path, nodes, [("x", "FLOAT", ["n", 3])], [("found", "INT64", ["k", 2])])


@slow
@pytest.mark.parametrize("model", [with_batch, without_batch])
def test_rows_of_different_lengths_are_taken_one_by_one(
    tmp_path: Path, model: Callable[[Path], Path]
) -> None:
    x = np.array([[0, 1, 2], [0, 0, 0], [3, 0, 0], [1, 1, 1]], np.float32)
    path = model(tmp_path / "m.onnx")
    teacher = OnnxTeacher("t", path, {"found": "found"}, ("x",), ragged=("found",))
    rows = ArrayRows(list("abcd"), x=x)
    snapshot = taught(tmp_path / "c", rows, teacher)
    found = answers(snapshot, rows, "found")
    assert isinstance(found, Ragged)
    assert [row[:, 1].tolist() for row in found] == [np.flatnonzero(r).tolist() for r in x]


@slow
def test_texts_and_sequences_come_out_as_they_are(tmp_path: Path) -> None:
    nodes: list[Node] = [("Identity", ["t"], ["u"])]
    path = saved(tmp_path / "t.onnx", nodes, [("t", "STRING", ["n"])], [("u", "STRING", ["n"])])
    texts = ["a", "bé", ""]
    assert OnnxTeacher("t", path, {"said": "u"}, ("t",)).load()({"t": texts})["said"] == texts
    nodes = [("SplitToSequence", ["x"], ["rows"])]
    path = saved(
        tmp_path / "s.onnx",
        nodes,
        [("x", "FLOAT", ["n", 3])],
        [("rows", None, [])],
        axis=0,
        keepdims=0,
    )
    x = column(4)
    each = OnnxTeacher("t", path, {"rows": "rows"}, ("x",)).load()({"x": x})["rows"]
    np.testing.assert_array_equal(np.stack(list(each)), x)


@slow
def test_a_text_detector_that_other_people_trained(tmp_path: Path) -> None:
    """A dense map: the probability of text at each pixel (needs rapidocr-onnxruntime, --no-deps)."""
    pytest.importorskip("onnxruntime")
    import importlib.util

    if (spec := importlib.util.find_spec("rapidocr_onnxruntime")) is None:
        pytest.skip("needs rapidocr-onnxruntime")
    assert spec.origin is not None
    model = Path(spec.origin).parent / "models" / "ch_PP-OCRv4_det_infer.onnx"
    image = np.full((6, 3, 96, 160), 1.0, np.float32)
    for row in range(6):  # rows of black strokes, as many as the row's number
        for line in range(row):
            image[row, :, 12 + 14 * line : 18 + 14 * line, 20:140:4] = -1.0
    rows = ArrayRows(range(6), image=image)
    teacher = OnnxTeacher("det", model, {"text": ""}, encodings={"text": "float16"})
    snapshot = teach(
        Cache.at(tmp_path / "c"), rows, teacher, runner=LocalRunner(), batch_size=2, shard_rows=3
    )
    found: Any = Reader(snapshot, ["text"]).gather(list(range(6)))["text"]
    assert found.shape == (6, 1, 96, 160)
    marked = (found > 0.3).sum(axis=(1, 2, 3))
    assert marked[0] == 0
    assert (marked[2:] > 500).all()
