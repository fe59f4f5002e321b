"""Routing: what does not fit together is named, and nothing of it is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillroom.stages import (
    FunctionTeacher,
    RoutedTeacher,
    Teacher,
)
from stillroom.stages.reading import Reading
from stillroom.storage.errors import IdentityError, RowsError, SignalError
from tests.stages.builders import answers, images, taught
from tests.stages.routed_builders import (
    Noted,
    data,
    expert,
    routed,
    spoken,
)


def test_a_value_that_no_expert_has_is_named_with_its_rows(tmp_path: Path) -> None:
    rows = data(language=["de"] * 20 + ["en", "??"] * 5)
    with pytest.raises(
        RowsError, match=r"no expert for 10 of 30 rows: 'r20' \('en'\), 'r21' \('\?\?'\)"
    ):
        routed().rows(rows)
    with pytest.raises(RowsError, match="Known values of 'language': 'de', 'fr', 'it'"):
        routed().rows(rows)
    with pytest.raises(RowsError, match="the route reads column 'tongue'"):
        replace(routed(), column="tongue").rows(rows)
    with pytest.raises(RowsError, match=r"expert for 'fr' \('wide'\) reads column 'size'"):
        routed(fr=FunctionTeacher("wide", spoken, ("size",), ("logits",))).rows(rows)


def test_rows_that_are_not_routed_or_to_others_are_refused(tmp_path: Path) -> None:
    rows, teacher = data(), routed()
    with pytest.raises(RowsError, match=r"do not say who their experts are.*Teach teacher\.rows"):
        taught(tmp_path / "c", rows, teacher)
    old = teacher.rows(rows)
    taught(tmp_path / "c", old, teacher)
    changed = replace(teacher, teachers={**teacher.teachers, "fr": expert(9)})
    # Nothing else would notice: the joint identity and the rows are those that were taught.
    with pytest.raises(RowsError, match="routed to other experts"):
        taught(tmp_path / "c", old, changed)
    with pytest.raises(RowsError, match="routed already"):
        teacher.rows(old)


def wider(image: Any) -> dict[str, Any]:
    return {"logits": image[:, :5]}


def doubles(image: Any) -> dict[str, Any]:
    return {"logits": image[:, :4].astype("float64")}


def short(image: Any) -> dict[str, Any]:
    return {"logits": image[:1, :4]}


def other(image: Any) -> dict[str, Any]:
    return {"logit": image}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (wider, r"row shape \(4,\) became \(5,\) from the expert for 'de' to that for 'fr'"),
        (doubles, "dtype 'float32' became 'float64' from the expert for 'de' to that for 'fr'"),
        (short, "the expert for 'fr' gave 1 rows for 2"),
        (other, "the expert for 'fr' gave none; did you mean 'logit'"),
    ],
)
def test_an_expert_that_answers_otherwise_is_named(
    tmp_path: Path, answer: Any, message: str
) -> None:
    good = expert(1, signals=("logits",))
    teacher = routed(de=good, fr=expert(2, answer=answer, signals=("logits",)), it=good)
    with pytest.raises(SignalError, match=message):
        taught(tmp_path / "c", teacher.rows(data()), teacher, batch_size=6)


@pytest.mark.parametrize(
    ("french", "message"),
    [
        (
            expert(2, signals=("logits",)),
            "for 'de' gives logits, said, tokens, that for 'fr' logits",
        ),
        (
            expert(2, encodings={"logits": "float16"}),
            "'logits': encoded as raw by the expert for 'de', as float16 by that for 'fr'",
        ),
    ],
)
def test_experts_have_to_promise_the_same(french: Teacher, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        routed(de=expert(1), fr=french).asks()
    with pytest.raises(SignalError, match="has no experts"):
        RoutedTeacher("t", "language").asks()
    heads = {"logits": "head(lm_head)"}
    with pytest.raises(SignalError, match=r"head\(lm_head\) needs one head for all rows"):
        routed(de=expert(1, encodings=heads)).asks()


def test_experts_of_another_shape_are_another_version(tmp_path: Path) -> None:
    teacher, rows = routed(de=expert(1, signals=("logits",))), data(language=["de"] * 30)
    taught(tmp_path / "c", teacher.rows(rows), teacher)
    changed = routed(de=expert(1, answer=wider, signals=("logits",)))
    with pytest.raises(SignalError, match="give the teacher a version to answer all rows anew"):
        taught(tmp_path / "c", changed.rows(rows), changed)
    changed = replace(changed, version="2")
    assert answers(taught(tmp_path / "c", changed.rows(rows), changed), rows).shape == (30, 5)


def test_an_expert_that_changed_since_it_was_planned_stores_nothing(tmp_path: Path) -> None:
    teacher = routed(
        de=expert(1), fr=Noted(expert(2), tmp_path / "log", changing=True), it=expert(3)
    )
    rows = teacher.rows(data())
    with pytest.raises(IdentityError, match="the expert for 'fr', as it was loaded here, is not"):
        taught(tmp_path / "c", rows, teacher)
    assert not list((tmp_path / "c").glob("segments/*/receipts/*"))


def test_students_are_refused_rows_that_changed_since_or_have_other_experts(tmp_path: Path) -> None:
    rows, teacher = data(), routed()
    snapshot = taught(tmp_path / "c", teacher.rows(rows), teacher)
    splits = {"train": rows.keys}
    seen = Reading(teacher.rows(rows), snapshot, splits).teacher("logits", "train")
    assert seen == Reading(routed().rows(rows), snapshot, splits).teacher("logits", "train")
    image = images(30)
    image[11] += 1
    changed = replace(teacher, teachers={**teacher.teachers, "fr": expert(9)})
    for count, now in ((1, teacher.rows(data(image=image))), (10, changed.rows(rows))):
        with pytest.raises(RowsError, match=f"^{count} rows of split 'train' changed since"):
            Reading(now, snapshot, splits).teacher("logits", "train")
