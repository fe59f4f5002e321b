"""Recipes read the fields of a record signal, and how many elements a ragged row has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from stillroom.pipeline import LocalRunner
from stillroom.stages import Evaluation, Fit, FunctionTeacher, Recipe, Student, teach, term, train
from stillroom.stages.feeding.shaping import as_tensors
from stillroom.storage import Cache, Ragged
from stillroom.storage.errors import UnknownSignalError
from tests.stages.builders import data

BOX = np.dtype([("corners", "f4", (4,)), ("score", "f4")])


def boxes_of(image: Any) -> dict[str, Any]:
    """Row i has as many boxes as its first number says, each with the row's sum as score."""
    rows = []
    for row in image:
        boxes = np.zeros(int(abs(row[0]) * 2), BOX)
        boxes["corners"], boxes["score"] = row[:4], row.sum()
        rows.append(boxes)
    return {"boxes": Ragged.of(rows)}


def total_apart(output: Tensor, score: Tensor, length: Tensor) -> Tensor:
    """Squared distance from the sum of the scores; what is padded adds nothing."""
    assert score.shape[:1] == length.shape == output.shape[:1]
    assert (score[np.arange(score.shape[1]) >= length[:, None].numpy()] == 0).all()
    return (output[:, 0] - score.sum(1)).square()


def scores_seen(tensors: Any) -> dict[str, Any]:
    """One number, so that there is something to measure."""
    return {"mean": tensors["student.logits"].mean().item()}


RECIPE = Recipe(
    "boxes",
    (term(total_apart, "student.logits", "teacher.boxes.score", "teacher.boxes.length"),),
)


def student(recipe: Recipe) -> Student:
    return Student("s", partial(nn.Linear, 8, 1), recipe, fit=Fit(epochs=2, batch_size=16))


def trained(folder: Path, recipe: Recipe) -> Any:
    rows, teacher = data(60), FunctionTeacher("boxes", boxes_of, ("image",), ("boxes",))
    snapshot = teach(Cache.at(folder / "c"), rows, teacher, runner=LocalRunner())
    keys = rows.keys.to_pylist()
    return train(
        [student(recipe)],
        rows,
        snapshot,
        splits={"train": keys[:40], "test": keys[40:]},
        evaluation=Evaluation("test", scores_seen, columns=()),
        folder=folder / "s",
        runner=LocalRunner(),
    )


def test_a_recipe_reads_fields_of_a_record_and_lengths(tmp_path: Path) -> None:
    assert RECIPE.reads == ("boxes",)
    (record,) = trained(tmp_path, RECIPE)
    assert record.content["reads"] == ["boxes"]
    first, last = (point["loss"] for point in record.content["curve"])
    assert last < first


def test_a_field_of_a_signal_that_is_not_there_is_named(tmp_path: Path) -> None:
    wrong = Recipe("w", (term(total_apart, "student.logits", "teacher.bxes.score", "row.label"),))
    with pytest.raises(UnknownSignalError, match=r"'bxes'.*boxes"):
        trained(tmp_path, wrong)


def test_a_batch_with_a_single_record_is_read_like_any_other() -> None:
    record = np.zeros(1, np.dtype([("box", "f4", (2,)), ("label", "i2")]))
    record["box"] = (0.25, 0.5)
    tensors = as_tensors("boxes", Ragged(record, np.array([0, 0, 1])))
    assert tensors["boxes.box"].tolist() == [[[0, 0]], [[0.25, 0.5]]]
    assert tensors["boxes.length"].tolist() == [0, 1]
