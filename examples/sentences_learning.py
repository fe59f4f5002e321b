"""How the students learn and how they are measured: recipes and measures of one's own.

Every loss is a pure function of tensors of n rows that gives one loss a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillroom.stages.objectives.features import cosine_distance
from stillroom.stages.recipe import Recipe
from stillroom.stages.term import Term, term

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 10


def in_batch(summary: Tensor, details: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) among the batch: find your own details."""
    import torch
    from torch.nn import functional

    own = torch.arange(len(summary), device=summary.device)
    return functional.cross_entropy(summary @ details.T / temperature, own, reduction="none")


def similarities(
    summary: Tensor,
    details: Tensor,
    their_summary: Tensor,
    their_details: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """KL from the teacher's to the student's softmax over all details of the batch, for each summary."""
    theirs = (their_summary @ their_details.T / temperature).log_softmax(-1)
    mine = (summary @ details.T / temperature).log_softmax(-1)
    return (theirs.exp() * (theirs - mine)).sum(-1)


def _copied() -> tuple[Term, ...]:
    return tuple(
        term(cosine_distance, f"student.{name}", f"teacher.{name}")
        for name in ("summary", "details")
    )


def _paired(weight: float) -> Term:
    both = ("student.summary", "student.details")
    return term(in_batch, *both, weight=weight, temperature=0.05)


def _related(weight: float) -> Term:
    all_four = tuple(f"{who}.{n}" for who in ("student", "teacher") for n in ("summary", "details"))
    return term(similarities, *all_four, weight=weight, temperature=0.05)


RECIPES: Mapping[str, Recipe] = {
    "pairs": Recipe("pairs", (_paired(1.0),)),
    "cosine": Recipe("cosine", _copied()),
    "related": Recipe("related", (*_copied(), _related(0.3))),
    "all": Recipe("all", (*_copied(), _related(0.3), _paired(0.1))),
}
"""`pairs` reads no teacher: it learns from which paragraphs stand in one docstring."""


def compared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What the student's vectors are worth on rows that it did not train on.

    `cosine` to the teacher's vectors, where they have its size; `neighbour`: share of summaries
    whose nearest other summary by the teacher is among the student's ten nearest; `first` and
    `found`: see there.
    """
    mine, theirs = (
        [tensors[f"{who}.{name}"].float() for name in ("summary", "details")]
        for who in ("student", "teacher")
    )
    both = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.shape == b.shape]
    cosines = [1 - cosine_distance(a, b).mean().item() for a, b in both]
    nearest = _others(theirs[0]).argmax(-1, keepdim=True)
    ten = _others(mine[0]).topk(min(NEAR, len(nearest) - 1), -1).indices
    return {
        **({"cosine": sum(cosines) / 2} if cosines else {}),
        "neighbour": (ten == nearest).any(-1).double().mean().item(),
        **found(*mine),
    }


def found(summary: Tensor, details: Tensor) -> dict[str, float]:
    """Share of summaries whose own details come first, and among the first ten, of all details.

    Ties count against it.
    """
    scores = summary @ details.T
    before = (scores >= scores.diagonal()[:, None]).sum(-1) - 1
    return {
        "first": (before < 1).double().mean().item(),
        "found": (before < NEAR).double().mean().item(),
    }


def _others(vectors: Tensor) -> Tensor:
    return (vectors @ vectors.T).fill_diagonal_(-2.0)
