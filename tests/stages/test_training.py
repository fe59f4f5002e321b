"""Students learn from the cache alone; each leaves a record, and none is trained twice."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillroom.pipeline import RayRunner
from stillroom.stages import Evaluation, Fit, Recipe, classification, recipes, term
from stillroom.stages.events import StudentTrained, TrainStarted
from stillroom.stages.fitting import TrainingError
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import kl
from stillroom.stages.streams import joined
from stillroom.storage import NotACacheError, Snapshot, UnknownRowError, UnknownSignalError
from stillroom.storage.errors import RowsError
from tests.stages.builders import (
    SPLITS,
    Heard,
    chosen,
    data,
    images,
    network,
    plain,
    pupil,
    stamps,
    student,
    taught,
    trained,
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def test_a_record_says_everything_about_a_student(tmp_path: Path, snapshot: Snapshot) -> None:
    evaluation = Evaluation("test", classification, signals=("logits",))
    (record,) = trained(tmp_path, [student(seed=5)], snapshot, evaluation=evaluation)
    content = record.content
    assert (record.name, record.seed, content["recipe"]) == ("kd", 5, "kd")
    assert (content["snapshot"], content["reads"], content["rows"]) == (1, ["logits"], 40)
    assert content["parameters"] == 8 * 6 + 6 + 6 * 4 + 4
    assert content["terms"][0] == "0.9 * kl(student.logits, teacher.logits, temperature=4.0)"
    assert [point["epoch"] for point in content["curve"]] == [1, 2, 3]
    assert content["curve"][-1]["accuracy"] == record.metrics["accuracy"]
    assert content["curve"][-1]["loss"] < content["curve"][0]["loss"]
    assert {"accuracy", "nll", "ece", "agreement", "reliability"} == set(record.metrics)
    assert content["seconds"] >= content["fit_seconds"] > 0
    assert json.loads((record.folder / "record.json").read_text()) == content


def test_the_stored_weights_give_the_recorded_metrics(tmp_path: Path, snapshot: Snapshot) -> None:
    (record,) = trained(tmp_path, [student("hint", "fitnet")], snapshot)
    module = pupil()
    module.load_state_dict(load_file(record.weights))  # strict: no head among the weights
    module.eval()
    rows = data().read(np.arange(40, 60), ["image", "label"])
    with torch.inference_mode():
        choice = module(torch.from_numpy(rows["image"])).argmax(-1).numpy()
    assert (choice == rows["label"]).mean() == pytest.approx(record.metrics["accuracy"])


def test_a_second_run_trains_nothing_and_writes_nothing(tmp_path: Path, snapshot: Snapshot) -> None:
    first = trained(tmp_path, [student(), student(seed=1)], snapshot)
    before, heard = stamps(tmp_path), Heard()
    again = trained(tmp_path, [student(seed=1), student()], snapshot, listen=heard)
    assert stamps(tmp_path) == before
    assert heard.events == [TrainStarted(0, 2)]
    assert [r.content for r in again] == [r.content for r in reversed(first)]


def test_one_more_student_is_trained_alone(tmp_path: Path, snapshot: Snapshot) -> None:
    trained(tmp_path, [student()], snapshot)
    heard = Heard()
    records = trained(tmp_path, [student(), student("l", "labels")], snapshot, listen=heard)
    assert [e.name for e in heard.events if isinstance(e, StudentTrained)] == ["l"]
    assert [record.name for record in records] == ["kd", "l"]


def test_a_student_whose_weights_are_gone_is_trained_again(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (record,) = trained(tmp_path, [student()], snapshot)
    before = record.weights.read_bytes()
    record.weights.unlink()
    trained(tmp_path, [student()], snapshot)
    assert record.weights.read_bytes() == before


def test_one_seed_gives_the_same_bits_and_another_gives_others(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    torch.manual_seed(77)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    (first,) = trained(tmp_path / "a", [student()], snapshot)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(78)
    (second,) = trained(tmp_path / "b", [student()], snapshot)
    (third,) = trained(tmp_path / "c", [student(seed=1)], snapshot)
    assert first.weights.read_bytes() == second.weights.read_bytes()
    assert first.weights.read_bytes() != third.weights.read_bytes()


def test_ray_and_local_train_the_same_bits(
    tmp_path: Path, snapshot: Snapshot, ray_runner: RayRunner
) -> None:
    normed = partial(pupil, 6, normed=True)
    students = [student(), student("hint", "fitnet"), student("norm", build=normed)]
    local = trained(tmp_path / "local", students, snapshot)
    ray = trained(tmp_path / "ray", students, snapshot, runner=RayRunner(workers=2))
    for one, other in zip(local, ray, strict=True):
        assert one.weights.read_bytes() == other.weights.read_bytes()
        assert one.metrics == other.metrics
        assert one.content["identity"] == other.content["identity"]


def test_a_left_over_row_joins_a_batch_so_that_batch_norm_can_train(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    normed = student(build=partial(pupil, 6, normed=True), fit=Fit(epochs=2, batch_size=13))
    (record,) = trained(tmp_path, [normed], snapshot)  # 40 rows: 13, 13 and 14
    assert np.isfinite(record.content["curve"][-1]["loss"])


def test_a_missing_signal_is_named_with_the_nearest_and_how_to_make_it(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    hint = term(squared_error, "student.feature", "teacher.features")
    wanting = student(recipe=Recipe("mine", (hint,)))
    with pytest.raises(
        UnknownSignalError,
        match=r"'mine' reads 'features'.*did you mean 'feature'\?.*layers=\{..., 'features':",
    ):
        trained(tmp_path, [student("l", "labels"), wanting], snapshot)
    assert list(tmp_path.iterdir()) == []


def test_without_a_snapshot_only_labels_can_be_learnt(tmp_path: Path) -> None:
    with pytest.raises(NotACacheError, match="'kd' reads logits of a teacher"):
        trained(tmp_path, [student()], None)
    (record,) = trained(tmp_path, [student("l", "labels")], None)
    assert record.content["snapshot"] is None


def test_rows_that_were_never_taught_end_it_before_any_student_trains(tmp_path: Path) -> None:
    part = taught(tmp_path / "c", chosen(data(), range(30)), network())
    with pytest.raises(UnknownRowError, match=r"10 of 40 rows are not in snapshot 1.*: r30, r31"):
        trained(tmp_path / "s", [student("l", "labels"), student()], part)
    assert not (tmp_path / "s").exists()


def test_rows_that_one_teacher_lacks_end_it_before_any_student_trains(tmp_path: Path) -> None:
    taught(tmp_path / "c", chosen(data(), range(30)), network())
    both = taught(tmp_path / "c", teacher=plain("wide", signals=("feature",)))
    with pytest.raises(UnknownRowError, match=r"'logits' of .* was never taught for 10"):
        trained(tmp_path / "s", [student("l", "labels"), student()], both)
    assert not (tmp_path / "s").exists()


def test_rows_that_changed_since_they_were_taught_are_refused(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    with pytest.raises(RowsError, match=r"2 rows of split 'train' changed since .*: r3, r8"):
        trained(tmp_path, [student()], snapshot, rows=data(edited=[3, 8]))
    trained(tmp_path, [student("l", "labels")], snapshot, rows=data(edited=[3, 8]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"splits": {"trian": ["r0"], "test": ["r1"]}}, "no split 'train'; did you mean 'trian'"),
        ({"splits": {"train": ["r0", "x"], "test": ["r1"]}}, "not in .*: x"),
        ({"splits": {"train": [], "test": ["r1"]}}, "split 'train' has no rows"),
        ({"evaluation": Evaluation("tests", classification)}, "no split 'tests'"),
        (
            {"evaluation": Evaluation("test", classification, ("labels",))},
            "the evaluation reads column 'labels'.*did you mean 'label'",
        ),
    ],
)
def test_wrong_splits_and_columns_end_it_before_any_student_trains(
    tmp_path: Path, snapshot: Snapshot, how: dict[str, Any], message: str
) -> None:
    with pytest.raises((RowsError, UnknownRowError), match=message):
        trained(tmp_path, [student("l", "labels"), student()], snapshot, **how)
    assert list(tmp_path.iterdir()) == []


def test_two_students_of_one_name_and_seed_are_refused(tmp_path: Path, snapshot: Snapshot) -> None:
    with pytest.raises(ValueError, match="two students are called 'kd' with seed 0"):
        trained(tmp_path, [student(), student(method="labels")], snapshot)


def test_a_student_must_give_what_its_recipe_reads() -> None:
    with pytest.raises(ValueError, match=r"'fitnet' reads student.feature; say which module"):
        student("hint", "fitnet", layers={"logits": ""})


def test_a_loss_that_is_no_number_names_student_epoch_and_rows(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    image = images(60)
    image[7] = np.nan
    broken = data(image=image)
    with pytest.raises(
        TrainingError, match=r"student 'l', seed 3, epoch 1: the loss became nan on rows .*r\d+"
    ):
        trained(tmp_path, [student("l", "labels", seed=3)], None, rows=broken)
    assert not list(tmp_path.rglob("record.json"))


def total(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """A loss for each class, where one for each row was meant."""
    return logits.sum(0)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            Recipe("mine", (term(kl, "student.logits", "teacher.feature"),)),
            r"kl\(student.logits, teacher.feature\) does not fit student.logits \(2, 4\), "
            r"teacher.feature \(2, 16\)",
        ),
        (Recipe("mine", (term(total, "student.logits", "row.label"),)), r"gave shape \(4,\) for"),
        (
            Recipe("mine", (term(kl, "student.logits", "row.text"),)),
            r"does not fit student.logits \(2, 4\), row.text list",
        ),
    ],
)
def test_a_term_that_does_not_fit_is_said_before_training(
    tmp_path: Path, snapshot: Snapshot, recipe: Recipe, message: str
) -> None:
    rows = data(text=["word"] * 60)
    with pytest.raises(TrainingError, match=message):
        trained(tmp_path, [student(recipe=recipe)], snapshot, rows=rows)


def test_weights_are_the_same_however_the_recipe_was_made(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (first,) = trained(tmp_path, [student(recipe=recipes.find("kd", alpha=0.9))], snapshot)
    (second,) = trained(tmp_path, [student()], snapshot, splits=SPLITS)
    assert first.folder == second.folder


def test_batches_as_wide_as_their_longest_row_are_joined_by_the_widest() -> None:
    narrow, wide = torch.ones(2, 3, 5), torch.full((1, 4, 5), 2.0)
    found = joined([narrow, wide])
    assert found.shape == (3, 4, 5)
    assert torch.equal(found[:2, :3], narrow)
    assert torch.equal(found[2:], wide)
    assert not found[:2, 3:].any()
    flat = torch.arange(3)
    assert torch.equal(joined([flat, flat]), torch.tensor([0, 1, 2, 0, 1, 2]))
