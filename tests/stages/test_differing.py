"""Where a trained student and its teacher differ: answered again, judged, the furthest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages import (
    Answer,
    Evaluation,
    Head,
    Record,
    Student,
    classification,
    recipes,
    term,
)
from stillroom.stages.differing import (
    NotAnsweringError,
    differing_rows,
    distance_apart,
    kl_apart,
    teacher_measured,
)
from stillroom.stages.exporting.described import ExportError
from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.logits import kl
from stillroom.storage import Reader, Snapshot
from stillroom.storage.errors import RowsError, UnknownRowError
from tests.stages.builders import SPLITS, data, network, pupil, student, taught, trained

TEST = SPLITS["test"]
Trained = tuple[Student, Record, Snapshot]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A student with batch norm, whose answers hang on running means that only its weights hold."""
    from functools import partial

    folder = tmp_path_factory.mktemp("one")
    snapshot = taught(folder / "cache", teacher=network())
    mine = student("kd", build=partial(pupil, normed=True))
    (record,) = trained(folder / "students", [mine], snapshot)
    return mine, record, snapshot


def test_the_student_answers_as_it_did_when_it_was_measured(one: Trained) -> None:
    mine, record, snapshot = one
    found = differing_rows(record, mine, data(), Reader(snapshot), TEST, k=5)
    labels = data().read(np.arange(40, 60), ["label"])["label"]
    assert (found.choices[:, 0] == labels).mean() == record.metrics["accuracy"]
    assert found.student.shape == found.teacher.shape == (5, 4)


def test_the_rows_are_those_of_the_largest_divergence(one: Trained) -> None:
    mine, record, snapshot = one
    found = differing_rows(record, mine, data(), Reader(snapshot), TEST, k=5)
    assert len(found.every) == len(TEST)
    assert found.keys == [TEST[i] for i in np.argsort(-found.every, kind="stable")[:5]]
    assert found.apart.tolist() == sorted(found.every, reverse=True)[:5]
    cached = Reader(snapshot, ["logits"]).gather(found.keys)["logits"]
    np.testing.assert_array_equal(found.teacher, cached)
    kl = torch.nn.functional.kl_div(
        torch.tensor(found.student).double().log_softmax(-1),
        torch.tensor(found.teacher).double().log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    np.testing.assert_allclose(found.apart, kl.numpy(), rtol=1e-6)


def test_callers_random_numbers_go_on_as_if_nothing_was_built(one: Trained) -> None:
    mine, record, snapshot = one
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    differing_rows(record, mine, data(), Reader(snapshot), TEST)
    assert torch.equal(torch.rand(3), expected)


def by_label(tensors: Mapping[str, Any]) -> Any:
    """Rows of larger labels are further apart."""
    label: torch.Tensor = tensors["row.label"]
    return label.double()


def one_number(tensors: Mapping[str, Any]) -> Any:
    return tensors["student.logits"].mean()


def test_how_far_apart_is_a_function_of_any_column(one: Trained) -> None:
    mine, record, snapshot = one
    reader = Reader(snapshot)
    given = {"columns": ("label",), "apart": by_label}
    found = differing_rows(record, mine, data(), reader, TEST, k=4, **given)  # type: ignore[arg-type]
    assert found.apart.tolist() == [3.0] * 4
    with pytest.raises(RowsError, match="one number for each"):
        differing_rows(record, mine, data(), reader, TEST, apart=one_number)


def test_what_is_no_record_of_this_student_is_refused(one: Trained) -> None:
    mine, record, snapshot = one
    other = dataclasses.replace(mine, recipe=recipes.find("labels"))
    with pytest.raises(ExportError, match="its recipe is not the one that it was trained with"):
        differing_rows(record, other, data(), Reader(snapshot), TEST)
    with pytest.raises(RowsError, match="not in the data set: nobody"):
        differing_rows(record, mine, data(), Reader(snapshot), [*TEST, "nobody"])
    with pytest.raises(UnknownRowError, match="rows are not in snapshot"):
        differing_rows(record, mine, data(70), Reader(snapshot), ["r65"])


def test_an_answer_of_a_head_and_of_settings_is_made_again(one: Trained, tmp_path: Path) -> None:
    mine, _, snapshot = one
    head = Head("second", linear_projector, "student.feature", like="teacher.logits", kept=True)
    plain = recipes.find("kd")
    extra = term(kl, "head.second", "teacher.logits")
    answer = Answer(weighted, ("student.logits", "head.second"), {"share": 0.25})
    recipe = dataclasses.replace(plain, terms=(*plain.terms, extra), heads=(head,), answer=answer)
    both = student("both", recipe=recipe, build=mine.build)
    (record,) = trained(tmp_path / "students", [both], snapshot)
    found = differing_rows(record, both, data(), Reader(snapshot), TEST)
    labels = data().read(np.arange(40, 60), ["label"])["label"]
    assert (found.choices[:, 0] == labels).mean() == record.metrics["accuracy"]
    # The settings are those of the record, as they were tuned.
    other = dataclasses.replace(record, content={**record.content, "answer": {"share": 1.0}})
    changed = differing_rows(other, both, data(), Reader(snapshot), TEST)
    assert not np.array_equal(changed.every, found.every)


def weighted(one: Any, other: Any, *, share: float) -> Any:
    return share * one + (1 - share) * other


def test_features_are_compared_by_their_distance(one: Trained) -> None:
    mine, record, snapshot = one
    reader = Reader(snapshot)
    with pytest.raises(NotAnsweringError, match=r"student\.feature is \(20, 6\), teacher\.feature"):
        differing_rows(record, mine, data(), reader, TEST, signal="feature", output="feature")


@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_divergence_is_zero_of_equals_and_never_negative(
    rows: int, places: int, classes: int, seed: int
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    teacher, mine = (torch.randn(rows, places, classes, generator=drawn) * 9 for _ in range(2))
    assert kl_apart(teacher, teacher + 3).abs().max() < 1e-6  # a constant changes no share
    found = kl_apart(mine, teacher)
    assert found.shape == (rows,)
    assert (found >= 0).all()
    each = torch.stack([kl_apart(mine[:, p], teacher[:, p]) for p in range(places)])
    torch.testing.assert_close(found, each.mean(0))
    excluded = teacher.clone()
    excluded[..., 0] = -torch.inf
    assert kl_apart(mine, excluded).isfinite().all()
    assert kl_apart(mine * torch.nan, teacher).isnan().all()
    assert (distance_apart(mine, mine + 2) - 2).abs().max() < 1e-5
    # What lies behind a row's end does not count.
    length = torch.randint(1, places + 1, (rows,), generator=drawn)
    for measure in (kl_apart, distance_apart):
        short = [measure(mine[i : i + 1, :n], teacher[i : i + 1, :n]) for i, n in enumerate(length)]
        torch.testing.assert_close(measure(mine, teacher, length), torch.cat(short))


def test_a_student_that_diverged_is_furthest_apart(one: Trained) -> None:
    mine, record, snapshot = one

    def broken(tensors: Mapping[str, Any]) -> Any:
        apart = kl_apart(tensors["student.logits"], tensors["teacher.logits"])
        apart[3] = torch.nan
        return apart

    found = differing_rows(record, mine, data(), Reader(snapshot), TEST, k=2, apart=broken)
    assert found.keys[0] == TEST[3]


def test_the_teacher_is_measured_as_its_students_are(one: Trained) -> None:
    _, _, snapshot = one
    evaluation = Evaluation("test", classification, signals=("logits",))
    found = teacher_measured(data(), Reader(snapshot), TEST, evaluation)
    logits = np.asarray(Reader(snapshot, ["logits"]).gather(TEST)["logits"])
    labels = data().read(np.arange(40, 60), ["label"])["label"]
    assert found["accuracy"] == (logits.argmax(1) == labels).mean()
    assert found["agreement"] == 1.0


def test_a_folder_without_weights_is_said(one: Trained, tmp_path: Path) -> None:
    mine, record, snapshot = one
    elsewhere = dataclasses.replace(record, folder=tmp_path)
    with pytest.raises(ExportError, match="no best weights at"):
        differing_rows(elsewhere, mine, data(), Reader(snapshot), TEST)
