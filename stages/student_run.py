"""One student's training from the first epoch, or from its checkpoint, to the last or best one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from stillroom.stages.checkpoint import load_checkpoint, save_checkpoint
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fitting import Fitting, TrainingError
from stillroom.stages.loading import Loader

CHECKPOINT = "checkpoint.safetensors"


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
    ) -> None:
        """`digest` is the student's identity: a checkpoint of another one is not taken up."""
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

    def run(self) -> None:
        """Train to the end; what is kept is the last epoch's student, or the best one's."""
        fit = self.fitting.student.fit
        self._take_up()
        saved = time.monotonic()
        while self.epochs < fit.epochs and not self._waited_enough():
            started = time.perf_counter()
            loss = self.fitting.epoch(self.epochs + 1)
            self.fit_seconds += time.perf_counter() - started
            self.epochs += 1
            if self.epochs % fit.evaluate_every == 0 or self.epochs == fit.epochs:
                self._evaluate(loss)
            if self.epochs < fit.epochs and time.monotonic() - saved >= self._every_s:
                save_checkpoint(self._place, self._digest, self._state())
                saved = time.monotonic()
        if self.best and self.best["epoch"] != self.epochs:
            self.last = self.fitting.weights()["module"]
            self.fitting.load(self.best["weights"])
            self.metrics = self._measured(self._held_out)

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
        self.fitting.learning.load_state_dict(state["learning"])
        self.fitting.settings = state["settings"]
        self.epochs = self.resumed = state["epochs"]
        self.curve, self.metrics, self.best = state["curve"], state["metrics"], state["best"]
        self.fit_seconds = state["fit seconds"]


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, float)}
