"""Fit one student: the loop that joins its outputs, the cache's signals and the recipe's terms."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.stages.evaluating import Evaluation
from stillroom.stages.learning import Learning
from stillroom.stages.loading import Loader, Tensors
from stillroom.stages.recipe import INDEX
from stillroom.stages.streams import Streams, joined
from stillroom.stages.student import Student
from stillroom.stages.student_log import StudentLog
from stillroom.stages.teachers.layers import LayerTaps
from stillroom.stages.teachers.weights import load_state
from stillroom.storage.errors import StillroomError, listed


class TrainingError(StillroomError, RuntimeError):
    """A student cannot be trained: a loss that is no number, a term that does not fit."""


class Fitting:
    """A student that is being trained: epochs, then what it answers."""

    def __init__(
        self,
        student: Student,
        rows: Streams | Loader,
        device: str = "auto",
        tables: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        """Build everything from the seed; heads take their shapes from the first rows.

        "auto" takes a GPU where this process has one.
        """
        self.student = student
        self._rows = rows if isinstance(rows, Streams) else Streams(rows, seed=student.order_seed)
        self._total, self._count = 0.0, 0
        self._means: list[Tensor] = []
        self.log: StudentLog | None = None
        """Where steps are noted, if anywhere."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(student.seed)
        self.module = student.build().to(torch.device(device))
        if student.start is not None:
            self._start(student.start)
        self._taps = LayerTaps(self.module, student.layers, f"student {student.name!r}")
        held = {name: torch.from_numpy(np.asarray(given)) for name, given in (tables or {}).items()}
        self.learning = Learning(student, self.module, torch.device(device), held)
        first = self._rows.first()
        fit, batches = student.fit, len(self._rows)
        descents = fit.epochs * math.ceil(batches / fit.accumulate)
        self.learning.prepare(first, fit.epochs * batches, descents)
        if student.start_average is not None:
            self._start_average(student.start_average)
        self.settings: dict[str, Any] = {}
        """Those of the recipe's answer."""
        if student.recipe.answer is not None:
            self.settings = dict(student.recipe.answer.settings)
        with torch.no_grad():
            self._check_terms(self.learning.complete(self.learning.given(first)))

    def _start(self, weights: Path) -> None:
        try:
            self.module.load_state_dict(load_state(weights))
        except RuntimeError as error:
            raise TrainingError(
                f"student {self.student.name!r} cannot start from {weights}, which is of another "
                f"architecture: {error}"
            ) from error

    def _start_average(self, weights: Path) -> None:
        """The average goes on from another run's, which has the same names and shapes."""
        as_it_was = {n: t.detach().clone() for n, t in self.module.state_dict().items()}
        self._start(weights)
        self.learning.average = {n: t.detach().clone() for n, t in self.module.state_dict().items()}
        self.module.load_state_dict(as_it_was)

    def _check_terms(self, tensors: Mapping[str, Any]) -> None:
        """Every term must take these tensors and give losses: said before training."""
        for term in self.student.recipe.terms:
            shapes = ", ".join(f"{n} {_shape(tensors.get(n))}" for n in term.names)
            said = f"student {self.student.name!r}: term {term!r}"
            try:
                losses, mean = term(tensors), term.mean(tensors)
            except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
                raise TrainingError(f"{said} does not fit {shapes}: {error}") from error
            rows = len(tensors[f"batch.{INDEX}"])
            if (losses.ndim and not term.where and len(losses) != rows) or mean.ndim:
                raise TrainingError(
                    f"{said} gave shape {tuple(losses.shape)} for {shapes}; a term gives losses for each "
                    f"row, ({rows}, ...), or one number"
                )

    def epoch(self, number: int) -> float:
        """One pass over the rows; the mean loss. TrainingError when a loss is no number."""
        self.begin_epoch()
        for chosen, loaded in self._rows.epoch(number):
            self.take(loaded, number, chosen)
        return self.end_epoch()

    def begin_epoch(self) -> None:
        """What `epoch` does before its first batch."""
        self.module.train()
        self.learning.heads.train()
        self._total, self._count = 0.0, 0

    def take(self, loaded: Tensors, number: int, chosen: Any) -> None:
        """One step on a batch of `rows` as its own streams would give it."""
        started, rate = time.perf_counter(), self.learning.rate
        loss = self._update(loaded, number, chosen)
        self._total += loss * len(chosen)
        self._count += len(chosen)
        if self.log is not None:
            self.log.step(
                epoch=number,
                step=self.learning.steps_made,
                rows=len(chosen),
                loss=loss,
                rate=rate,
                seconds=time.perf_counter() - started,
                means=self._means,
            )

    def take_shared(self, loaded: Tensors, number: int, chosen: Any) -> None:
        """One step on a batch that several students are given, with signals as the cache calls them."""
        self.take(self._rows.renamed(loaded), number, chosen)

    def end_epoch(self) -> float:
        """What `epoch` does after its last batch; the mean loss."""
        self.learning.flush()
        return self._total / self._count

    def _update(self, loaded: Tensors, epoch: int, chosen: Any) -> float:
        """One step; its loss."""
        learning, step = self.learning, self.student.recipe.step
        learning.tensors = learning.given(loaded)
        if step is not None:
            with learning.autocast():
                loss = step(learning)
            value = self._finite(loss, epoch, chosen)
            learning.finish_step(learning.tensors, [])
            return value
        with learning.autocast():
            tensors = learning.complete()
            self._means = means = learning.means(tensors)
            loss = learning.loss(tensors, means)
        value = self._finite(loss, epoch, chosen)
        learning.descend(loss)
        learning.finish_step(tensors, means)
        return value

    def _finite(self, loss: Tensor, epoch: int, chosen: Any) -> float:
        value = loss.item()
        if not math.isfinite(value):
            keys = [self._rows.keys[int(i)].as_py() for i in chosen]
            raise TrainingError(
                f"student {self.student.name!r}, seed {self.student.seed}, epoch {epoch}: the "
                f"loss became {value} on rows {listed(keys)}; lower the learning rate "
                f"({self.student.fit.learning_rate:g}) or look at these rows"
            )
        return value

    def weights(self) -> dict[str, Any]:
        """A copy of the student's weights and of its heads'."""
        parts = {"module": self.module, "heads": self.learning.heads}
        return {
            name: {n: t.detach().clone() for n, t in part.state_dict().items()}
            for name, part in parts.items()
        }

    def load(self, weights: Mapping[str, Any]) -> None:
        """Go back to weights that `weights` gave."""
        self.module.load_state_dict(weights["module"])
        self.learning.heads.load_state_dict(weights["heads"])

    def tune(self, validation: Loader) -> None:
        """Choose the settings of the recipe's answer that score best on these rows."""
        answer = self.student.recipe.answer
        if answer is None or not answer.grid or answer.score is None:
            return
        tensors, best = self._collected(validation), -math.inf
        label = tensors[f"row.{answer.label}"]
        inputs = [tensors[name] for name in answer.inputs]
        for values in itertools.product(*answer.grid.values()):
            tried = self.settings | dict(zip(answer.grid, values, strict=True))
            score = float(answer.score(answer.function(*inputs, **tried), label))
            if score > best:
                best, self.settings = score, tried

    def evaluate(self, loader: Loader, evaluation: Evaluation) -> dict[str, Any]:
        """Metrics on the held-out rows."""
        tensors = self._collected(loader)
        answer = self.student.recipe.answer
        if answer is not None:
            inputs = [tensors[name] for name in answer.inputs]
            with torch.inference_mode():
                tensors[f"student.{answer.name}"] = answer.function(*inputs, **self.settings)
        return evaluation.measure(tensors)

    def _collected(self, loader: Loader) -> dict[str, Any]:
        """What is loaded and what the student and its kept heads answer, of all rows, on the CPU."""
        self.module.eval()
        self.learning.heads.eval()
        kept = [head for head in self.student.recipe.heads if head.kept]
        collected: dict[str, list[Tensor]] = {}
        with torch.inference_mode():
            for loaded in loader.ordered():
                tensors = self.learning.given(loaded)
                inputs = tuple(tensors[f"row.{name}"] for name in self.student.inputs)
                tensors |= {f"student.{n}": t for n, t in self._taps.run(inputs, {}).items()}
                tensors |= {f"head.{h.name}": self.learning.apply(h, tensors) for h in kept}
                for name, tensor in tensors.items():
                    rowwise = not name.startswith(("table.", "state."))
                    if isinstance(tensor, Tensor) and tensor.ndim and rowwise:
                        collected.setdefault(name, []).append(tensor.cpu())
        found: dict[str, Any] = {name: joined(each) for name, each in collected.items()}
        return found | {name: table.cpu() for name, table in self.learning.tables.items()}


def _shape(given: Any) -> str:
    """A tensor's shape, or what else it is, for messages."""
    return str(tuple(given.shape)) if hasattr(given, "shape") else type(given).__name__
