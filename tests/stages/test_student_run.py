"""Training as people expect it: checkpoints, the best epoch, accumulation, precision, failures."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stillroom.stages import Controller, Evaluation, Fit, Recipe, term
from stillroom.stages.checkpoint import load_checkpoint, save_checkpoint
from stillroom.stages.events import StudentFailed
from stillroom.stages.fitting import Fitting, TrainingError
from stillroom.stages.objectives.logits import kl
from stillroom.stages.student_work import CHECKPOINT
from stillroom.storage import Snapshot
from stillroom.workflows.students import summary
from tests.stages.builders import SPLITS, Heard, data, network, pupil, student, taught, trained

HELD = {**SPLITS, "held": SPLITS["train"][30:]}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def shaky() -> Any:
    """A student that draws random numbers while it trains."""
    return torch.nn.Sequential(*pupil(), torch.nn.Dropout(0.2))


def begin() -> dict[str, float]:
    return {"weight": 1.0}


def fade(state: dict[str, Any], seen: Any) -> dict[str, Any]:
    return {"weight": state["weight"] * 0.9}


FADING = Recipe(
    "fading",
    (term(kl, "student.logits", "teacher.logits", weight="state.weight"),),
    controller=Controller(begin, fade),
)


class Killed(Exception):
    """The process is gone."""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(
    tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    fit = Fit(epochs=5, batch_size=8, average=0.9, optimizer=optimizer, evaluate_every=2)
    learner = student(recipe=FADING, build=shaky, fit=fit)
    (whole,) = trained(tmp_path / "whole", [learner], snapshot)
    epoch = Fitting.epoch

    def cut(fitting: Fitting, number: int) -> float:
        if number == 4:
            raise Killed
        return epoch(fitting, number)

    monkeypatch.setattr(Fitting, "epoch", cut)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", [learner], snapshot, checkpoint_s=0)
    monkeypatch.undo()
    (left,) = tmp_path.glob(f"cut/*/{CHECKPOINT}")
    (again,) = trained(tmp_path / "cut", [learner], snapshot)
    assert again.content["resumed_after_epoch"] == 3
    assert not left.exists()
    for name in ("weights", "average"):
        one, other = (getattr(r, name).read_bytes() for r in (whole, again))
        assert one == other
    assert [(p["epoch"], p["loss"]) for p in whole.content["curve"]] == [
        (p["epoch"], p["loss"]) for p in again.content["curve"]
    ]


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_checkpoint_that_cannot_be_used_costs_time_and_nothing_else(
    tmp_path: Path, snapshot: Snapshot, damage: str
) -> None:
    (whole,) = trained(tmp_path / "whole", [student()], snapshot)
    folder = tmp_path / "again" / whole.folder.name
    folder.mkdir(parents=True)
    save_checkpoint(folder / CHECKPOINT, "somebody else's", {"epochs": 2})
    content = (folder / CHECKPOINT).read_bytes()
    if damage != "other":
        (folder / CHECKPOINT).write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    (again,) = trained(tmp_path / "again", [student()], snapshot)
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    assert "resumed_after_epoch" not in again.content


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
    | st.text() | st.builds(partial(torch.full, (2,)), st.integers(0, 9)),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=12,
)  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(same, one, other)) and len(one) == len(other)
    return type(one) is type(other) and one == other


@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=plain_values)
def test_a_checkpoint_gives_back_what_it_was_given(
    value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("c") / CHECKPOINT
    save_checkpoint(place, "mine", value)
    assert same(load_checkpoint(place, "mine"), value)
    assert load_checkpoint(place, "other") is None


def test_a_checkpoint_refuses_what_it_cannot_give_back(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold a function"):
        save_checkpoint(tmp_path / CHECKPOINT, "mine", {"a": begin})


def test_the_best_epoch_is_kept_and_waiting_has_an_end(tmp_path: Path, snapshot: Snapshot) -> None:
    fit = Fit(
        *(40, 8, 0.3),
        schedule="constant",
        watch="accuracy",
        patience=2,
        optimizer="sgd",
        momentum=0.0,
    )
    learner = student(fit=fit, validation="held")
    (record,) = trained(tmp_path, [learner], snapshot, splits=HELD)
    content = record.content
    right = {p["epoch"]: p["validation"]["accuracy"] for p in content["curve"]}
    best = content["best_epoch"]
    assert best == min(e for e, value in right.items() if value == max(right.values()))
    assert content["epochs"] == best + 2 < 40
    kept, last = load_file(record.weights), load_file(record.folder / "last.safetensors")
    assert any(not torch.equal(kept[n], last[n]) for n in kept)
    short = replace(fit, epochs=best, watch="", patience=0)
    (again,) = trained(tmp_path / "b", [student(fit=short)], snapshot, splits=HELD)
    assert again.weights.read_bytes() == record.weights.read_bytes()


def test_what_cannot_be_watched_is_said(tmp_path: Path, snapshot: Snapshot) -> None:
    fit = Fit(epochs=2, watch="accurcy")
    with pytest.raises(ValueError, match=r"has no rows to watch it on.*validation='SPLIT'"):
        student(fit=fit)
    with pytest.raises(
        TrainingError, match=r"watches 'accurcy', which .* measures accuracy, nll, ece"
    ):
        trained(tmp_path, [student(fit=fit, validation="held")], snapshot, splits=HELD)


def test_two_half_batches_make_one_step_of_a_whole_one(tmp_path: Path, snapshot: Snapshot) -> None:
    fit = Fit(epochs=3, batch_size=20, optimizer="sgd", schedule="constant", momentum=0.0)
    (whole,) = trained(tmp_path, [student("w", fit=fit)], snapshot)
    halves = replace(fit, batch_size=10, accumulate=2)
    (half,) = trained(tmp_path, [student("h", fit=halves)], snapshot)
    for name, tensor in load_file(whole.weights).items():
        torch.testing.assert_close(tensor, load_file(half.weights)[name], rtol=1e-4, atol=1e-6)
    # Four batches of ten, three of them a step: the one that is left steps alone, in full size.
    odd = replace(fit, batch_size=10, accumulate=3, clip=1e9)
    (left,) = trained(tmp_path, [student("o", fit=odd)], snapshot)
    assert left.content["curve"][-1]["loss"] < left.content["curve"][0]["loss"]


@pytest.mark.parametrize("changes", [
    {"precision": "bfloat16"},
    {"schedule": "cosine", "warmup": 4},
    {"schedule": "constant", "warmup": 4},
])  # fmt: skip
def test_other_ways_to_train_learn_too(
    tmp_path: Path, snapshot: Snapshot, changes: dict[str, Any]
) -> None:
    fit = Fit(epochs=4, batch_size=8, learning_rate=0.02, **changes)
    (record,) = trained(tmp_path, [student(fit=fit)], snapshot)
    losses = [p["loss"] for p in record.content["curve"]]
    assert losses[-1] < losses[0]
    assert all(t.dtype == torch.float32 for t in load_file(record.weights).values())


@pytest.mark.parametrize(("changes", "said"), [
    ({"precision": "float8"}, "precision is float32, bfloat16 or float16, found 'float8'"),
    ({"warmup": 3}, "onecycle warms up by itself"),
    ({"patience": 3}, "patience needs a metric to watch"),
    ({"accumulate": 0}, "must be positive"),
    ({"clip": -1.0}, "at least 0"),
])  # fmt: skip
def test_settings_that_cannot_train_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Fit(**changes)


def test_a_student_that_fails_ends_alone(tmp_path: Path, snapshot: Snapshot) -> None:
    wild = Fit(epochs=3, batch_size=8, learning_rate=1e30, optimizer="sgd", schedule="constant")
    students, heard = [student("wild", fit=wild), student("calm")], Heard()
    with pytest.raises(
        TrainingError, match=r"'wild'.*on rows r\d+.*\(1 others are trained and kept\)"
    ):
        trained(tmp_path, students, snapshot, listen=heard)
    assert [e.name for e in heard.events if isinstance(e, StudentFailed)] == ["wild"]
    (calm,) = trained(tmp_path, students[1:], snapshot, listen=heard)
    assert calm.metrics["accuracy"] > 0


def unsure(tensors: Any) -> dict[str, Any]:
    """A metric that is no number, as the F1 of a class that no row has."""
    return {"accuracy": 0.5, "f1": math.nan, "bins": [{"share": math.inf}]}


def test_a_metric_that_is_no_number_costs_no_training(tmp_path: Path, snapshot: Snapshot) -> None:
    (record,) = trained(tmp_path, [student()], snapshot, evaluation=Evaluation("test", unsure))
    assert record.metrics == {"accuracy": 0.5, "f1": None, "bins": [{"share": None}]}
    (line,) = summary([record])
    assert list(line["metrics"]) == ["accuracy"]


KILLED = """
import sys
from pathlib import Path
from stillroom.stages import Fit
from stillroom.storage import Cache
from tests.stages.builders import student, trained
from tests.stages.test_student_run import FADING, shaky
fit = Fit(epochs=400, batch_size=8, average=0.9)
learner = student(recipe=FADING, build=shaky, fit=fit)
trained(Path(sys.argv[2]), [learner], Cache(sys.argv[1]).snapshot(), checkpoint_s=0)
"""


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments_changes_no_bit(tmp_path: Path) -> None:
    taught(tmp_path / "c", data(), network())
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", KILLED, str(tmp_path / "c"), str(tmp_path / folder)]
        return subprocess.Popen(command, env=environment)

    assert start("whole").wait() == 0
    kills = 0
    for pause in (4.0, 4.5, 5.0, 5.5, 6.0, 6.5):
        process = start("killed")
        time.sleep(pause)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert start("killed").wait() == 0
    assert kills
    one, other = (next(tmp_path.glob(f"{f}/*/weights.safetensors")) for f in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
