"""Learning: what an update of a student has in hand; recipes with a step of their own are given it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.stages.fit import Fit
from stillroom.stages.loading import Tensors
from stillroom.stages.parts import Head, Seen
from stillroom.stages.student import Student
from stillroom.stages.teachers.layers import LayerTaps


class Learning:
    """A student's module and heads, their optimiser, and the batch of now.

    A recipe's `step(learning)` returns its loss. What most need is `learning.loss(learning.complete())`
    and `learning.descend(loss)`; a step that looks ahead gives `outputs` other parameters.
    """

    def __init__(
        self,
        student: Student,
        module: nn.Module,
        device: torch.device,
        tables: Mapping[str, Tensor],
    ) -> None:
        """Heads and optimiser come with `prepare`."""
        self.student, self.module, self.device = student, module, device
        self.heads = nn.ModuleDict()
        self.tables = {f"table.{name}": table.to(device) for name, table in tables.items()}
        self.state: dict[str, Any] = {}
        """`state.NAME` of the recipe's controller, as 0-d float64 tensors or larger ones."""
        self.own: dict[str, Any] = {}
        """What the recipe's step keeps from call to call; see `keep`."""
        self._kept: dict[str, Any] = {}
        self.tensors: Tensors = {}
        """The batch: rows, cached signals, tables, marks of streams, state; not yet any output."""
        self.steps_made, self.steps = 0, 0
        needed = {name: student.layers[name] for name in student.recipe.outputs}
        owner = f"student {student.name!r}"
        backend = student.fit.compiled
        compiled = partial(torch.compile, backend=backend) if backend else None
        self._tapped = _Tapped(module, LayerTaps(module, needed, owner, compiled))
        self._wants_main = any(
            n.startswith("student.") and "@" not in n for n in student.recipe.names
        )

    def prepare(self, tensors: Tensors, steps: int, descents: int) -> None:
        """Build the heads from the shapes of a first batch, and the optimiser over everything.

        `steps` batches in the whole training, and so many steps of the optimiser.
        """
        recipe = self.student.recipe
        self.module.eval()
        self.steps = steps
        if recipe.controller is not None:
            start = {**recipe.controller.start(**recipe.controller.settings)}
            if unknown := sorted(self.student.start_state.keys() - start.keys()):
                raise ValueError(
                    f"student {self.student.name!r}: start_state names {unknown[0]!r}, which recipe "
                    f"{recipe.name!r} does not keep; it keeps {', '.join(start)}"
                )
            start |= self.student.start_state
            self.state = {name: self._number(value) for name, value in start.items()}
        with torch.no_grad():
            tensors = self.given(tensors)
            tensors |= self.outputs(tensors)
            built = {head.name: head.built(tensors) for head in recipe.heads}
        self.heads = nn.ModuleDict(built).to(self.device)
        together = [self.heads[head.name] for head in recipe.heads if not head.own_step]
        self.parameters = [
            p for part in (self.module, *together) for p in part.parameters() if p.requires_grad
        ]
        fit = self.student.fit
        self.optimizer = _optimizer(fit, self.parameters)
        self.schedule = None if self.optimizer is None else _schedule(fit, self.optimizer, descents)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=fit.precision == "float16" and self.optimizer is not None
        )
        self._waiting = 0
        self.average: dict[str, Tensor] = {}
        if fit.average:
            self.average = {n: t.detach().clone() for n, t in self.module.state_dict().items()}

    def given(self, loaded: Tensors) -> Tensors:
        """A loaded batch on the student's device, with tables and state."""
        placed = dict(loaded)
        if self.device.type != "cpu":  # texts stay where they are
            placed = {n: t.to(self.device) if hasattr(t, "to") else t for n, t in loaded.items()}
        placed |= self.tables
        placed["batch.progress"] = torch.tensor(self.steps_made / max(self.steps, 1))
        return placed | {f"state.{name}": value for name, value in self.state.items()}

    def outputs(self, tensors: Tensors, parameters: Mapping[str, Tensor] | None = None) -> Tensors:
        """`student.NAME` of the student's own inputs, `student.NAME@PASS` of every further pass.

        `parameters` by name take the place of the module's own, with their gradients.
        """
        made: Tensors = {}
        if self._wants_main:
            inputs = tuple(tensors[f"row.{name}"] for name in self.student.inputs)
            made |= self._run(inputs, parameters, "")
        for name, given in self.student.recipe.passes.items():
            made |= self._run(tuple(tensors[n] for n in given), parameters, f"@{name}")
        return made

    def _run(
        self, inputs: tuple[Any, ...], parameters: Mapping[str, Tensor] | None, suffix: str
    ) -> Tensors:
        if parameters is None:
            found = self._tapped.taps.run(inputs, {})
        else:
            instead = {f"module.{name}": value for name, value in parameters.items()}
            found = torch.func.functional_call(self._tapped, instead, inputs)
        return {f"student.{name}{suffix}": value for name, value in found.items()}

    def complete(
        self, tensors: Tensors | None = None, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensors:
        """The batch (that of now, if none is given) with the student's outputs and the heads'."""
        tensors = self.tensors if tensors is None else tensors
        tensors = tensors | self.outputs(tensors, parameters)
        return tensors | self.head_outputs(tensors)

    def head_outputs(self, tensors: Tensors) -> Tensors:
        """`head.NAME` of every head that the recipe's step does not apply itself."""
        applied = (head for head in self.student.recipe.heads if not head.own_step)
        return {f"head.{head.name}": self.apply(head, tensors) for head in applied}

    def apply(self, head: Head, tensors: Mapping[str, Any]) -> Tensor:
        """One head over its inputs."""
        made: Tensor = self.heads[head.name](*(tensors[name] for name in head.inputs))
        return made

    def means(self, tensors: Tensors) -> list[Tensor]:
        """(): each term's mean, not weighted."""
        return [term.mean(tensors) for term in self.student.recipe.terms]

    def loss(self, tensors: Tensors, means: list[Tensor] | None = None) -> Tensor:
        """(): the weighted sum of the terms' means."""
        terms = self.student.recipe.terms
        means = self.means(tensors) if means is None else means
        first, *others = (t.weighted(m, tensors) for t, m in zip(terms, means, strict=True))
        return sum(others, start=first)

    def of_stream(self, stream: str) -> Tensors:
        """The batch's rows of one stream, such as "main", and the tables: `outputs` of them alone."""
        marked, rows = self.tensors[f"batch.{stream}"], ("row.", "teacher.")
        chosen = {n: t[marked] for n, t in self.tensors.items() if n.startswith(rows)}
        return chosen | self.tables

    def ahead(self, loss: Tensor, rate: float) -> dict[str, Tensor]:
        """The module's parameters after one plain step down the loss, still a function of all that
        decides it: `outputs(tensors, ahead)` is what the student would answer then."""
        mine = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(mine.values()), create_graph=True)
        return {n: p - rate * g for (n, p), g in zip(mine.items(), found, strict=True)}

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which the student runs."""
        precision = self.student.fit.precision
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, precision))

    @property
    def rate(self) -> float:
        """The learning rate of the step to come; NaN without an optimiser."""
        return math.nan if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])

    def descend(self, loss: Tensor) -> None:
        """Down the loss: one step of the optimiser and of its schedule.

        With `Fit(accumulate=k)` only every k-th call steps, with the mean of their gradients.
        """
        if self.optimizer is None:
            return
        if not self._waiting:
            self.optimizer.zero_grad(set_to_none=True)
        accumulate = self.student.fit.accumulate
        self.scaler.scale(loss if accumulate == 1 else loss / accumulate).backward()
        self._waiting += 1
        if self._waiting == accumulate:
            self.flush()

    def flush(self) -> None:
        """Step with the gradients that wait, at the end of an epoch."""
        if self.optimizer is None or not self._waiting:
            return
        self.scaler.unscale_(self.optimizer)
        if (short := self.student.fit.accumulate / self._waiting) != 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(short)
        self._waiting = 0
        if self.student.fit.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.student.fit.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.schedule is not None:
            self.schedule.step()

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What the recipe's step made once and needs again: an optimiser of its own, a queue.

        A thing with `state_dict`, or plain numbers and tensors: it goes into checkpoints.
        """
        if name not in self.own:
            self.own[name] = make()
            if name in self._kept:
                stored = self._kept.pop(name)
                if hasattr(self.own[name], "load_state_dict"):
                    self.own[name].load_state_dict(stored)
                else:
                    self.own[name] = stored
        return self.own[name]

    def state_dict(self) -> dict[str, Any]:
        """Everything that goes on changing, for `stages.checkpoint`."""
        stateful = (self.module, self.heads, self.optimizer, self.schedule, self.scaler)
        own = {
            n: kept.state_dict() if hasattr(kept, "state_dict") else kept
            for n, kept in self.own.items()
        }
        cuda = self.device.type == "cuda"
        return {
            "parts": [None if part is None else part.state_dict() for part in stateful],
            "average": self.average,
            "state": self.state,
            "own": self._kept | own,
            "steps": self.steps_made,
            "random": torch.get_rng_state(),
            "random on GPU": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        stateful = (self.module, self.heads, self.optimizer, self.schedule, self.scaler)
        for part, stored in zip(stateful, state["parts"], strict=True):
            if part is not None:
                part.load_state_dict(stored)
        self.average = {n: t.to(self.device) for n, t in state["average"].items()}
        self.state = {n: t.to(self.device) for n, t in state["state"].items()}
        self._kept, self.steps_made = dict(state["own"]), state["steps"]
        torch.set_rng_state(state["random"])
        if state["random on GPU"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random on GPU"], self.device)

    def finish_step(self, tensors: Tensors, means: list[Tensor]) -> None:
        """After an update: the controller sees it, and the moving average moves."""
        self.steps_made += 1
        recipe = self.student.recipe
        if recipe.controller is not None:
            losses = {t.label: m.detach() for t, m in zip(recipe.terms, means, strict=False)}
            seen = Seen(losses, tensors, self.steps_made, self.steps)
            with torch.no_grad():
                changed = recipe.controller.update(
                    dict(self.state), seen, **recipe.controller.settings
                )
            self.state |= {name: self._number(value) for name, value in changed.items()}
        if self.average:
            decay = self.student.fit.average
            for name, tensor in self.module.state_dict().items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - decay)
                else:
                    self.average[name].copy_(tensor)

    def _number(self, value: Any) -> Tensor:
        if isinstance(value, list):
            return torch.tensor(value, device=self.device)
        if isinstance(value, Tensor) and value.ndim:
            return value.detach().to(self.device)
        # 0-d float64 keeps every digit of a schedule and widens no float32 that it meets.
        return torch.tensor(float(value), dtype=torch.float64, device=self.device)


class _Tapped(nn.Module):
    """A module as its layers' outputs, so that torch.func can give it other parameters."""

    def __init__(self, module: nn.Module, taps: LayerTaps) -> None:
        super().__init__()
        self.module, self.taps = module, taps

    def forward(self, *inputs: Any) -> dict[str, Any]:
        return self.taps.run(inputs, {})


def _optimizer(fit: Fit, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    """None where there is nothing to optimise: students that are computed in closed form."""
    if not parameters:
        return None
    rate: dict[str, Any] = {"lr": fit.learning_rate, "weight_decay": fit.weight_decay}
    if fit.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=fit.momentum, **rate)
    kind = torch.optim.AdamW if fit.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **rate)


def _schedule(fit: Fit, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    if fit.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.learning_rate, total_steps=steps)
    if fit.schedule == "constant" and not fit.warmup:
        return None
    return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_share, fit, steps))


def _share(fit: Fit, steps: int, step: int) -> float:
    """The share of the rate in a step: up in a line, then as it is or down half a cosine."""
    if step < fit.warmup:
        return (step + 1) / (fit.warmup + 1)
    if fit.schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (step - fit.warmup) / max(steps - fit.warmup, 1))
