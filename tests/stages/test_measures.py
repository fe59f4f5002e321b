"""Measures of held-out rows: small cases by hand; no order of rows and no padding changes them."""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages import Evaluation, Fit, classification, measures
from stillroom.storage.code import code_identity
from stillroom.storage.errors import MissingPackageError
from tests.stages.builders import student, trained

pytest.importorskip("torchmetrics")
Tensors = dict[str, Any]


def sure(choices: Any, classes: int, odds: float = 8.0) -> torch.Tensor:
    """Logits (..., classes) that choose these classes."""
    return odds * torch.nn.functional.one_hot(torch.tensor(choices), classes).float()


def test_classes_say_what_classification_says_and_more() -> None:
    # Answers 0 0 1 1, labels 0 1 1 1; class 2 is neither.
    tensors = {
        "student.logits": torch.log(
            torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0]])
            + 1e-12
        ),
        "row.label": torch.tensor([0, 1, 1, 1]),
        "teacher.logits": sure([0, 0, 0, 1], 3),
    }
    found, before = measures.classes(tensors), classification(tensors)
    assert {name: found[name] for name in before} == before
    assert found["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    squares = (0.04 + 0.01 + 0.01) + (0.36 + 0.49 + 0.01) + (0.04 + 0.09 + 0.01) + 0.01 + 0.01
    assert found["brier"] == pytest.approx(squares / 4, rel=1e-6)
    assert found["mce"] == pytest.approx(0.6, rel=1e-6)  # one row at confidence 0.6 is wrong


TAGGED: Tensors = {
    "student.logits": sure([[0, 1, 1], [2, 0, 0]], 4),
    "row.tags": torch.tensor([[0, 1, 0], [2, 1, 0]]),
    "row.length": torch.tensor([3, 2]),
}


def test_tagging_counts_every_token_that_is_there() -> None:
    # Answers 0 1 1 2 0, tags 0 1 0 2 1: F1 of class 0 1/2, of 1 1/2, of 2 1; class 3 is neither.
    found = measures.tagging(TAGGED)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 / 3)
    right, wrong = (math.log(math.exp(8) + 3) - at for at in (8, 0))
    assert found["nll"] == pytest.approx((3 * right + 2 * wrong) / 5)
    marked = {**TAGGED, "row.length": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    assert measures.tagging(marked) == found
    without = {**TAGGED, "row.tags": torch.tensor([[0, 1, -100], [2, -100, 0]])}
    assert measures.tagging(without)["accuracy"] == 1


def test_a_language_model_is_measured_by_the_next_token() -> None:
    even = torch.zeros(2, 4, 5)
    tokens = torch.tensor([[1, 2, 3, 4], [3, 3, 0, 0]])
    given: Tensors = {
        "student.logits": even,
        "row.tokens": tokens,
        "row.length": torch.tensor([4, 2]),
    }
    assert measures.language(given)["perplexity"] == pytest.approx(5)  # all five alike
    # 0.5 for each of three in the first row, 0.25 for the one in the second.
    logits = torch.full((2, 4, 5), -30.0)
    for row, at, share in ((0, 0, 0.5), (0, 1, 0.5), (0, 2, 0.5), (1, 0, 0.25)):
        logits[row, at, tokens[row, at + 1]] = math.log(share)
        logits[row, at, 0] = math.log(1 - share)
    found = measures.language({**given, "student.logits": logits})
    assert found["nll"] == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))
    own = measures.language({**given, "student.logits": sure(tokens.tolist(), 5)}, shift=0)
    assert own["accuracy"] == 1


def test_segmentation_is_over_all_pixels_together() -> None:
    # Answers 0 0 1 1 / 1 1 1 1, masks 0 1 1 1 / 1 1 1 void.
    tensors = {
        "student.logits": sure([[[0, 0], [1, 1]], [[1, 1], [1, 1]]], 3).movedim(-1, 1),
        "row.mask": torch.tensor([[[0, 1], [1, 1]], [[1, 1], [1, 255]]]),
    }
    found = measures.segmentation(tensors)
    assert found["miou"] == pytest.approx((1 / 2 + 5 / 6) / 2)
    assert found["accuracy"] == pytest.approx(6 / 7)
    with pytest.raises(ValueError, match=r"has \(2, 2\) pixels and row.mask \(2, 1\)"):
        measures.segmentation({**tensors, "row.mask": torch.zeros(2, 2, 1)})


def test_retrieval_finds_rows_of_the_same_group_or_of_the_same_place() -> None:
    angle = torch.tensor([0.0, 0.1, 0.15, 2.0, 2.3])
    tensors = {
        "student.vector": torch.stack([angle.cos(), angle.sin()], 1) * torch.arange(1, 6)[:, None],
        "row.kind": torch.tensor([0, 1, 0, 0, 2]),
    }
    # Row 0 finds 1, 2, 3, 4 in this order; 2 finds 1, 0, ...; 3 finds 4, 2, ...; 1 and 4 are alone.
    search = partial(measures.retrieval, queries="student.vector", group="row.kind", at=(1, 2, 9))
    assert search(tensors) == {"recall_at_1": 0.0, "recall_at_2": 1.0, "recall_at_9": 1.0}
    # Of the texts, those of rows 0 and 1 are swapped: 0 finds its own second, 1 third.
    swapped = tensors["student.vector"][torch.tensor([1, 0, 2, 3, 4])]
    paired = partial(search, gallery="row.text", at=(1, 2))
    found = paired({**tensors, "row.text": swapped})
    assert found == {"recall_at_1": pytest.approx(3 / 5), "recall_at_2": pytest.approx(4 / 5)}


def boxes() -> Tensors:
    """Two images with three objects of two classes: one found exactly, one shifted, one missed."""
    return {
        "student.boxes": torch.tensor(
            [[[0, 0, 10, 10], [20, 20, 28, 30]], [[50, 50, 60, 60], [0, 0, 1, 1]]]
        ).float(),
        "student.scores": torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.1], [0.0, 0.0]]]),
        "row.boxes": torch.tensor(
            [[[0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 10], [7, 7, 7, 7]]]
        ).float(),
        "row.classes": torch.tensor([[0, 1], [0, 9]]),
        "row.count": torch.tensor([2, 1]),
    }


def test_detection_is_cocos_average_precision() -> None:
    pytest.importorskip("pycocotools")
    found = measures.detection(boxes())
    # Class 0: one of two found, before one that is wrong: precision 1 at the 51 recalls up to 1/2.
    # Class 1: found with an overlap of 0.8: at 7 of the 10 thresholds.
    assert found["map50"] == pytest.approx((51 / 101 + 1) / 2)
    assert found["map75"] == pytest.approx((51 / 101 + 1) / 2)
    assert found["map"] == pytest.approx((51 / 101 + 0.7) / 2)
    turned = measures.detection({name: tensor.flip(0) for name, tensor in boxes().items()})
    assert turned == pytest.approx(found)
    filled = {n: torch.cat([boxes()[n], boxes()[n]], 1) for n in ("row.boxes", "row.classes")}
    assert (
        measures.detection({**boxes(), **filled}) == found
    )  # what is after `count` counts nothing
    none = measures.detection({**boxes(), "row.count": torch.tensor([0, 0])})
    assert set(none.values()) == {0.0}


@st.composite
def held_out(draw: Any) -> tuple[str, Tensors]:
    """A measure's name and random rows for it."""
    name = draw(st.sampled_from(["classes", "tagging", "language", "segmentation", "retrieval"]))
    rows = draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (rows, *shape), generator=generator)

    logits = {
        "classes": (4,),
        "tagging": (5, 4),
        "language": (5, 6),
        "segmentation": (3, 4, 4),
        "retrieval": (3,),
    }[name]
    tensors = {
        "student.logits": 3 * torch.randn((rows, *logits), generator=generator),
        "row.label": torch.cat([torch.zeros(2, dtype=torch.long), whole(4)])[:rows],
        "row.tags": whole(4, 5),
        "row.tokens": whole(6, 5),
        "row.length": 2 + whole(4),
        "row.mask": whole(3, 4, 4),
    }
    return name, tensors


@settings(max_examples=40, deadline=None, derandomize=True)
@given(held_out(), st.randoms(use_true_random=False))
def test_no_order_of_rows_and_no_padding_changes_a_measure(
    case: tuple[str, Tensors], shuffle: Any
) -> None:
    name, tensors = case
    measure = getattr(measures, name)
    found = {n: v for n, v in measure(tensors).items() if isinstance(v, float)}
    order = shuffle.sample(range(len(tensors["row.label"])), len(tensors["row.label"]))
    mixed = measure({n: t[torch.tensor(order)] for n, t in tensors.items()})
    assert {n: mixed[n] for n in found} == pytest.approx(found, abs=1e-6)
    wider = {
        n: torch.cat([t, 7 + torch.zeros_like(t[:, :2])], 1)
        if n in ("row.tags", "row.tokens") or (t.ndim == 3 and n == "student.logits")
        else t
        for n, t in tensors.items()
    }
    if name in ("tagging", "language"):
        assert measure(wider) == pytest.approx(found, abs=1e-12)


def test_a_measure_is_part_of_a_students_identity_with_its_settings() -> None:
    one, other = (code_identity(partial(measures.tagging, tags=n)) for n in ("row.a", "row.b"))
    assert one != other
    assert one == code_identity(partial(measures.tagging, tags="row.a"))


def test_a_student_is_measured_and_watched_by_them(tmp_path: Any) -> None:
    learner = student(
        "l", "labels", validation="train", fit=Fit(2, 20, learning_rate=0.02, watch="f1")
    )
    (record,) = trained(tmp_path, [learner], None, evaluation=Evaluation("test", measures.classes))
    assert {"accuracy", "nll", "ece", "reliability", "f1", "brier", "mce"} == set(record.metrics)
    assert record.content["curve"][-1]["validation"]["f1"] > 0


def test_without_its_package_a_measure_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(MissingPackageError, match=r"torchmetrics.*'stillroom\[metrics\]'"):
        measures.tagging(TAGGED)
    with pytest.raises(MissingPackageError, match=r"pycocotools.*'stillroom\[detection\]'"):
        measures.detection(boxes())


@pytest.mark.parametrize(
    ("measure", "tensors", "message"),
    [
        (
            measures.tagging,
            {"row.tags": 1},
            "reads student.logits, which is not there; there are row",
        ),
        (
            measures.tagging,
            {**TAGGED, "row.tags": torch.zeros(2)},
            r"row.tags should be \(n, tokens\), found shape \(2,\)",
        ),
        (
            measures.tagging,
            {n: t for n, t in TAGGED.items() if n != "row.length"},
            "name it: length=",
        ),
        (measures.tagging, {**TAGGED, "row.length": torch.zeros(2)}, "no token to measure"),
    ],
)
def test_what_cannot_be_measured_is_said(measure: Any, tensors: Tensors, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(tensors)
