"""Fit one student: the loop that joins its outputs, the cache's signals and the recipe's terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from stillroom.stages.evaluating import Evaluation
from stillroom.stages.loading import Loader, Tensors
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.layers import LayerTaps
from stillroom.storage.errors import StillroomError, listed


class TrainingError(StillroomError, RuntimeError):
    """A student cannot be trained: a loss that is no number, a term that does not fit."""


class Fitting:
    """A student's module, its heads and their optimiser."""

    def __init__(self, student: Student, loader: Loader, device: str = "auto") -> None:
        """Build everything from the seed; heads take their shapes from the first rows.

        "auto" takes a GPU where this process has one.
        """
        self.student, self._loader = student, loader
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        torch.manual_seed(student.seed)
        self.module = student.build().to(self._device)
        owner = f"student {student.name!r}"
        self._taps = LayerTaps(self.module, student.layers, owner)
        needed = {name: student.layers[name] for name in student.recipe.outputs}
        self._learning = LayerTaps(self.module, needed, owner)
        self.heads = self._build_heads(student.recipe)
        fit = student.fit
        parameters = [*self.module.parameters(), *self.heads.parameters()]
        self._optimizer = torch.optim.AdamW(
            parameters, lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        self._schedule: Any = None
        if fit.schedule == "onecycle":
            self._schedule = torch.optim.lr_scheduler.OneCycleLR(
                self._optimizer, fit.learning_rate, total_steps=fit.epochs * len(loader)
            )

    def _build_heads(self, recipe: Recipe) -> nn.ModuleDict:
        self.module.eval()
        with torch.no_grad():
            tensors = self._placed(self._loader.batch(np.arange(min(2, len(self._loader.keys)))))
            tensors |= self.outputs(tensors)
            heads = {}
            for head in recipe.heads:
                given, wanted = tensors[head.input].shape[1:], tensors[head.like].shape[1:]
                heads[head.name] = head.build(tuple(given), tuple(wanted))
            modules = nn.ModuleDict(heads).to(self._device)
            self._check_terms(recipe, {**tensors, **self._head_outputs(modules, tensors)})
        return modules

    def _check_terms(self, recipe: Recipe, tensors: Mapping[str, Any]) -> None:
        """Every term must take these tensors and give one number a row: said before training."""
        for term in recipe.terms:
            shapes = ", ".join(f"{n} {_shape(tensors.get(n))}" for n in term.inputs)
            try:
                losses = term(tensors)
            except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
                raise TrainingError(
                    f"student {self.student.name!r}: term {term!r} does not fit {shapes}: {error}"
                ) from error
            rows = len(tensors[term.inputs[0]])
            if losses.shape != (rows,):
                raise TrainingError(
                    f"student {self.student.name!r}: term {term!r} gave shape {tuple(losses.shape)} "
                    f"for {shapes}; a term gives one loss a row, ({rows},)"
                )

    def _placed(self, tensors: Tensors) -> Tensors:
        """The batch on the student's device; texts stay where they are."""
        if self._device.type == "cpu":
            return tensors
        return {n: t.to(self._device) if hasattr(t, "to") else t for n, t in tensors.items()}

    def outputs(self, tensors: Tensors) -> Tensors:
        """`student.NAME` for every layer, of one forward pass."""
        return self._outputs(self._taps, tensors)

    def _outputs(self, taps: LayerTaps, tensors: Tensors) -> Tensors:
        given = tuple(tensors[f"row.{name}"] for name in self.student.inputs)
        return {f"student.{n}": t for n, t in taps.run(given, {}).items()}

    def _head_outputs(self, heads: nn.ModuleDict, tensors: Mapping[str, Any]) -> Tensors:
        return {
            f"head.{h.name}": heads[h.name](tensors[h.input]) for h in self.student.recipe.heads
        }

    def epoch(self, number: int) -> float:
        """One pass over the rows; the mean loss. TrainingError when a loss is no number."""
        self.module.train()
        self.heads.train()
        total, rows = 0.0, 0
        for chosen, loaded in self._loader.epoch(number):
            tensors = self._placed(loaded)
            tensors |= self._outputs(self._learning, tensors)
            tensors |= self._head_outputs(self.heads, tensors)
            loss = self._loss(tensors)
            value = loss.item()
            if not math.isfinite(value):
                keys = [self._loader.keys[int(i)].as_py() for i in chosen]
                raise TrainingError(
                    f"student {self.student.name!r}, seed {self.student.seed}, epoch {number}: the "
                    f"loss became {value} on rows {listed(keys)}; lower the learning rate "
                    f"({self.student.fit.learning_rate:g}) or look at these rows"
                )
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            if self._schedule is not None:
                self._schedule.step()
            total, rows = total + value * len(chosen), rows + len(chosen)
        return total / rows

    def _loss(self, tensors: Tensors) -> torch.Tensor:
        """The weighted sum of the terms' means."""
        first, *others = (
            t(tensors).mean() if t.weight == 1 else t.weight * t(tensors).mean()
            for t in self.student.recipe.terms
        )
        return sum(others, start=first)

    def evaluate(self, loader: Loader, evaluation: Evaluation) -> dict[str, Any]:
        """Metrics on the held-out rows."""
        self.module.eval()
        collected: dict[str, list[Any]] = {}
        with torch.inference_mode():
            for loaded in loader.ordered():
                tensors = self._placed(loaded)
                for name, tensor in {**tensors, **self.outputs(tensors)}.items():
                    if isinstance(tensor, torch.Tensor):
                        collected.setdefault(name, []).append(tensor.cpu())
            return evaluation.measure({name: joined(t) for name, t in collected.items()})


def joined(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches after one another; those of ragged rows, each as wide as its longest row, get the width
    of the widest, filled with zeros as their rows are."""
    sizes = [max(size) for size in zip(*(batch.shape[1:] for batch in batches), strict=True)]
    return torch.cat([_filled(batch, sizes) for batch in batches])


def _filled(batch: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    lacking = [wide - has for wide, has in zip(sizes, batch.shape[1:], strict=True)]
    if not any(lacking):
        return batch
    # The last axis first, in front and behind.
    return torch.nn.functional.pad(batch, [n for lack in reversed(lacking) for n in (0, lack)])


def _shape(given: Any) -> str:
    """A tensor's shape, or what else it is, for messages."""
    return str(tuple(given.shape)) if hasattr(given, "shape") else type(given).__name__
