"""One student's training from the first epoch, or from its checkpoint, to the last or best one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from stillroom.stages.checkpoint import load_checkpoint, save_checkpoint
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fitting import Fitting, TrainingError
from stillroom.stages.loading import Loader
from stillroom.stages.student_log import StudentLog
from stillroom.stages.student_work import CHECKPOINT


class StudentRun:
    """Epochs, evaluations and checkpoints; what they found is in `curve`, `metrics` and so on."""

    def __init__(
        self,
        fitting: Fitting,
        evaluation: Evaluation,
        held_out: Loader,
        validation: Loader | None,
        *,
        folder: Path,
        digest: str,
        checkpoint_s: float,
        until: int = 0,
        board: Path | None = None,
    ) -> None:
        """`digest` is the student's identity: a checkpoint of another one is not taken up.

        `until` is the epoch after which it pauses; 0 is its last one. `board` is the folder of an event
        file for TensorBoard.
        """
        self._log = fitting.log = StudentLog(folder, fitting.student.recipe.terms, board)
        self.fitting, self._evaluation = fitting, evaluation
        self._held_out, self._validation = held_out, validation
        self._place, self._digest, self._every_s = folder / CHECKPOINT, digest, checkpoint_s
        self.curve: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.fit_seconds, self.epochs = 0.0, 0
        self.best: dict[str, Any] = {}
        """Epoch, value and weights of the best evaluation, where one is watched."""
        self.last: dict[str, Any] = {}
        """The weights of the last epoch, where another's are kept."""
        self.resumed = 0
        """The epoch after which it was taken up again."""
        self.spent = 0.0
        """Seconds of the epochs before."""
        self._until = until
        self._saved, self._stored = 0.0, 0
        self.paused = False
        """Whether it waits in its checkpoint for its further epochs."""

    def begin(self) -> None:
        """Take up the checkpoint, where there is one."""
        self._take_up()
        self._log.take_up(self.epochs)
        self._saved, self._stored = time.monotonic(), self.epochs

    @property
    def goes_on(self) -> bool:
        """Whether another epoch is to come now."""
        return not self._ended and not (self._until and self.epochs >= self._until)

    def epoch_done(self, loss: float, seconds: float) -> None:
        """After an epoch of the fitting: its mean loss, and the seconds that it took."""
        fit = self.fitting.student.fit
        self.fit_seconds += seconds
        self.epochs += 1
        evaluated = self.epochs % fit.evaluate_every == 0 or self.epochs == fit.epochs
        if evaluated:
            self._evaluate(loss)
        self._log.epoch_done(self.fit_seconds, self.curve[-1] if evaluated else {})
        if self.epochs < fit.epochs and time.monotonic() - self._saved >= self._every_s:
            self._save()

    def end(self) -> None:
        """After the last epoch, or where it pauses; what is kept is the last epoch's student, or the
        best one's."""
        if not self._ended:
            self.paused = True
            if self._stored != self.epochs:
                self._save()
            self._log.close()
            return
        self._log.write()
        self._log.close()
        if self.best and self.best["epoch"] != self.epochs:
            self.last = self.fitting.weights()["module"]
            self.fitting.load(self.best["weights"])
            self.metrics = self._measured(self._held_out)

    @property
    def _ended(self) -> bool:
        return self.epochs >= self.fitting.student.fit.epochs or self._waited_enough()

    def _save(self) -> None:
        # The log first: what it has of later epochs is left out when it is taken up again.
        self._log.write()
        save_checkpoint(self._place, self._digest, self._state())
        self._saved, self._stored = time.monotonic(), self.epochs

    def leave(self) -> None:
        """It failed: what it stored stays, and nothing more comes."""
        self._log.close()

    def finish(self) -> None:
        """Remove the checkpoint, once the record is written."""
        self._place.unlink(missing_ok=True)

    def _evaluate(self, loss: float) -> None:
        if self._validation is not None:
            self.fitting.tune(self._validation)
        self.metrics = self._measured(self._held_out)
        point: dict[str, Any] = {"epoch": self.epochs, "loss": loss, **_scalars(self.metrics)}
        watch = self.fitting.student.fit.watch
        if watch and self._validation is not None:
            validation = _scalars(self._measured(self._validation))
            point["validation"] = validation
            self._watch(watch, validation)
        self.curve.append(point)

    def _watch(self, watch: str, validation: dict[str, float]) -> None:
        name = watch.removeprefix("-")
        if name not in validation:
            raise TrainingError(
                f"student {self.fitting.student.name!r} watches {name!r}, which its evaluation does not "
                f"measure; it measures {', '.join(validation)}"
            )
        value = -validation[name] if watch.startswith("-") else validation[name]
        if not self.best or value > self.best["value"]:
            weights = self.fitting.weights()
            self.best = {"epoch": self.epochs, "value": value, "weights": weights}

    def _waited_enough(self) -> bool:
        fit = self.fitting.student.fit
        if not (fit.patience and self.best):
            return False
        since = [p for p in self.curve if p["epoch"] > self.best["epoch"]]
        return len(since) >= fit.patience

    def _measured(self, loader: Loader) -> dict[str, Any]:
        return self.fitting.evaluate(loader, self._evaluation)

    def _state(self) -> dict[str, Any]:
        return {
            "learning": self.fitting.learning.state_dict(),
            "settings": self.fitting.settings,
            "epochs": self.epochs,
            "curve": self.curve,
            "metrics": self.metrics,
            "fit seconds": self.fit_seconds,
            "best": self.best,
        }

    def _take_up(self) -> None:
        state = load_checkpoint(self._place, self._digest)
        if state is None:
            return
        try:
            self.fitting.learning.load_state_dict(state["learning"])
        except (RuntimeError, ValueError, LookupError) as error:
            raise TrainingError(
                f"student {self.fitting.student.name!r}, seed {self.fitting.student.seed}: its checkpoint "
                f"{self._place} is of another architecture, though what `build` says of itself is the "
                f"same ({error}). Remove it to begin anew, or build what it was made with"
            ) from error
        self.fitting.settings = state["settings"]
        self.epochs = self.resumed = state["epochs"]
        self.curve, self.metrics, self.best = state["curve"], state["metrics"], state["best"]
        self.fit_seconds = self.spent = state["fit seconds"]


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, float)}
