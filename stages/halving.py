"""Halving: many students begin, the worse ones are stopped at rungs, the others train to their end.

Each rung is an epoch. All students that are left are trained up to it, which leaves checkpoints; they are
compared on validation rows (`stages/rungs.py`), and those that go on do so from their checkpoints. A
student that gets to its end is the student that `train` alone would have made, bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from stillroom.stages.available import Available
from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.events import Listen, StudentFailed, StudentStopped, ignore
from stillroom.stages.mapper import Mapper, Placing
from stillroom.stages.race import STOPPED, Race, require_apart, stop_of
from stillroom.stages.rungs import require_optuna
from stillroom.stages.student import Record, Student
from stillroom.stages.student_work import CHECKPOINT, StudentTask
from stillroom.stages.training import TrainPlan, plan_train, train, train_tasks
from stillroom.storage.files import read_json, write_json
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


@dataclass(frozen=True)
class Stopped:
    """What a student leaves that was stopped early, read from its folder."""

    folder: Path
    content: Mapping[str, Any]
    """student, seed, digest, epoch, rung (from 1), watch, value, by (the pruner), fit_seconds, curve."""

    @classmethod
    def read(cls, folder: Path) -> Stopped:
        """Read stopped.json."""
        return cls(folder, read_json(folder / STOPPED))

    @property
    def name(self) -> str:
        """The student's name."""
        return str(self.content["student"])

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return int(self.content["seed"])

    @property
    def epoch(self) -> int:
        """The epoch after which it was stopped."""
        return int(self.content["epoch"])

    @property
    def value(self) -> float:
        """The watched metric then, on validation rows; NaN where it was none."""
        value = self.content["value"]
        return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Halving:
    """What `halve` found; both in the order in which the students were given."""

    records: tuple[Record, ...]
    """Students that were trained to their end."""
    stopped: tuple[Stopped, ...]


def halve(
    students: Sequence[Student],
    rows: Rows,
    snapshot: Snapshot | None,
    *,
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
    folder: str | Path,
    runner: Mapper,
    watch: str = "accuracy",
    rungs: Sequence[int] = (1, 3, 9),
    pruner: BasePruner | None = None,
    tables: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    threads: int = 1,
    checkpoint_s: float = 60.0,
    tensorboard: str | Path | None = None,
    listen: Listen = ignore,
) -> Halving:
    """Train students, and stop those at each rung that are worse than the others (extra `sweep`).

    At the epochs `rungs` all that are left are compared by `watch` (`-nll` where smaller is better) of
    the evaluation on their validation splits, which must have no row of the evaluation's own split. A
    rung at or after a student's last epoch has nothing to say of it, nor has one after an early end.

    `pruner` is one of Optuna's and decides; None is successive halving over these rungs, which must then
    grow by one whole factor k: the best 1/k of them (at least one) goes on. Say where yours begins,
    such as `SuccessiveHalvingPruner(min_resource=1)`, `MedianPruner(n_startup_trials=2)` or
    `HyperbandPruner(1, 27)`: what Optuna calls "auto" waits for trials that have ended. Who is stopped
    follows from the students, their order, the rungs and the pruner alone, on any runner.

    A stopped student leaves `stopped.json` in its folder; its checkpoint is removed. Called again with
    the same students, nothing is trained. With others, those stopped before are compared again by what
    they noted, and only one that would now go on is trained again.

    Raises what `train` does; ValueError for students that watch nothing and for rungs at which they are
    not evaluated; RowsError for validation rows among those of the evaluation;
    MissingPackageError without Optuna.
    """
    how: dict[str, Any] = {"splits": splits, "evaluation": evaluation, "tables": tables}
    how["folder"] = folder = Path(folder)
    race = _race(students, rows, snapshot, how, watch, rungs, pruner)
    there = Available({name: as_keys(chosen) for name, chosen in splits.items()})

    def stop(task: StudentTask, said: Mapping[str, Any]) -> None:
        if task.is_done:
            return  # it has cost what it could cost
        is_new = stop_of(task) != said
        if is_new:
            write_json(task.folder / STOPPED, said)
        (task.folder / CHECKPOINT).unlink(missing_ok=True)
        if is_new:
            stopped = Stopped(task.folder, said)
            listen(StudentStopped(stopped.name, stopped.seed, stopped.epoch, stopped.value))

    with ExitStack() as stack:
        if isinstance(runner, Placing):
            stack.enter_context(cast(Any, runner))  # Ray is started once for all rungs
        for epoch, lacking in race.rungs(stop):
            for said in train_tasks(
                lacking,
                *(rows, snapshot, there, evaluation, runner),
                tables=tables,
                threads=threads,
                checkpoint_s=checkpoint_s,
                tensorboard=tensorboard,
                until=epoch,
            ):
                race.heard(said)
                if "failed" in said:
                    listen(StudentFailed(said["student"], said["seed"], said["failed"]))
        records = train(
            [task.student for task in race.left],
            *(rows, snapshot),
            **how,
            runner=runner,
            threads=threads,
            checkpoint_s=checkpoint_s,
            tensorboard=tensorboard,
            listen=listen,
        )
    for record in records:
        (record.folder / STOPPED).unlink(missing_ok=True)  # of a comparison with others, before
    if race.failed:
        from stillroom.stages.fitting import TrainingError

        others = f" ({len(records)} others are trained and kept)" if records else ""
        raise TrainingError("; ".join(race.failed.values()) + others)
    return Halving(tuple(records), tuple(Stopped(t.folder, said) for t, said in race.stopped))


def plan_halve(
    students: Sequence[Student],
    rows: Rows,
    snapshot: Snapshot | None,
    *,
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
    folder: Path,
    watch: str = "accuracy",
    rungs: Sequence[int] = (1, 3, 9),
    pruner: BasePruner | None = None,
    tables: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> TrainPlan:
    """What `halve` would train next: students for the first rung at which something is not known, or
    those that go on to their end. Nothing is stale where `halve` would train nothing."""
    how: dict[str, Any] = {"splits": splits, "evaluation": evaluation, "tables": tables}
    race = _race(students, rows, snapshot, {**how, "folder": folder}, watch, rungs, pruner)
    _, stale = next(race.rungs(lambda task, said: None), (0, None))
    stale = [task for task in race.left if not task.is_done] if stale is None else stale
    mine = {id(task) for task in stale}
    return TrainPlan(tuple(stale), tuple(task for task in race.tasks if id(task) not in mine))


def _race(
    students: Sequence[Student],
    rows: Rows,
    snapshot: Snapshot | None,
    how: Mapping[str, Any],
    watch: str,
    rungs: Sequence[int],
    pruner: BasePruner | None,
) -> Race:
    """Everything that can be known to be wrong is said here."""
    require_optuna()
    plan = plan_train(students, rows, snapshot, **how)
    require_apart(students, how["splits"], how["evaluation"])
    task_of = {id(task.student): task for task in (*plan.stale, *plan.fresh)}
    return Race([task_of[id(student)] for student in students], watch, rungs, pruner)
