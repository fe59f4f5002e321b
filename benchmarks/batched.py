"""What a group is compared with: many students of one architecture as one module, by torch.func."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import kl
from stillroom.stages.student import Student


class BatchedFitting:
    """Stacked parameters, one AdamW over the stack, for the recipes kd and fitnet on two-layer nets."""

    def __init__(self, students: Sequence[Student], wanted: tuple[int, ...]) -> None:
        """`wanted` is the shape of a row of the teacher's feature."""
        modules = []
        for student in students:
            torch.manual_seed(student.seed)
            module = student.build()
            assert isinstance(module, nn.Sequential)
            cut = int(student.layers["feature"]) + 1
            parts = {"body": module[:cut], "head": module[cut:]}
            if student.recipe.heads:
                last = next(p for p in reversed(list(module[:cut].parameters())) if p.ndim == 1)
                parts["projector"] = linear_projector((len(last),), tuple(wanted))
            modules.append(_Parts(parts))
        parameters, _ = torch.func.stack_module_state(list(modules))
        self._shape = modules[0]
        self._parameters = {n: p.detach().requires_grad_() for n, p in parameters.items()}
        fit = students[0].fit
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        self._losses = torch.func.vmap(self._loss, in_dims=(0, None))

    @staticmethod
    def takes(students: Sequence[Student]) -> bool:
        """Whether these can be batched so: batch norm keeps buffers, which this does not carry."""
        return not any(True for _ in students[0].build().buffers())

    def take(self, loaded: Mapping[str, Any]) -> list[float]:
        """One step of all; their losses."""
        losses = self._losses(self._parameters, dict(loaded))
        found: list[float] = losses.tolist()  # every student's loss is looked at, as in a group
        self._optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self._optimizer.step()
        return found

    def _loss(self, parameters: dict[str, Tensor], loaded: dict[str, Tensor]) -> Tensor:
        image = loaded["row.image"]
        _, logits, hint = torch.func.functional_call(self._shape, parameters, (image,))
        loss = kl(logits, loaded["teacher.logits"], temperature=4.0).mean()
        if hint is not None:
            loss = loss + squared_error(hint, loaded["teacher.feature"]).mean()
        return loss


class _Parts(nn.Module):
    """A student and its projector as one module."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.body, self.head = parts["body"], parts["head"]
        self.projector = parts.get("projector")

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        feature = self.body(image)
        hint = None if self.projector is None else self.projector(feature)
        return feature, self.head(feature), hint
