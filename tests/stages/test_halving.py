"""Losers are stopped at rungs; who goes on becomes what it would have become alone."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.pruners import HyperbandPruner, NopPruner
from typer.testing import CliRunner

from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import (
    Evaluation,
    Fit,
    Halving,
    Record,
    Student,
    classification,
    halve,
    plan_halve,
)
from stillroom.stages.events import StudentStopped, TrainStarted
from stillroom.stages.fitting import TrainingError
from stillroom.stages.student_work import CHECKPOINT
from stillroom.storage import Snapshot
from stillroom.storage.errors import RowsError
from stillroom.workflows import students as known
from stillroom.workflows.cli import app
from tests.stages.builders import (
    SPLITS,
    Heard,
    Shuffled,
    data,
    network,
    pupil,
    stamps,
    student,
    taught,
    trained,
)

HELD = {**SPLITS, "few": SPLITS["train"][:28], "held": SPLITS["train"][28:]}
TEST = Evaluation("test", classification)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def shaky() -> Any:
    """A student that draws random numbers while it trains."""
    return torch.nn.Sequential(*pupil(), torch.nn.Dropout(0.1))


def nine(**changes: Any) -> list[Student]:
    """Nine students of four epochs, other rates and seeds, that watch their validation rows."""
    fit = Fit(epochs=4, batch_size=14, watch="-nll", **changes)
    rates = (0.001, 0.1, 0.02, 0.005, 0.08, 0.003, 0.05, 0.002, 0.01)
    return [
        student(
            f"s{n}",
            fit=replace(fit, learning_rate=rate),
            build=shaky,
            seed=n % 2,
            split="few",
            validation="held",
        )
        for n, rate in enumerate(rates)
    ]


def halved(
    folder: Path, students: Sequence[Student], snapshot: Snapshot | None, **how: Any
) -> Halving:
    given: dict[str, Any] = {"runner": LocalRunner(), "watch": "-nll", "rungs": (1, 3), **how}
    given = {"rows": data(), "splits": HELD, "evaluation": TEST, **given}
    return halve(students, given.pop("rows"), snapshot, folder=folder, **given)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, snapshot: Snapshot) -> list[Record]:
    """The nine trained to their end, one by one."""
    return trained(tmp_path_factory.mktemp("alone"), nine(), snapshot, splits=HELD, together=False)


def nll(record: Record, epoch: int) -> float:
    """On validation rows, after an epoch."""
    return float(record.content["curve"][epoch - 1]["validation"]["nll"])


def best(records: Iterable[Record], count: int, epoch: int) -> list[Record]:
    """In the order given."""
    every = list(records)
    worst = sorted(nll(record, epoch) for record in every)[count - 1]
    return [record for record in every if nll(record, epoch) <= worst]


def names(of: Iterable[Any]) -> list[str]:
    return [each.name for each in of]


def same(one: Halving, other: Halving) -> bool:
    """Equal in everything but seconds and places."""
    assert [r.weights.read_bytes() for r in one.records] == [
        r.weights.read_bytes() for r in other.records
    ]
    timeless = [
        [{k: v for k, v in s.content.items() if k != "fit_seconds"} for s in each.stopped]
        for each in (one, other)
    ]
    return names(one.records) == names(other.records) and timeless[0] == timeless[1]


def test_the_best_third_goes_on_at_every_rung_and_ends_as_if_alone(
    tmp_path: Path, snapshot: Snapshot, alone: list[Record]
) -> None:
    heard = Heard()
    found = halved(tmp_path, nine(), snapshot, listen=heard)
    third = best(alone, 3, 1)
    ninth = best(third, 1, 3)
    assert names(found.records) == names(ninth)
    (mine,), (theirs,) = found.records, ninth
    assert mine.weights.read_bytes() == theirs.weights.read_bytes()
    assert mine.content["curve"] == theirs.content["curve"]
    assert mine.metrics == theirs.metrics
    assert mine.content["seconds"] >= mine.content["fit_seconds"]
    assert {s.name: s.epoch for s in found.stopped} == {
        record.name: 3 if record in third else 1 for record in alone if record not in ninth
    }
    by_name = {record.name: record for record in alone}
    for stop in found.stopped:
        whole = by_name[stop.name]
        assert stop.value == nll(whole, stop.epoch)
        assert stop.content["curve"] == whole.content["curve"][: stop.epoch]
        assert json.loads((stop.folder / "stopped.json").read_text()) == stop.content
        assert [path.name for path in stop.folder.iterdir() if path.suffix != ".parquet"] == [
            "stopped.json"
        ]
    stopped = [(e.name, e.epoch) for e in heard.events if isinstance(e, StudentStopped)]
    assert sorted(stopped) == sorted((s.name, s.epoch) for s in found.stopped)


def test_a_second_call_trains_nothing_and_writes_nothing(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    first, heard = halved(tmp_path, nine(), snapshot), Heard()
    before = stamps(tmp_path)
    again = halved(tmp_path, nine(), snapshot, listen=heard)
    assert same(first, again)
    assert stamps(tmp_path) == before
    assert heard.events == [TrainStarted(0, 1)]
    left = again.stopped[0].folder / CHECKPOINT  # of a process that was killed before removing it
    left.write_bytes(b"")
    halved(tmp_path, nine(), snapshot)
    assert not left.exists()
    how: dict[str, Any] = {"splits": HELD, "evaluation": TEST, "folder": tmp_path, "watch": "-nll"}
    assert plan_halve(nine(), data(), snapshot, rungs=(1, 3), **how).stale == ()
    assert len(plan_halve(nine(), data(), snapshot, rungs=(2,), **how).stale) == 6
    assert (
        len(plan_halve(nine(), data(), snapshot, pruner=NopPruner(), rungs=(1,), **how).stale) == 8
    )


class Killed(Exception):
    """The process is gone."""


@dataclass
class Short:
    """A runner that is killed after it has given some results, counted over all of its maps."""

    left: int

    def map(self, build: Callable[[], Callable[[Any], Any]], items: Iterable[Any]) -> Iterator[Any]:
        for item in LocalRunner().map(build, items):
            if not self.left:
                raise Killed
            self.left -= 1
            yield item


def apart() -> list[Student]:
    """The nine with batches of their own, so that each is an item of the runner."""
    return [replace(each, order=n) for n, each in enumerate(nine())]


@pytest.mark.parametrize("results", [pytest.param(4, marks=pytest.mark.slow), 11])
def test_a_comparison_that_was_cut_off_goes_on_to_the_same_end(
    tmp_path: Path, snapshot: Snapshot, results: int
) -> None:
    whole = halved(tmp_path / "whole", apart(), snapshot)
    with pytest.raises(Killed):
        halved(tmp_path / "cut", apart(), snapshot, runner=Short(results))
    assert same(whole, halved(tmp_path / "cut", apart(), snapshot))
    assert not list(tmp_path.rglob(CHECKPOINT))


@pytest.mark.slow
def test_no_order_of_students_or_of_results_changes_who_is_stopped(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    first = halved(tmp_path / "first", apart(), snapshot)
    mixed = halved(tmp_path / "mixed", apart(), snapshot, runner=Shuffled(5))
    assert same(first, mixed)
    turned = halved(tmp_path / "turned", apart()[::-1], snapshot)
    assert same(first, Halving(turned.records[::-1], turned.stopped[::-1]))


@pytest.mark.slow
def test_workers_of_ray_stop_the_same_ones(
    tmp_path: Path, snapshot: Snapshot, ray_runner: RayRunner
) -> None:
    one = halved(tmp_path / "local", nine(), snapshot)
    assert same(one, halved(tmp_path / "ray", nine(), snapshot, runner=RayRunner(workers=2)))


def test_more_students_are_compared_with_what_the_stopped_ones_noted(
    tmp_path: Path, snapshot: Snapshot, alone: list[Record]
) -> None:
    few, every = nine()[:6], nine()
    halved(tmp_path, few, snapshot, rungs=(1, 3))
    heard = Heard()
    grown = halved(tmp_path, every, snapshot, listen=heard)
    assert names(grown.records) == names(best(best(alone, 3, 1), 1, 3))
    assert all((s.folder / "stopped.json").exists() for s in grown.stopped)
    assert not (grown.records[0].folder / "stopped.json").exists()
    again = [e.name for e in heard.events if isinstance(e, StudentStopped)]
    assert set(again) >= {s.name for s in every[6:]} - set(names(grown.records))


def test_the_command_line_lists_who_was_stopped(tmp_path: Path, snapshot: Snapshot) -> None:
    found = halved(tmp_path, nine()[:3], snapshot, rungs=(1,))
    (record,), (first, second) = found.records, found.stopped

    def asked(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["students", str(tmp_path), *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    said = (
        f"{first.name}, seed {first.seed}: stopped after epoch 1 of 4, nll {first.value:.4f}, by "
        "SuccessiveHalvingPruner(min_resource=1, reduction_factor=3,"
    )
    assert said in asked()
    spent = sum(each.content["fit_seconds"] for each in found.stopped)
    assert spent > 0
    costs = f"stopped early: {spent:.1f} s for 2 students"
    assert costs in asked("--cache", str(snapshot.cache))
    whole = json.loads(asked("--json"))
    assert [each["student"] for each in whole["students"]] == [record.name]
    assert whole["stopped"] == [first.content, second.content]
    assert json.loads(asked("--show", second.name)) == [second.content]
    (second.folder / "stopped.json").write_text("{}")
    (tmp_path / "stopped.json").write_text("[]")  # some other tool's
    assert [each.name for each in known.stopped_below(tmp_path)] == [first.name]


def test_a_stopped_student_can_still_be_trained_alone(
    tmp_path: Path, snapshot: Snapshot, alone: list[Record]
) -> None:
    first = halved(tmp_path, nine()[:3], snapshot)
    loser = next(s for s in nine()[:3] if s.name == first.stopped[0].name)
    (record,) = trained(tmp_path, [loser], snapshot, splits=HELD)
    (whole,) = (r for r in alone if r.name == loser.name)
    assert record.weights.read_bytes() == whole.weights.read_bytes()
    before = stamps(record.folder)
    assert same(first, halved(tmp_path, nine()[:3], snapshot))  # it is compared as it was
    assert stamps(record.folder) == before


@pytest.mark.slow
def test_hyperband_has_brackets_that_do_not_depend_on_the_call(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    pruner = HyperbandPruner(min_resource=1, max_resource=4, reduction_factor=3)
    one = halved(tmp_path / "one", nine(), snapshot, pruner=pruner)
    other = halved(tmp_path / "other", nine(), snapshot, pruner=pruner)
    assert same(one, other)
    assert 1 < len(one.records) < 9  # the best of each bracket
    assert one.stopped[0].content["by"] == (
        "HyperbandPruner(min_resource=1, max_resource=4, reduction_factor=3, bootstrap_count=0)"
    )


def test_what_is_no_number_is_the_worst_and_can_be_noted(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    learners, how = nine()[:2], {"evaluation": Evaluation("test", doubtful), "watch": "odd"}
    found = halved(tmp_path, learners, snapshot, **how)
    assert [math.isnan(s.value) for s in found.stopped] == [True, True]
    before, again = stamps(tmp_path), halved(tmp_path, learners, snapshot, **how)
    assert (stamps(tmp_path), names(again.stopped), again.records) == (before, ["s0", "s1"], ())


def doubtful(tensors: Any) -> dict[str, Any]:
    """A metric that is no number on the validation rows."""
    return {**classification(tensors), "odd": 0.0 if len(tensors["row.label"]) > 12 else math.nan}


def test_a_student_that_ends_early_is_compared_and_keeps_its_record(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    fit = Fit(40, 14, 0.5, schedule="constant", optimizer="sgd", watch="-nll", patience=1)
    students = [replace(each, fit=fit) for each in nine()[:2]]
    (whole,) = trained(tmp_path / "alone", students[1:], snapshot, splits=HELD)
    ended = whole.content["epochs"]
    assert ended < 40, "it should end early for this test"
    found = halved(tmp_path / "all", students, snapshot, rungs=(ended,), pruner=NopPruner())
    assert names(found.records) == ["s0", "s1"]
    assert found.records[1].weights.read_bytes() == whole.weights.read_bytes()


def test_a_rung_after_a_students_end_has_nothing_to_say_of_it(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    short = [replace(s, fit=replace(s.fit, epochs=2)) for s in nine()[:2]]
    found = halved(tmp_path, short, snapshot, rungs=(2, 4))
    assert names(found.records) == names(short)


def test_a_student_that_fails_is_left_out_and_said_in_the_end(
    tmp_path: Path, snapshot: Snapshot, alone: list[Record]
) -> None:
    wild = replace(
        nine()[0], name="wild", fit=Fit(4, 14, 1e30, optimizer="sgd", watch="-nll", clip=0.0)
    )
    with pytest.raises(TrainingError, match=r"student 'wild'.*\(1 others are trained and kept\)"):
        halved(tmp_path, [wild, *nine()[:3]], snapshot)
    (kept,) = tmp_path.rglob("record.json")
    assert json.loads(kept.read_text())["student"] == best(alone[:3], 1, 1)[0].name


@pytest.mark.slow
def test_damaged_stops_cost_time_and_nothing_else(tmp_path: Path, snapshot: Snapshot) -> None:
    first = halved(tmp_path, nine()[:6], snapshot)
    contents = itertools.cycle([b"", b"[]", b'{"digest": 1}', b'{"epoch": 3, "curve": 7}', b"{"])
    for stop, content in zip(first.stopped, contents, strict=False):
        (stop.folder / "stopped.json").write_bytes(content)
    assert same(first, halved(tmp_path, nine()[:6], snapshot))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"rungs": (3, 1)}, ValueError, r"ascending order, found \(3, 1\)"),
        ({"rungs": ()}, ValueError, "ascending order"),
        ({"rungs": (1, 2, 5)}, ValueError, r"rungs 1, 2, 5 do not grow by one whole factor"),
        ({"watch": "acuracy"}, ValueError, "does not measure of student.*did you mean 'accuracy'"),
        (
            {"splits": {**HELD, "held": ["r1", "r41", "r45"]}},
            RowsError,
            r"'s0' would be stopped by 2 rows that it is judged by.*such as r41, r45",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, snapshot: Snapshot, how: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        halved(tmp_path, nine()[:2], snapshot, **how)


def test_students_must_be_measured_where_they_are_compared(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    with pytest.raises(
        ValueError, match=r"'s0' is evaluated every 2 epochs, and not after epoch 1"
    ):
        halved(tmp_path, nine(evaluate_every=2), snapshot)
    with pytest.raises(ValueError, match="'kd' is not measured on validation rows"):
        halved(tmp_path, [student()], snapshot)
    assert not list(tmp_path.iterdir())
