"""Rungs: which students of a sweep are stopped early, as one of Optuna's pruners says (extra `sweep`).

Optuna's pruners judge trials that come one after another: the first to arrive has nobody to be compared
with, and `SuccessiveHalvingPruner` therefore lets it pass whatever it is worth (as ASHA does, Li et al.
2020, arXiv:1810.05934). Here all students of a rung are there at once. So each is judged as if it came
last, when all others had reported and gone on: the answer depends on no order and no worker count, and
successive halving is the synchronous one (Jamieson and Talwalkar 2016, arXiv:1502.07943).
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stillroom.storage.errors import MissingPackageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

_STUDY = "students"
"""Hyperband draws a trial's bracket from the study's name and the trial's number."""


class Rungs:
    """Students by number, what each reported at every rung, and who is stopped."""

    def __init__(self, count: int, *, larger: bool, pruner: BasePruner) -> None:
        """`larger`: whether a larger value is the better one. The pruner is copied, as some keep what
        they saw. MissingPackageError without Optuna."""
        require_optuna()
        self._larger, self._pruner = larger, copy.deepcopy(pruner)
        with _quiet():
            self._study = self._new()
            self._trials = [self._study.ask() for _ in range(count)]

    def judged(self, epoch: int, values: Mapping[int, float]) -> list[int]:
        """Those to stop, in ascending order, of the students that report these values at an epoch.

        NaN is the worst value. Students that were stopped or failed report no more.
        """
        from optuna.trial import TrialState

        with _quiet():
            for number, value in sorted(values.items()):
                self._trials[number].report(value, epoch)
            before = self._study.get_trials()
            for number in sorted(values):
                self._trials[number].should_prune()  # notes its value at its rung
            after = self._study.get_trials()
            stopped = [n for n in sorted(values) if self._stopped_as_last(n, before[n], after)]
            for number in stopped:
                self._study.tell(number, state=TrialState.PRUNED)
        return stopped

    def failed(self, number: int) -> None:
        """A student that could not be trained is compared with no more."""
        from optuna.trial import TrialState

        with _quiet():
            self._study.tell(number, state=TrialState.FAIL)

    def _stopped_as_last(
        self, number: int, mine: FrozenTrial, others: Sequence[FrozenTrial]
    ) -> bool:
        """Whether it is stopped where all others have already been judged."""
        study = self._new()
        for other in others:
            study.add_trial(mine if other.number == number else _gone_on(other))
        return self._pruner.prune(study, study.get_trials(deepcopy=False)[number])

    def _new(self) -> Study:
        import optuna

        return optuna.create_study(
            study_name=_STUDY,
            direction="maximize" if self._larger else "minimize",
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=self._pruner,
        )


def halving_pruner(rungs: Sequence[int]) -> BasePruner:
    """Successive halving whose rungs are these: of 9 students (1, 3, 9) leaves 3 and then 1.

    ValueError where they do not grow by one whole factor, which is what it divides the students by.
    """
    require_optuna()
    from optuna.pruners import SuccessiveHalvingPruner

    factors = {b / a for a, b in itertools.pairwise(rungs)} or {3.0}
    factor = factors.pop()
    if factors or factor < 2 or not factor.is_integer():
        raise ValueError(
            f"rungs {', '.join(map(str, rungs))} do not grow by one whole factor, as in (1, 3, 9); give "
            "such ones, or a pruner of Optuna's"
        )
    return SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=int(factor))


def require_optuna() -> None:
    """MissingPackageError that says what to install."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "students are stopped early by the package optuna, which is not installed: "
            "pip install 'stillroom[sweep]'"
        ) from error


def spelled(pruner: BasePruner) -> str:
    """A pruner with its settings, for a record."""
    said = {n: getattr(pruner, f"_{n}", None) for n in inspect.signature(type(pruner)).parameters}
    settings = [f"{n}={v}" for n, v in said.items() if isinstance(v, bool | int | float | str)]
    return f"{type(pruner).__name__}({', '.join(settings)})"


def _gone_on(trial: FrozenTrial) -> FrozenTrial:
    """A trial as its end would look now: some pruners compare with ended ones alone."""
    from optuna.trial import TrialState, create_trial

    if trial.state != TrialState.RUNNING:
        return trial
    values: dict[int, Any] = trial.intermediate_values
    value = values[max(values)] if values else 0.0
    return create_trial(
        state=TrialState.COMPLETE,
        value=0.0 if math.isnan(value) else value,
        system_attrs=trial.system_attrs,
        intermediate_values=values,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines about studies."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
