"""Race: students on their way through rungs; what is known of each, and who still goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from stillroom.stages.evaluating import Evaluation
from stillroom.stages.rungs import Rungs, halving_pruner, spelled
from stillroom.stages.student import Record, Student
from stillroom.stages.student_work import StudentTask
from stillroom.storage.errors import GARBLED, RowsError, StillroomError, listed, nearest
from stillroom.storage.files import nan_as_none, read_json
from stillroom.storage.keys import KeyList, as_keys

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

STOPPED = "stopped.json"


@dataclass(frozen=True)
class _Known:
    """What is known of a student."""

    epoch: float = 0
    """Up to which epoch; infinity once it has ended."""
    curve: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    """What its epochs cost."""


class Race:
    """Students by number, in the order given; their curves are learnt from their folders or by `heard`."""

    def __init__(
        self,
        tasks: Sequence[StudentTask],
        watch: str,
        rungs: Sequence[int],
        pruner: BasePruner | None,
    ) -> None:
        """What their folders say is read now."""
        _require_rungs(tasks, rungs)
        pruner = halving_pruner(rungs) if pruner is None else pruner
        self.tasks, self._watch, self._epochs = tuple(tasks), watch, tuple(rungs)
        self._by = spelled(pruner)
        self._judge = Rungs(len(tasks), larger=not watch.startswith("-"), pruner=pruner)
        self._number = {(t.student.name, t.student.seed): n for n, t in enumerate(tasks)}
        self._known = [_noted(task) for task in tasks]
        self._stopped: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, str] = {}
        """Why, of students that cannot be trained."""

    @property
    def stopped(self) -> list[tuple[StudentTask, dict[str, Any]]]:
        """Those that were stopped, each with what its stopped.json says."""
        return [(self.tasks[n], said) for n, said in sorted(self._stopped.items())]

    @property
    def left(self) -> list[StudentTask]:
        """Those that go on to their end."""
        return [self.tasks[n] for n in range(len(self.tasks)) if self._goes_on(n)]

    def heard(self, said: Mapping[str, Any]) -> None:
        """What a worker says of a student: it pauses, has ended, or failed."""
        number = self._number[said["student"], said["seed"]]
        if "failed" in said:
            self.failed[number] = said["failed"]
            self._judge.failed(number)
        else:
            reached = said.get("paused", math.inf)
            self._known[number] = _Known(reached, said["curve"], said["fit_seconds"])

    def rungs(
        self, stop: Callable[[StudentTask, dict[str, Any]], None]
    ) -> Iterator[tuple[int, list[StudentTask]]]:
        """Each rung's epoch, and the students that `heard` must be told of before the next is asked
        for; `stop` is called for each that is stopped."""
        for place, epoch in enumerate(self._epochs, 1):
            there = [n for n in range(len(self.tasks)) if self._is_judged(n, epoch)]
            if lacking := [self.tasks[n] for n in there if self._known[n].epoch < epoch]:
                yield epoch, lacking
            values = {n: self._value(n, epoch) for n in there if self._goes_on(n)}
            for number in self._judge.judged(epoch, values) if values else []:
                said = self._end(number, place, epoch, values[number])
                self._stopped[number] = said
                stop(self.tasks[number], said)

    def _goes_on(self, number: int) -> bool:
        return number not in self._stopped and number not in self.failed

    def _is_judged(self, number: int, epoch: int) -> bool:
        return self._goes_on(number) and epoch < self.tasks[number].student.fit.epochs

    def _value(self, number: int, epoch: int) -> float:
        """The watched metric at an epoch; of a student that ended before, its last one."""
        name, student = self._watch.removeprefix("-"), self.tasks[number].student
        point = _until(self._known[number].curve, epoch)[-1]
        measured: Mapping[str, float] = point.get("validation", {})
        if name not in measured:
            raise ValueError(
                f"students are compared by {name!r}, which the evaluation does not measure of student "
                f"{student.name!r}; {nearest(name, measured)}"
            )
        value = measured[name]
        return math.nan if value is None else float(value)

    def _end(self, number: int, place: int, epoch: int, value: float) -> dict[str, Any]:
        task = self.tasks[number]
        stop = {
            "student": task.student.name,
            "seed": task.student.seed,
            "digest": task.digest,
            "recipe": task.student.recipe.name,
            "epochs": task.student.fit.epochs,
            "epoch": epoch,
            "rung": place,
            "watch": self._watch,
            "value": value,
            "by": self._by,
            "fit_seconds": self._known[number].seconds,
            "curve": _until(self._known[number].curve, epoch),
        }
        found: dict[str, Any] = nan_as_none(stop)
        return found


def require_apart(
    students: Sequence[Student], splits: Mapping[str, KeyList], evaluation: Evaluation
) -> None:
    """Refuse students that nothing can be compared of but the rows that they are judged by."""
    judged = as_keys(splits[evaluation.split])
    for student in students:
        if not student.fit.watch:
            raise ValueError(
                f"student {student.name!r} is not measured on validation rows while it trains; say what "
                "and where: Fit(watch='accuracy') and Student(validation='SPLIT')"
            )
        mine = as_keys(splits[student.validation])
        if mine.type != judged.type:
            continue
        if len(both := mine.filter(pc.is_in(mine, value_set=judged))):
            raise RowsError(
                f"student {student.name!r} would be stopped by {len(both):,} rows that it is judged by "
                f"in the end: split {student.validation!r} has them in common with "
                f"{evaluation.split!r}, such as {listed(both.to_pylist(), 3)}"
            )


def _require_rungs(tasks: Sequence[StudentTask], rungs: Sequence[int]) -> None:
    if not rungs or list(rungs) != sorted({int(r) for r in rungs}) or rungs[0] < 1:
        raise ValueError(f"rungs are epochs from 1 in ascending order, found {tuple(rungs)}")
    for task in tasks:
        every, epochs = task.student.fit.evaluate_every, task.student.fit.epochs
        if missed := [rung for rung in rungs if rung < epochs and rung % every]:
            raise ValueError(
                f"student {task.student.name!r} is evaluated every {every} epochs, and not after epoch "
                f"{missed[0]}, where it would be compared; take multiples of {every} as rungs"
            )


def _noted(task: StudentTask) -> _Known:
    """What its record or its stop says."""
    if task.is_done:
        content = Record.read(task.folder).content
        return _Known(math.inf, content["curve"], content["fit_seconds"])
    said = stop_of(task)
    return _Known() if said is None else _Known(said["epoch"], said["curve"], said["fit_seconds"])


def stop_of(task: StudentTask) -> dict[str, Any] | None:
    """What it left when it was stopped; None where it was not, or was another student."""
    place: Path = task.folder / STOPPED
    try:
        said: dict[str, Any] = read_json(place)
        mine = said["digest"] == task.digest and said.keys() >= {"epoch", "curve", "fit_seconds"}
        return said if mine else None
    except (StillroomError, OSError, *GARBLED):
        return None


def _until(curve: Sequence[Mapping[str, Any]], epoch: int) -> list[dict[str, Any]]:
    return [dict(point) for point in curve if point["epoch"] <= epoch]
