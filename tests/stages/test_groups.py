"""Students that share batches become what they would have become alone, whatever befalls the others."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillroom.stages import Needs, Recipe, Student, term
from stillroom.stages.events import StudentFailed
from stillroom.stages.fitting import Fitting, TrainingError
from stillroom.stages.grouping import batches_of
from stillroom.stages.loading import Loader
from stillroom.stages.objectives.logits import kl
from stillroom.stages.student_run import StudentRun
from stillroom.stages.student_work import CHECKPOINT
from stillroom.storage import Snapshot
from tests.stages.builders import (
    SPLITS,
    Heard,
    network,
    pupil,
    student,
    taught,
    trained,
)
from tests.stages.group_builders import FIT, shaky, sharp

HELD = {**SPLITS, "held": SPLITS["train"][30:]}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def writing() -> Any:
    """Overwrites the rows that it is given."""
    return nn.Sequential(nn.ReLU(inplace=True), *pupil())


def eight() -> list[Student]:
    """Other seeds, rates, temperatures, recipes, lengths and optimisers over the same signals."""
    early = replace(FIT, epochs=9, schedule="constant", watch="accuracy", patience=1)
    return [
        sharp("a", 1.0, 0),
        sharp("b", 4.0, 1, build=shaky),
        sharp("c", 4.0, 2, fit=replace(FIT, learning_rate=0.1, optimizer="sgd", clip=1.0)),
        sharp("d", 2.0, 3, build=partial(pupil, 9, normed=True)),
        sharp("e", 2.0, 4, fit=replace(FIT, epochs=4, average=0.9, accumulate=2)),
        sharp("f", 2.0, 5, fit=early, validation="held", build=shaky),
        student("g", "nkd", seed=6, order=0, fit=FIT, build=writing),
        student("h", "kd", seed=7, order=0, fit=FIT),
    ]


def same(one: Any, other: Any) -> None:
    """Every file but the record, and all of the curve."""
    for mine, theirs in zip(one, other, strict=True):
        files = sorted(p.name for p in mine.folder.iterdir())
        assert files == sorted(p.name for p in theirs.folder.iterdir())
        for file in (f for f in files if f.endswith(".safetensors")):
            assert (mine.folder / file).read_bytes() == (theirs.folder / file).read_bytes(), file
        assert mine.content["curve"] == theirs.content["curve"]
        assert mine.metrics == theirs.metrics
        assert mine.content["digest"] == theirs.content["digest"]


def alone(folder: Path, students: Sequence[Student], snapshot: Snapshot, **how: Any) -> Any:
    return trained(folder, students, snapshot, splits=HELD, together=False, **how)


def test_eight_of_eight_are_bit_for_bit_what_they_are_alone(
    tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered, batch = list[int](), Loader.batch

    def counted(loader: Loader, chosen: Any, view: int = 1) -> Any:
        gathered.append(len(chosen))
        return batch(loader, chosen, view)

    monkeypatch.setattr(Loader, "batch", counted)
    one = alone(tmp_path / "alone", eight(), snapshot)
    apart = gathered.count(8)
    gathered.clear()
    other = trained(tmp_path / "together", eight(), snapshot, splits=HELD)
    same(one, other)
    assert [r.content["together"] for r in other] == [8] * 8
    assert not any("together" in r.content for r in one)
    assert len({r.weights.read_bytes() for r in other}) == 8
    # Each batch once while all are there, and not once for each of eight students.
    longest = max(r.content["epochs"] for r in other)
    assert gathered.count(8) <= 5 * longest + 10 < apart / 3


def test_students_of_other_orders_are_no_group_and_one_order_makes_one(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    plain = [student("s", seed=n) for n in range(2)]
    assert batches_of(plain[0]) != batches_of(plain[1])
    for order in (0, 5):
        assert len({batches_of(replace(s, order=order)) for s in plain}) == 1
    assert plain[0].identity() == replace(plain[0], order=0).identity()
    other = replace(plain[1], order=0)
    assert plain[1].identity() != other.identity()
    assert other.identity() == replace(other, needs=Needs(cpus=2)).identity()
    (mine,) = trained(tmp_path / "a", [other], snapshot)
    (own,) = trained(tmp_path / "b", [plain[1]], snapshot)
    assert mine.weights.read_bytes() != own.weights.read_bytes()


def test_columns_may_differ_and_signals_may_not(tmp_path: Path, snapshot: Snapshot) -> None:
    labelled, soft = student("l", "kd", order=0), sharp("s", 2.0, 0, fit=student().fit)
    assert labelled.columns != soft.columns
    assert batches_of(labelled) == batches_of(soft)
    assert batches_of(soft) != batches_of(student("f", "fitnet", order=0))
    assert batches_of(soft) != batches_of(replace(soft, fit=replace(soft.fit, batch_size=9)))
    same(
        alone(tmp_path / "a", [labelled, soft], snapshot),
        trained(tmp_path / "t", [labelled, soft], snapshot, splits=HELD),
    )


def test_signals_under_other_names_and_streams_are_shared(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    soft = Recipe("soft", (term(kl, "student.logits", "teacher.wise", where="batch.more"),))
    plain = Recipe("plain", (term(kl, "student.logits", "teacher.logits", where="batch.more"),))
    shared: dict[str, Any] = {"beside": {"more": "held"}, "order": 3, "fit": FIT}
    students = [
        student("x", recipe=soft, seed=1, signals={"wise": "logits"}, build=shaky, **shared),
        student("y", recipe=plain, seed=1, **shared),
    ]
    assert batches_of(students[0]) == batches_of(students[1])
    one = alone(tmp_path / "a", students, snapshot)
    same(one, trained(tmp_path / "t", students, snapshot, splits=HELD))


def fails(at: int, how: str) -> Any:
    return _Failing(at, how)


class _Failing(nn.Module):
    """Answers no number, or runs out of memory, in one of its steps."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.inner, self.at, self.how, self.steps = shaky(), at, how, 0

    def forward(self, image: torch.Tensor) -> Any:
        self.steps += self.training
        if self.steps == self.at and self.how == "memory":
            return torch.empty(2**60)
        if self.steps == self.at and self.how == "mistake":
            raise LookupError("a mistake")
        answer = self.inner(image)
        return answer * float("nan") if self.steps == self.at else answer


@pytest.mark.parametrize(("how", "said"), [
    ("nan", r"'bad', seed 3, epoch 2: the loss became nan on rows r\d+"),
    ("memory", r"'bad', seed 3: memory ran out.*batches of 8 rows \(.*allocat.*"
     r"Fit\(batch_size=4, accumulate=2\)"),
])  # fmt: skip
def test_one_that_fails_leaves_and_the_others_stay_the_same(
    tmp_path: Path, snapshot: Snapshot, how: str, said: str
) -> None:
    bad = sharp("bad", 4.0, 3, build=partial(fails, 7, how))
    good, heard = [sharp("g", 4.0, 0, build=shaky), sharp("h", 1.0, 1)], Heard()
    with pytest.raises(TrainingError, match=rf"{said}.*\(2 others are trained and kept\)"):
        trained(tmp_path / "t", [good[0], bad, good[1]], snapshot, listen=heard)
    assert [e.name for e in heard.events if isinstance(e, StudentFailed)] == ["bad"]
    same(alone(tmp_path / "a", good, snapshot), trained(tmp_path / "t", good, snapshot))


def test_a_mistake_in_one_student_is_raised_when_the_others_are_kept(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    good = [sharp("g", 4.0, 0, build=shaky), sharp("h", 1.0, 1)]
    with pytest.raises(LookupError, match="a mistake"):
        trained(tmp_path, [sharp("e", 1.0, 2, build=mistaken), *good], snapshot)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())  # seen before anything is trained
    late = sharp("m", 1.0, 2, build=partial(fails, 7, "mistake"))
    with pytest.raises(LookupError, match="a mistake"):
        trained(tmp_path, [late, *good], snapshot)
    heard = Heard()
    trained(tmp_path, good, snapshot, listen=heard)
    assert [type(e).__name__ for e in heard.events] == ["TrainStarted"]


def mistaken() -> Any:
    raise LookupError("a mistake")


def crowd() -> Any:
    """All that live; a student's identity would cover a global of this file, and this has none."""
    return vars(logging.getLogger("crowd")).setdefault("alive", weakref.WeakSet())


class _Crowded(nn.Module):
    """Has no memory while another one of its kind lives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = shaky()
        crowd().add(self)

    def forward(self, image: torch.Tensor) -> Any:
        if self.training and len(crowd()) > 1:
            torch.empty(2**60)
        return self.inner(image)


def test_one_that_has_no_memory_beside_others_is_trained_alone_after_them(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    students = [sharp("a", 4.0, 0, build=_Crowded), sharp("b", 4.0, 1, build=_Crowded)]
    students.append(sharp("c", 4.0, 2))
    together = trained(tmp_path / "t", students, snapshot)
    same(alone(tmp_path / "a", students, snapshot), together)
    assert [r.content.get("together") for r in together] == [None, 3, 3]


class Killed(BaseException):
    """The process is gone."""


def test_students_that_were_cut_off_at_other_epochs_go_on_to_the_same_bits(
    tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = replace(FIT, epochs=5)
    students = [sharp(n, 4.0, i, build=shaky, fit=fit) for i, n in enumerate("abc")]
    whole = alone(tmp_path / "whole", students, snapshot)
    done = StudentRun.epoch_done

    def cut(run: StudentRun, loss: float, seconds: float) -> None:
        if (run.fitting.student.name, run.epochs) == ("c", 2):
            raise Killed
        done(run, loss, seconds)

    monkeypatch.setattr(StudentRun, "epoch_done", cut)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", students, snapshot, splits=HELD, checkpoint_s=0)
    monkeypatch.undo()
    shared, lone = list[str](), list[str]()
    take, epoch = Fitting.take_shared, Fitting.epoch

    def sharing(fitting: Fitting, loaded: Any, number: int, chosen: Any) -> None:
        shared.append(f"{fitting.student.name}{number}")
        take(fitting, loaded, number, chosen)

    def by_itself(fitting: Fitting, number: int) -> float:
        lone.append(f"{fitting.student.name}{number}")
        return epoch(fitting, number)

    monkeypatch.setattr(Fitting, "take_shared", sharing)
    monkeypatch.setattr(Fitting, "epoch", by_itself)
    again = trained(tmp_path / "cut", students, snapshot, splits=HELD)
    assert [r.content["resumed_after_epoch"] for r in again] == [3, 3, 2]
    assert lone == ["c3"]  # catches up, then they share
    assert set(shared) == {f"{name}{number}" for name in "abc" for number in (4, 5)}
    same(whole, again)


def test_a_checkpoint_of_another_architecture_is_said(
    tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = student(build=wide_or_narrow, fit=FIT)

    def stop(run: StudentRun) -> None:
        raise Killed

    monkeypatch.setattr(StudentRun, "end", stop)
    with pytest.raises(Killed):
        trained(tmp_path, [learner], snapshot, checkpoint_s=0)
    monkeypatch.undo()
    monkeypatch.setenv("PUPIL_WIDTH", "7")
    with pytest.raises(
        TrainingError, match=r"(?s)checkpoint .* is of another architecture.*Remove"
    ):
        trained(tmp_path, [learner], snapshot)
    assert len(list(tmp_path.glob(f"*/{CHECKPOINT}"))) == 1


def wide_or_narrow() -> Any:
    """Its width is in no identity."""
    return pupil(int(os.environ.get("PUPIL_WIDTH", "6")))


def test_a_start_of_another_architecture_is_said(tmp_path: Path, snapshot: Snapshot) -> None:
    (wide,) = trained(tmp_path / "w", [student("w", build=partial(pupil, 9))], snapshot)
    narrow, heard = sharp("n", 4.0, 0, start=wide.weights), Heard()
    with pytest.raises(
        TrainingError,
        match=rf"(?s)'n' cannot start from {wide.weights}, which is of another architecture.*"
        r"\(1 others are trained",
    ):
        trained(tmp_path / "s", [narrow, sharp("o", 4.0, 1)], snapshot, listen=heard)
