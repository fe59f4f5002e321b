"""Classes without probability: -inf is taken where the encoding keeps none of them, else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import audit
from stillroom.stages.worker.answers import checked
from stillroom.storage import Cache, Reader, verify
from stillroom.storage.encodings.encoding import encoding as coding_of
from stillroom.storage.errors import SignalError, UnsteadyError
from stillroom.storage.folder import Ask
from stillroom.storage.ragged import Ragged
from tests.stages.builders import answers, data, images, plain, taught

SPARSE = ("topk(3)", "sampled(20)", "packed(topk(3))", "packed(sampled(20))")
DENSE = ("raw", "float32", "float16", "bfloat16", "int8")


def masked(image: Any) -> Any:
    """Eight classes, of which each row lacks some."""
    lacking = np.arange(8) % 4 == (np.abs(image[:, :1] * 100).astype(int) % 4)
    return {"logits": np.where(lacking, -np.inf, image).astype(np.float32)}


def ragged_by_row(image: Any) -> Any:
    rows = masked(image)["logits"]
    return {"logits": [np.stack([row] * (1 + int(row[0] > row[1]))) for row in rows]}


@pytest.mark.parametrize("encoding", SPARSE)
@pytest.mark.parametrize("answer", [masked, ragged_by_row])
def test_masked_classes_are_taught_checked_and_audited(
    tmp_path: Path, answer: Any, encoding: str
) -> None:
    teacher = plain(answer=answer, encodings={"logits": encoding})
    snapshot = taught(tmp_path / "c", teacher=teacher)
    assert verify(tmp_path / "c").problems == ()
    assert audit(Cache(tmp_path / "c"), data(), teacher, runner=LocalRunner()).faithful
    found = answers(snapshot, data())
    expected = answer(images(60))["logits"]
    assert np.isfinite(found.values if isinstance(found, Ragged) else found).all()
    for row, truth in zip(found, expected, strict=True):
        assert row.shape == truth.shape
        p = np.exp(np.float64(row) - np.logaddexp.reduce(np.float64(row), -1, keepdims=True))
        if "sampled" in encoding:
            assert p[np.isneginf(truth)].max(initial=0.0) < 1e-20


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 6))
def test_none_of_what_is_kept_is_masked_and_sums_and_tails_are_right(
    seed: int, classes: int, k: int
) -> None:
    random = np.random.default_rng(seed)
    k = min(k, classes)
    logits = random.normal(0, 4, (5, classes))
    for row in logits:
        row[random.permutation(classes)[: random.integers(0, classes - k + 1)]] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    p = weights / weights.sum(-1, keepdims=True)
    top = coding_of(f"topk({k})").encode(logits)
    assert (np.take_along_axis(p, top["indices"].astype(int), -1) > 0).all()
    outside = p.copy()
    np.put_along_axis(outside, top["indices"].astype(int), 0.0, -1)
    np.testing.assert_allclose(top["tail"], outside.sum(-1), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(
        top["logsumexp"], np.logaddexp.reduce(logits, -1), rtol=1e-6, atol=1e-6
    )
    drawn = coding_of(f"sampled({k})").encode(logits)
    used = drawn["counts"] > 0
    assert (np.take_along_axis(p, drawn["indices"].astype(int), -1)[used] > 0).all()


@pytest.mark.parametrize("encoding", DENSE)
def test_encodings_that_keep_every_class_say_the_way_out(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(
        SignalError, match="infinity below zero for 4 of 4 rows of a batch"
    ) as caught:
        taught(tmp_path / "c", teacher=plain(answer=masked, encodings={"logits": encoding}))
    assert (
        f"can be stored as topk(k) or sampled(k), which keep none of them, and not as {encoding}"
        in (str(caught.value))
    )
    assert Cache(tmp_path / "c").snapshots() == []


def of(values: Any, encoding: str) -> Any:
    rows, places = data(2), np.arange(2)
    asked = {"logits": Ask(encoding, "")}
    return checked({"logits": values}, asked, plain(), rows, places, "")["logits"]


LOGITS: NDArray[Any] = np.array([[1.0, 2.0, 0.0, 3.0], [0.0, -np.inf, -np.inf, 1.0]])


@pytest.mark.parametrize("encoding", SPARSE)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_above_zero_are_refused_whatever_is_asked(
    encoding: str, bad: float
) -> None:
    values = LOGITS.copy()
    values[1, 0] = bad
    for both in (values, Ragged.of([values[:1], values[1:]])):
        with pytest.raises(SignalError, match="NaN or infinity for 1 of 2 rows of a batch: 'r1'"):
            of(both, encoding)


def test_rows_with_fewer_classes_than_are_kept_are_named() -> None:
    assert of(LOGITS, "topk(2)") is LOGITS
    assert of(LOGITS, "packed(topk(2),40)") is LOGITS
    with pytest.raises(
        SignalError, match=r"fewer than 3 classes above -inf for 1 .*: 'r1'.*smaller k"
    ):
        of(LOGITS, "topk(3)")
    deep = np.stack([LOGITS, LOGITS])  # (rows, tokens, classes)
    with pytest.raises(SignalError, match=r"fewer than 3 classes above -inf for 2 of 2 rows"):
        of(deep, "packed(topk(3))")
    assert of(deep, "sampled(9)") is deep
    nothing = np.where(np.arange(2)[:, None] == 1, -np.inf, LOGITS)
    with pytest.raises(SignalError, match="fewer than 1 classes above -inf for 1 of 2 rows"):
        of(nothing, "sampled(9)")


def test_a_class_that_is_masked_once_and_once_not_is_unsteady(tmp_path: Path) -> None:
    def moody(image: Any) -> Any:
        moody.calls += 1  # type: ignore[attr-defined]
        values = image.copy()
        values[:, moody.calls % 8] = -np.inf  # type: ignore[attr-defined]
        return {"logits": values}

    moody.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(UnsteadyError, match="asked twice for the same"):
        taught(tmp_path / "c", teacher=plain(answer=moody, encodings={"logits": "topk(3)"}))


def test_a_random_teacher_is_not_hidden_behind_its_mask(tmp_path: Path) -> None:
    def drawn(image: Any) -> Any:
        noise = np.random.default_rng().standard_normal(image.shape)
        return {"logits": np.where(np.arange(8) == 7, -np.inf, image + noise)}

    with pytest.raises(UnsteadyError, match="asked twice for the same"):
        taught(tmp_path / "c", teacher=plain(answer=drawn, encodings={"logits": "topk(3)"}))


def test_students_read_finite_logits(tmp_path: Path) -> None:
    snapshot = taught(tmp_path / "c", teacher=plain(answer=masked, encodings={"logits": "topk(3)"}))
    found: Any = Reader(snapshot, ["logits"]).gather(data().keys)["logits"]
    truth = masked(images(60))["logits"]
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found.argmax(-1), truth.argmax(-1))
