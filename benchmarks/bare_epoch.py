"""What a student's epoch is compared with: a plain torch loop over tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import kl
from stillroom.stages.student import Student

Losses = Callable[[torch.Tensor], torch.Tensor]
"""Places of a batch's rows -> the batch's loss."""


class BareFitting:
    """The student's training as one would write it by hand."""

    def __init__(
        self, student: Student, rows: int, parameters: list[torch.nn.Parameter], loss: Losses
    ) -> None:
        """AdamW and one cycle, as `Fit` has them if nothing else is said."""
        self._rows, self._seed, self._loss = rows, student.seed, loss
        fit = student.fit
        self._batch_size = fit.batch_size
        self._optimizer = torch.optim.AdamW(
            parameters, lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        steps = fit.epochs * -(-rows // fit.batch_size)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, fit.learning_rate, total_steps=steps
        )

    def epoch(self, number: int) -> float:
        """One pass in the loader's order; the mean loss."""
        order = np.random.default_rng([self._seed, number]).permutation(self._rows)
        total, rows = 0.0, 0
        for chosen in torch.split(torch.from_numpy(order), self._batch_size):
            loss = self._loss(chosen)
            value = loss.item()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self._schedule.step()
            total, rows = total + value * len(chosen), rows + len(chosen)
        return total / rows


def bare_images(
    student: Student, feature: str, image: torch.Tensor, teacher: Mapping[str, torch.Tensor]
) -> BareFitting:
    """For the recipes kd and fitnet: the same seed and the same order of construction as `Fitting`."""
    torch.manual_seed(student.seed)
    module = student.build()
    assert isinstance(module, torch.nn.Sequential)
    cut = int(feature) + 1
    body, head = module[:cut], module[cut:]
    parameters = list(module.parameters())
    projector = None
    if student.recipe.heads:
        with torch.no_grad():
            given = body.eval()(image[:2]).shape[1:]
        wanted = teacher["feature"].shape[1:]
        projector = linear_projector(tuple(given), tuple(wanted))
        parameters += projector.parameters()
    module.train()

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        inner = body(image[chosen])
        logits = head(inner)
        found = kl(logits, teacher["logits"][chosen], temperature=4.0).mean()
        if projector is not None:
            hint = squared_error(projector(inner), teacher["feature"][chosen])
            found = hint.mean() + found
        return found

    return BareFitting(student, len(image), parameters, loss)


def bare_tokens(
    student: Student,
    token: torch.Tensor,
    padded: Mapping[str, torch.Tensor],
    length: torch.Tensor,
    losses: Callable[..., Any],
) -> BareFitting:
    """For a teacher's top classes of every token, `padded` to the longest row; each batch is cut to the
    longest of its own."""
    torch.manual_seed(student.seed)
    module = student.build().train()

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        lengths = length[chosen]
        longest = int(lengths.max())
        parts = (tensor[chosen][:, :longest] for tensor in padded.values())
        found: torch.Tensor = losses(module(token[chosen]), *parts, lengths).mean()
        return found

    return BareFitting(student, len(token), list(module.parameters()), loss)
