"""Boxes: overlap, maps between views, and losses of candidates.

A box of d axes is 2 d numbers, its lower corner and then its upper: (x0, x1) of an interval,
(x0, y0, x1, y1) of a rectangle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.stages.objectives.logits import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


def sides(boxes: Tensor) -> Tensor:
    """(..., d) lengths of (..., 2 d) boxes."""
    axes = boxes.shape[-1] // 2
    return boxes[..., axes:] - boxes[..., :axes]


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box with every other: (..., m, 2 d), (..., k, 2 d) -> (..., m, k).

    0 where they do not meet, also of boxes without a volume.

    >>> import torch
    >>> iou(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0], [0.0, 2.0], [5.0, 6.0]]))
    tensor([[0.3333, 1.0000, 0.0000]])
    """
    axes = first.shape[-1] // 2
    one, other = first[..., :, None, :], second[..., None, :, :]
    low = one[..., :axes].maximum(other[..., :axes])
    high = one[..., axes:].minimum(other[..., axes:])
    common = (high - low).clamp_min(0).prod(-1)
    volumes = [sides(boxes).clamp_min(0).prod(-1) for boxes in (one, other)]
    return common / (volumes[0] + volumes[1] - common).clamp_min(1e-12)


def first_of(length: Tensor, boxes: Tensor) -> Tensor:
    """(n, m) bool: the first `length` (n,) of each row's (n, m, ...) boxes; the others fill it up."""
    return length.new_tensor(range(boxes.shape[1])) < length[:, None]


def between(given: Tensor, wanted: Tensor) -> Tensor:
    """(n, d + 1, d + 1) the map from one view of a row to another: wanted given^-1. No gradient."""
    return wanted.detach() @ given.detach().inverse()


def mapped(boxes: Tensor, view: Tensor) -> Tensor:
    """The boxes around what boxes become under an affine map: exact where axes stay axes.

    Args:
        boxes: (n, m, 2 d).
        view: (n, d + 1, d + 1) maps of a point (x, y, 1), the last row (0, ..., 0, 1).

    Returns:
        (n, m, 2 d), upper corners above lower ones also after a flip.

    >>> import torch
    >>> mapped(torch.tensor([[[0.1, 0.3]]]), torch.tensor([[[-1.0, 1.0], [0.0, 1.0]]]))
    tensor([[[0.7000, 0.9000]]])
    """
    import torch

    axes = boxes.shape[-1] // 2
    turn, move = view[:, :axes, :axes], view[:, None, :axes, axes]
    middle, half = (boxes[..., :axes] + boxes[..., axes:]) / 2, sides(boxes) / 2
    middle, half = middle @ turn.mT + move, half @ turn.abs().mT
    return torch.cat([middle - half, middle + half], -1)


def assigned(
    candidates: Tensor, boxes: Tensor, counts: Tensor, values: Tensor, *, overlap: float
) -> tuple[Tensor, Tensor]:
    """What belongs to each candidate: that of the box which it overlaps most, by `overlap` or more.

    Args:
        candidates: (candidates, 2 d), the same in every row, or (n, candidates, 2 d).
        boxes: (n, m, 2 d).
        counts: (n, m) bool, which of them there are.
        values: (n, m, ...) of the boxes: classes, or the boxes themselves.
        overlap: intersection over union.

    Returns:
        (n, candidates) bool, the foreground; (n, candidates, ...) values, of no meaning elsewhere.
    """
    n, many = len(boxes), candidates.shape[-2]
    if boxes.shape[1] == 0:
        return counts.new_zeros(n, many), values.new_zeros(n, many, *values.shape[2:])
    overlaps = iou(candidates, boxes).masked_fill(~counts[:, None], -1)
    most, which = overlaps.max(-1)
    rows = which.new_tensor(range(n))[:, None]
    return most >= overlap, values[rows, which]


def carried(values: Tensor, grid: Tensor, view: Tensor) -> Tensor:
    """What values of a grid's boxes are for the same grid seen from elsewhere.

    Args:
        values: (n, m) of the grid's boxes, such as scores; no gradient reaches them.
        grid: (m, 2 d).
        view: (n, d + 1, d + 1) map from elsewhere to where the values are.

    Returns:
        (n, m) for every box from elsewhere the value of that which it overlaps most, 0 where it meets none.
    """
    there = mapped(grid.expand(len(view), -1, -1), view)
    overlaps, which = iou(there, grid).max(-1)
    return values.detach().gather(1, which) * (overlaps > 0)


def candidate_classes(scores: Tensor, front: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight * cross-entropy over all candidates / max(sum of weights, 1).

    Args:
        scores: (n, candidates, classes + 1) logits, the background last.
        front: (n, candidates) bool, the foreground.
        label: (n, candidates) class of each in the foreground.
        weight: (n, candidates), not negative.

    Returns:
        () loss in nats: with weights of 1 the mean cross-entropy, 0 where all weights are.
    """
    target = label.long().masked_fill(~front, scores.shape[-1] - 1)
    losses = cross_entropy(scores.flatten(0, 1), target.flatten()).view_as(target)
    weight = weight.detach()
    return (weight * losses).sum() / weight.sum().clamp_min(1)


def candidate_boxes(boxes: Tensor, candidates: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """Mean over marked candidates and corners of |box - wanted| / side of the candidate.

    Args:
        boxes: (n, candidates, 2 d), as the student moved the candidates.
        candidates: (candidates, 2 d) or (n, candidates, 2 d).
        wanted: (n, candidates, 2 d); detached here.
        counts: (n, candidates) bool, the foreground.

    Returns:
        () loss, the same whatever the scale of all boxes; 0 where nothing is marked.
    """
    import torch

    size = sides(candidates.detach()).clamp_min(1e-6)
    apart = ((boxes - wanted.detach()).abs() / torch.cat([size, size], -1)).mean(-1)
    marked = apart.masked_fill(~counts, 0)
    return marked.sum() / counts.sum().clamp_min(1)


def true_class_loss(
    scores: Tensor,
    candidates: Tensor,
    rows: Tensor,
    boxes: Tensor,
    length: Tensor,
    view: Tensor,
    label: Tensor,
    *,
    overlap: float,
) -> Tensor:
    """() mean cross-entropy of the marked rows' candidates against true boxes.

    Args:
        scores: (n, candidates, classes + 1) logits, the background last.
        candidates: (candidates, 2 d).
        rows: (n,) bool, the rows that count.
        boxes: (n, m, 2 d), of which the first `length` (n,) are there, where the row has them.
        view: (n, d + 1, d + 1) map from the row's own places to what the student sees.
        label: (n, m) class of each box.
        overlap: from which a candidate belongs to a box.
    """
    there, seen = first_of(length, boxes), mapped(boxes, view)
    front, label = assigned(candidates, seen, there, label, overlap=overlap)
    return candidate_classes(scores, front, label, rows[:, None].expand_as(front))


def true_box_loss(
    refined: Tensor,
    candidates: Tensor,
    rows: Tensor,
    boxes: Tensor,
    length: Tensor,
    view: Tensor,
    *,
    overlap: float,
) -> Tensor:
    """() mean distance of the marked rows' foreground from true boxes; `refined` (n, candidates, 2 d) are
    the student's boxes, others as of `true_class_loss`."""
    there, seen = first_of(length, boxes), mapped(boxes, view)
    front, wanted = assigned(candidates, seen, there, seen, overlap=overlap)
    return candidate_boxes(refined, candidates, wanted, front & rows[:, None])
