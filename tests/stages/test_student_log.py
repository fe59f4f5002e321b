"""The log of a student: every step once, also of a training that was cut off and went on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import Fit, Recipe, halve, recipes, term
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.fitting import Fitting
from stillroom.stages.learning import Learning
from stillroom.stages.objectives.logits import kl
from stillroom.stages.student_log import LOG
from stillroom.storage import Snapshot
from tests.stages.builders import SPLITS, data, network, student, taught, trained
from tests.stages.test_listeners import scalars

HELD = {**SPLITS, "few": SPLITS["train"][:30], "held": SPLITS["train"][30:]}
FIT = Fit(epochs=4, batch_size=8, learning_rate=0.02, evaluate_every=2, watch="accuracy")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def learner(**changes: Any) -> Any:
    return student(**{"fit": FIT, "split": "few", "validation": "held", **changes})


def timeless(log: pa.Table) -> pa.Table:
    return log.drop_columns(["seconds", "fit_seconds"])


def test_every_step_is_one_row_and_its_numbers_are_those_of_the_curve(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    (record,) = trained(tmp_path, [learner()], snapshot, splits=HELD)
    log, curve = record.log, record.content["curve"]
    assert log["epoch"].to_pylist() == [e for e in (1, 2, 3, 4) for _ in range(4)]
    assert log["step"].to_pylist() == list(range(1, 17))
    assert log["rows"].to_pylist() == [8, 8, 8, 6] * 4
    rows = log.to_pylist()
    for point in curve:
        mine = [row for row in rows if row["epoch"] == point["epoch"]]
        assert sum(row["loss"] * row["rows"] for row in mine) / 30 == point["loss"]
        assert [row["metric.accuracy"] for row in mine] == [None, None, None, point["accuracy"]]
        assert mine[-1]["validation.nll"] == point["validation"]["nll"]
    # Epochs 1 and 3 were not evaluated.
    assert [row["step"] for row in rows if row["metric.nll"] is not None] == [8, 16]
    assert [row["step"] for row in rows if row["fit_seconds"] is not None] == [4, 8, 12, 16]
    assert rows[-1]["fit_seconds"] == pytest.approx(record.content["fit_seconds"])
    terms = [name for name in log.column_names if name.startswith("term.")]
    weights = [float(said.split(" * ")[0]) for said in record.content["terms"]]
    for row in rows:
        parts = sum(w * row[name] for w, name in zip(weights, terms, strict=True))
        assert parts == pytest.approx(row["loss"], rel=1e-5)
        assert row["seconds"] > 0
    rates = log["learning_rate"].to_pylist()  # one cycle: up, then down to nearly nothing
    assert max(rates) == pytest.approx(0.02, rel=0.05)
    assert rates[0] < max(rates) > 10 * rates[-1]


def test_terms_of_one_name_are_told_apart(tmp_path: Path, snapshot: Snapshot) -> None:
    both = [
        term(kl, "student.logits", "teacher.logits", weight=w, temperature=t)
        for w, t in ((1.0, 1.0), (0.5, 4.0))
    ]
    (record,) = trained(tmp_path, [student(recipe=Recipe("two", tuple(both)))], snapshot)
    first, second = (record.log[name].to_pylist() for name in ("term.kl", "term.kl-2"))
    assert first != second
    assert record.log["loss"].to_pylist() == pytest.approx(
        [a + 0.5 * b for a, b in zip(first, second, strict=True)], rel=1e-5
    )


class Killed(Exception):
    """The process is gone."""


@pytest.mark.parametrize(
    ("checkpoint_s", "damage"), [(0, "none"), (3600, "none"), (0, "cut"), (0, "gone")]
)
def test_a_training_that_goes_on_goes_on_with_its_log(
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint_s: int,
    damage: str,
) -> None:
    (whole,) = trained(tmp_path / "whole", [learner()], snapshot, splits=HELD)
    take, steps = Fitting.take, iter(range(100))

    def cut(fitting: Fitting, *given: Any) -> None:
        if next(steps) == 14:  # in the middle of the last epoch
            raise Killed
        take(fitting, *given)

    monkeypatch.setattr(Fitting, "take", cut)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", [learner()], snapshot, splits=HELD, checkpoint_s=checkpoint_s)
    monkeypatch.undo()
    left = list(tmp_path.glob(f"cut/*/{LOG}"))
    assert len(left) == (checkpoint_s == 0)
    if left and damage != "none":
        content = left[0].read_bytes()
        left[0].write_bytes(content[: len(content) // 2]) if damage == "cut" else left[0].unlink()
    (again,) = trained(tmp_path / "cut", [learner()], snapshot, splits=HELD)
    if damage == "none" or not left:
        assert timeless(again.log).equals(timeless(whole.log))
    else:  # what can be known
        assert again.log["step"].to_pylist() == [13, 14, 15, 16]


def test_a_log_that_is_ahead_of_its_checkpoint_has_no_row_twice(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    """The process was killed between writing the log and writing the checkpoint."""
    (whole,) = trained(tmp_path / "whole", [learner()], snapshot, splits=HELD)
    how: dict[str, Any] = {
        "splits": HELD,
        "evaluation": Evaluation("test", classification),
        "folder": tmp_path / "paused",
        "rungs": (2,),
    }
    runner = LocalRunner()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("stillroom.stages.halving.train", lambda *given, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # it pauses after epoch 2
            halve([learner()], data(), snapshot, runner=runner, **how)
    (place,) = tmp_path.glob(f"paused/*/{LOG}")
    assert pq.read_table(place)["epoch"].to_pylist() == [1] * 4 + [2] * 4
    place.write_bytes((whole.folder / LOG).read_bytes())
    found = halve([learner()], data(), snapshot, runner=runner, **how)
    assert timeless(found.records[0].log).equals(timeless(whole.log))


def closed(learning: Learning) -> Any:
    """A step of a recipe's own: its terms' means are not known."""
    loss = learning.loss(learning.complete())
    learning.descend(loss)
    return loss


def test_a_recipe_with_its_own_step_has_losses_and_no_terms(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    own = replace(recipes.find("kd"), step=closed)
    (record,) = trained(tmp_path, [student(recipe=own)], snapshot)
    assert not [name for name in record.log.column_names if name.startswith("term.")]
    assert len(record.log) == 15
    assert not any(math.isnan(loss) for loss in record.log["loss"].to_pylist())


def test_students_in_a_group_have_logs_of_their_own(tmp_path: Path, snapshot: Snapshot) -> None:
    pair = [learner(), replace(learner(name="slow"), fit=replace(FIT, learning_rate=0.001))]
    together = trained(tmp_path / "both", pair, snapshot, splits=HELD)
    alone = trained(tmp_path / "alone", pair, snapshot, splits=HELD, together=False)
    for one, other in zip(together, alone, strict=True):
        assert timeless(one.log).equals(timeless(other.log))


def test_a_student_of_before_has_no_log_and_says_so(tmp_path: Path, snapshot: Snapshot) -> None:
    (record,) = trained(tmp_path, [student()], snapshot)
    (record.folder / LOG).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no log\.parquet: this student was trained by"
    ):
        _ = record.log


def test_tensorboard_has_the_numbers_of_the_log(tmp_path: Path, snapshot: Snapshot) -> None:
    board = tmp_path / "board"
    (record,) = trained(tmp_path / "s", [learner()], snapshot, splits=HELD, tensorboard=board)
    (folder,) = board.iterdir()
    assert folder.name == "kd-0"
    told = scalars(folder)
    rows = record.log.to_pylist()
    for name in ("loss", "learning_rate", "term.kl", "metric.accuracy", "validation.nll"):
        expected = [(row["step"], row[name]) for row in rows if row[name] is not None]
        assert [step for step, _ in told[name]] == [step for step, _ in expected]
        assert [value for _, value in told[name]] == pytest.approx([v for _, v in expected])
