"""Soft Teacher: end-to-end semi-supervised detection (Xu et al. 2021, arXiv:2106.09018).

    L_sup + alpha (L_cls + L_reg), L_sup the same two losses on labelled rows and their true boxes
    L_cls = [sum over fg l_i + sum over bg r_j l_j] / max(N_fg + sum r_j, 1)
    L_reg = mean over fg of the L1 distance of boxes

The teacher is the moving average of the student and sees a weak view; its boxes are mapped into the
student's strong view by strong weak^-1. Those with a score above `score` make the foreground of L_cls;
r_j is the teacher's background score of candidate j, mapped the other way. L_reg takes boxes whose
uncertainty is below `uncertainty`: the mean deviation of their corners under jitter, over half the sum
of width and height (released code: each corner over its own side).

Offline the teacher changes by rounds (`train_rounds`, Fit(average=0.999)) and scores one fixed grid,
`table.candidates`; r_j is that of the grid's candidate which overlaps j most, 0 out of its sight. L_rpn
is left to students with proposals. The paper has four unlabelled rows for a labelled one, here there are
as many of both; each loss is a mean over its own. A candidate belongs to a box from `overlap` on.
Defaults: alpha 4, score 0.9, uncertainty 0.02, overlap 0.5, soft_background True, select_by_jitter True.

>>> import torch
>>> box = torch.tensor([[[0.0, 0.0, 2.0, 1.0]]])
>>> box_uncertainty(box, 0.3 * torch.ones(1, 1, 4)), box_uncertainty(5 * box, 1.5 * torch.ones(1, 1, 4))
(tensor([[0.2000]]), tensor([[0.2000]]))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom.stages.objectives.boxes import (
    assigned,
    between,
    candidate_boxes,
    candidate_classes,
    carried,
    first_of,
    mapped,
    sides,
    true_box_loss,
    true_class_loss,
)
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.proving.self_training import in_rounds, note_what_tells_overlap
from stillroom.stages.recipe import Recipe
from stillroom.stages.term import Term, term

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.proving.bench import Bench

SHAPES = {
    "student.scores": "float n candidates kinds",
    "student.boxes": "box n candidates 4",
    "table.candidates": "box candidates 4",
    "teacher.boxes.box": "box n most 4",
    "teacher.boxes.length": "int n below most",
    "teacher.boxes.label": "int n most below kinds",
    "teacher.boxes.score": "share n most",
    "teacher.boxes.jitter": "positive n most 4",
    "teacher.background": "share n candidates",
    "row.strong_view": "float n 3 3",
    "row.weak_view": "float n 3 3",
    "row.boxes": "box n objects 4",
    "row.count": "int n below objects",
    "row.classes": "int n objects below kinds",
}
"""`kinds`: classes and, last, the background; views map a row's own places to theirs."""


def recipe(
    *,
    alpha: float = 4.0,
    score: float = 0.9,
    uncertainty: float = 0.02,
    overlap: float = 0.5,
    soft_background: bool = True,
    select_by_jitter: bool = True,
) -> Recipe:
    """True boxes on the stream `labelled`, the teacher's on the student's own rows."""
    if not (alpha > 0 and uncertainty > 0 and 0 <= score < 1 and 0 < overlap <= 1):
        raise ValueError(
            "soft-teacher: alpha and uncertainty must be above 0, score in [0, 1), overlap in (0, 1]; "
            f"found {alpha}, {uncertainty}, {score}, {overlap}"
        )
    boxes = ("teacher.boxes.box", "teacher.boxes.length", "row.strong_view", "row.weak_view")
    names = ("table.candidates", "batch.main", *boxes)
    soft = ("teacher.background",) if soft_background else ()
    said = ("teacher.boxes.label", "teacher.boxes.score", *soft)
    sure = f"teacher.boxes.{'jitter' if select_by_jitter else 'score'}"
    by: dict[str, Any] = {"below": uncertainty} if select_by_jitter else {"above": score}
    on: dict[str, Any] = {"weight": alpha, "overlap": overlap}
    return _made(
        "soft-teacher",
        *supervised(overlap),
        term(class_loss, "student.scores", *names, *said, above=score, **on),
        term(box_loss, "student.boxes", *names, sure, **by, **on),
    )


def supervised(overlap: float = 0.5, rows: str = "batch.labelled") -> tuple[Term, Term]:
    """L_sup: true boxes, in the student's view."""
    names = ("table.candidates", rows, "row.boxes", "row.count", "row.strong_view")
    return (
        term(true_class_loss, "student.scores", *names, "row.classes", overlap=overlap),
        term(true_box_loss, "student.boxes", *names, overlap=overlap),
    )


def _made(name: str, *terms: Term) -> Recipe:
    shapes = {n: said for n, said in SHAPES.items() if any(n in one.names for one in terms)}
    return Recipe(name, terms, paper="arXiv:2106.09018", family="detection", shapes=shapes)


def class_loss(
    scores: Tensor,
    candidates: Tensor,
    rows: Tensor,
    boxes: Tensor,
    length: Tensor,
    strong: Tensor,
    weak: Tensor,
    label: Tensor,
    score: Tensor,
    background: Tensor | None = None,
    *,
    overlap: float,
    above: float,
) -> Tensor:
    """L_cls: () nats, 0 where no row is marked.

    Args:
        scores, candidates, rows: as of `true_class_loss`.
        boxes: (n, m, 2 d), of which the first `length` (n,) are there; in the weak view.
        strong, weak: (n, d + 1, d + 1) maps from the row's own places to the student's and that view.
        label, score: (n, m) of the boxes; those whose score is higher than `above` are taken.
        background: (n, candidates) r of the same grid in the weak view. None: 1 everywhere.
    """
    there, seen = first_of(length, boxes) & (score > above), mapped(boxes, between(weak, strong))
    front, label = assigned(candidates, seen, there, label, overlap=overlap)
    weight = rows[:, None].expand_as(front)
    if background is not None:
        r = carried(background, candidates, between(strong, weak))
        weight = weight * r.masked_fill(front, 1)
    return candidate_classes(scores, front, label, weight)


def box_loss(
    refined: Tensor,
    candidates: Tensor,
    rows: Tensor,
    boxes: Tensor,
    length: Tensor,
    strong: Tensor,
    weak: Tensor,
    sure: Tensor,
    *,
    overlap: float,
    below: float | None = None,
    above: float = 0.0,
) -> Tensor:
    """L_reg: () mean L1 distance in sides of the candidate, 0 without foreground.

    `refined` (n, candidates, 2 d) are the student's boxes. `sure` decides which of the teacher's count:
    deviations (n, m, 2 d), uncertainty below `below`; or scores (n, m), above `above`.
    """
    trusted = sure > above if below is None else box_uncertainty(boxes, sure) < below
    there, seen = first_of(length, boxes) & trusted, mapped(boxes, between(weak, strong))
    front, wanted = assigned(candidates, seen, there, seen, overlap=overlap)
    return candidate_boxes(refined, candidates, wanted, front & rows[:, None])


def box_uncertainty(boxes: Tensor, deviation: Tensor) -> Tensor:
    """(n, m) mean deviation of the corners, (n, m, 2 d), over the mean side: blind to scale."""
    return deviation.mean(-1) / sides(boxes).mean(-1).clamp_min(1e-12)


def _prove(bench: Bench) -> None:
    arms = {
        "supervised": _made("supervised", *supervised()),
        "hard": recipe(soft_background=False, select_by_jitter=False),
        "soft background": recipe(select_by_jitter=False),
        "soft teacher": recipe(),
    }
    rounds = in_rounds(bench, _made("burn-in", *supervised(rows="batch.main")), arms)
    note_what_tells_overlap(bench, rounds["soft teacher"][0])


PROOF = Proof(
    _prove,
    data="generated signals of 128 points with 1 to 3 pulses of 2 classes; detector of 64 candidates; "
    "20 signals with boxes, 300 without, 3 rounds; average precision at .5 and .75 on 200 signals",
    claims=(
        Claim("soft teacher", "supervised", "ap50", says="unlabelled signals help to find"),
        Claim("soft teacher", "supervised", "ap75", says="and to place"),
        Claim("soft background", "hard", "ap50", says="weights forgive what the teacher missed"),
        Claim("soft teacher", "soft background", "ap75", says="steady boxes place better"),
        Claim("jitter", "score", "correlation", says="steadiness tells overlap better than score"),
    ),
    tried="set by labels alone; seed 0 seen in 3 set-ups (less burn-in, more noise): all below labels",
)
