"""Whether two losses pull shared layers the same way, measured while a student trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stillroom.stages.parts import Controller
from stillroom.stages.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.learning import Learning


def watched(recipe: Recipe) -> Recipe:
    """A recipe of at least two terms that trains as before, and keeps `state.cosine`: between the
    gradient of its first term and that of the others on the student's module (heads not counted), the
    mean over all steps so far. It is the record's `state`.

    ValueError for a recipe that has a step or a controller of its own, or a single term.
    """
    if recipe.step is not None or recipe.controller is not None or len(recipe.terms) < 2:
        raise ValueError(
            f"recipe {recipe.name!r} cannot be watched: it needs two terms, and no step or controller"
        )
    return replace(recipe, step=_step, controller=Controller(_none_yet, _as_it_is))


def _none_yet() -> dict[str, float]:
    return {"cosine": 0.0}


def _as_it_is(state: Mapping[str, Any], seen: Any) -> dict[str, float]:
    return {}


def _step(learning: Learning) -> Tensor:
    import torch

    tensors = learning.complete()
    first, *others = (
        one.weighted(one.mean(tensors), tensors) for one in learning.student.recipe.terms
    )
    rest = torch.stack(others).sum()
    shared = [p for p in learning.module.parameters() if p.requires_grad]
    flat = []
    for part in (first, rest):
        grads = torch.autograd.grad(part, shared, retain_graph=True, materialize_grads=True)
        flat.append(torch.cat([grad.reshape(-1) for grad in grads]))
    cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)
    learning.state["cosine"].lerp_(cosine.double(), 1 / (learning.steps_made + 1))
    loss = first + rest
    learning.descend(loss)
    return loss
