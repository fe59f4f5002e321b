"""What a student's epoch is compared with: a plain torch loop over tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import kl
from stillroom.stages.student import Student


class BareFitting:
    """The student's training as one would write it by hand, for the recipes kd and fitnet."""

    def __init__(
        self,
        student: Student,
        feature: str,
        image: torch.Tensor,
        teacher: Mapping[str, torch.Tensor],
    ) -> None:
        """The same seed and the same order of construction as in `Fitting`."""
        self._image, self._teacher, self._seed = image, teacher, student.seed
        self._batch_size = student.fit.batch_size
        torch.manual_seed(student.seed)
        module = student.build()
        assert isinstance(module, torch.nn.Sequential)
        cut = int(feature) + 1
        self._body, self._head = module[:cut], module[cut:]
        parameters = list(module.parameters())
        self._projector = None
        if student.recipe.heads:
            with torch.no_grad():
                given = self._body.eval()(image[:2]).shape[1:]
            wanted = teacher["feature"].shape[1:]
            self._projector = linear_projector(tuple(given), tuple(wanted))
            parameters += self._projector.parameters()
        module.train()
        fit = student.fit
        self._optimizer = torch.optim.AdamW(
            parameters, lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        steps = fit.epochs * -(-len(image) // fit.batch_size)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, fit.learning_rate, total_steps=steps
        )

    def epoch(self, number: int) -> float:
        """One pass in the loader's order; the mean loss."""
        order = np.random.default_rng([self._seed, number]).permutation(len(self._image))
        total, rows = 0.0, 0
        for chosen in torch.split(torch.from_numpy(order), self._batch_size):
            feature = self._body(self._image[chosen])
            logits = self._head(feature)
            loss = kl(logits, self._teacher["logits"][chosen], temperature=4.0).mean()
            if self._projector is not None:
                hint = squared_error(self._projector(feature), self._teacher["feature"][chosen])
                loss = hint.mean() + loss
            value = loss.item()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self._schedule.step()
            total, rows = total + value * len(chosen), rows + len(chosen)
        return total / rows
