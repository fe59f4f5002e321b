"""Soft Teacher: exact properties of weights, uncertainty and views; the detector, its teacher, rounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stillroom.stages import recipes
from stillroom.stages.objectives.boxes import (
    assigned,
    between,
    candidate_boxes,
    candidate_classes,
    carried,
    iou,
    mapped,
    true_class_loss,
)
from stillroom.stages.recipes.soft_teacher import box_loss, box_uncertainty, class_loss

N, A, M, CLASSES = 3, 6, 2, 4


def seeds(test: Callable[[int], None]) -> Callable[[], None]:
    """Run for drawn seeds; how long a case takes is not what is tested."""
    return settings(deadline=None, max_examples=25)(given(st.integers(0, 2**31))(test))


def drawn(seed: int) -> dict[str, Tensor]:
    """Random arguments of the losses, for rectangles, in float64."""
    made = torch.Generator().manual_seed(seed)
    rand = partial(torch.rand, generator=made, dtype=torch.float64)

    def boxes(*shape: int) -> Tensor:
        low = 0.6 * rand(*shape, 2)
        return torch.cat([low, low + 0.1 + 0.3 * rand(*shape, 2)], -1)

    return {
        "scores": 3 * torch.randn(N, A, CLASSES + 1, generator=made, dtype=torch.float64),
        "refined": boxes(N, A),
        "candidates": boxes(A),
        "boxes": boxes(N, M),
        "length": torch.randint(M + 1, (N,), generator=made),
        "label": torch.randint(CLASSES, (N, M), generator=made),
        "score": rand(N, M),
        "background": rand(N, A),
        "strong": views(made),
        "weak": views(made),
    }


def views(made: torch.Generator) -> Tensor:
    """(N, 3, 3) zooms, moves and flips."""
    view = torch.eye(3, dtype=torch.float64).repeat(N, 1, 1)
    sign = torch.randint(2, (N, 2), generator=made) * 2.0 - 1
    view[:, [0, 1], [0, 1]] = sign * (0.5 + torch.rand(N, 2, generator=made, dtype=torch.float64))
    view[:, :2, 2] = torch.randn(N, 2, generator=made, dtype=torch.float64)
    return view


EVERY = torch.ones(N, dtype=torch.bool)
SAME = torch.eye(3, dtype=torch.float64).repeat(N, 1, 1)


def classes_of(of: dict[str, Tensor], *background: Tensor, **changed: Any) -> Tensor:
    given = {**of, "above": 0.5, "overlap": 0.3, "rows": EVERY, **changed}
    names = ("scores", "candidates", "rows", "boxes", "length", "strong", "weak", "label", "score")
    settings = {name: given[name] for name in ("above", "overlap")}
    return class_loss(*(given[name] for name in names), *background, **settings)


@seeds
def test_background_weights_of_one_are_the_ordinary_mean_cross_entropy(seed: int) -> None:
    of = drawn(seed) | {"weak": SAME, "strong": SAME}
    plain = classes_of(of)
    torch.testing.assert_close(classes_of(of, torch.ones(N, A, dtype=torch.float64)), plain)
    there = (torch.arange(M) < of["length"][:, None]) & (of["score"] > 0.5)
    target = torch.full((N, A), CLASSES)
    for row in range(N):
        for one in range(A):
            overlaps = iou(of["candidates"][one : one + 1], of["boxes"][row])[0]
            overlaps = overlaps.masked_fill(~there[row], -1)
            if overlaps.max() >= 0.3:
                target[row, one] = of["label"][row, overlaps.argmax()]
    wanted = F.cross_entropy(of["scores"].flatten(0, 1), target.flatten())
    torch.testing.assert_close(plain, wanted)


@seeds
def test_what_the_teacher_doubts_to_be_background_counts_less(seed: int) -> None:
    of = drawn(seed) | {"weak": SAME, "strong": SAME, "length": torch.zeros(N, dtype=torch.long)}
    losses = -of["scores"].log_softmax(-1)[..., -1]
    r = of["background"]
    found = classes_of(of, r)
    torch.testing.assert_close(found, (r * losses).sum() / r.sum().clamp_min(1))
    assert classes_of(of, torch.zeros_like(r)) == 0


@seeds
def test_only_marked_rows_count(seed: int) -> None:
    of = drawn(seed)
    rows = torch.tensor([True, False, True])
    part = {name: held if name == "candidates" else held[rows] for name, held in of.items()}
    inside = classes_of(part, part["background"], rows=EVERY[:2])
    torch.testing.assert_close(classes_of(of, of["background"], rows=rows), inside)
    assert classes_of(of, rows=~EVERY) == 0
    true = true_class_loss(
        *(
            of["scores"],
            of["candidates"],
            ~EVERY,
            of["boxes"],
            of["length"],
            of["strong"],
            of["label"],
        ),
        overlap=0.5,
    )
    assert true == 0


@seeds
def test_a_view_and_its_inverse_are_the_identity_and_the_way_there_is_one_map(seed: int) -> None:
    of = drawn(seed)
    boxes, strong, weak = of["boxes"], of["strong"], of["weak"]
    torch.testing.assert_close(mapped(mapped(boxes, strong), strong.inverse()), boxes)
    there = mapped(mapped(boxes, weak), between(weak, strong))
    torch.testing.assert_close(there, mapped(boxes, strong))
    assert (there[..., 2:] > there[..., :2]).all()
    torch.testing.assert_close(mapped(boxes, between(weak, weak)), boxes)
    # Overlap knows nothing of zooms, moves and flips.
    torch.testing.assert_close(
        iou(mapped(boxes, strong), mapped(boxes.flip(1), strong)), iou(boxes, boxes.flip(1))
    )


def test_a_turned_box_is_the_box_around_it() -> None:
    turn = np.cos(np.pi / 4)
    view = torch.tensor([[[turn, -turn, 0.0], [turn, turn, 0.0], [0.0, 0.0, 1.0]]])
    found = mapped(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), view.float())
    torch.testing.assert_close(found, torch.tensor([[[-turn, 0.0, turn, 2 * turn]]]).float())


@seeds
def test_uncertainty_is_blind_to_scale_and_zero_for_a_constant_regressor(seed: int) -> None:
    boxes = drawn(seed)["boxes"]
    moved = torch.rand(N, M, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = box_uncertainty(boxes, moved)
    torch.testing.assert_close(box_uncertainty(37 * boxes, 37 * moved), before)
    half = (boxes[..., 2:] - boxes[..., :2]).sum(-1) / 2
    torch.testing.assert_close(before, moved.sum(-1) / 4 / half)
    assert (box_uncertainty(boxes, 0 * moved) == 0).all()


@seeds
def test_regression_takes_steady_boxes_or_sure_ones_and_is_blind_to_scale(seed: int) -> None:
    of = drawn(seed)
    views = {"strong": SAME, "weak": SAME}
    names = ("refined", "candidates", "rows", "boxes", "length", "strong", "weak")

    def loss(sure: Tensor, scale: float = 1.0, **by: float) -> Tensor:
        scaled = {n: scale * of[n] for n in ("refined", "candidates", "boxes")}
        given = {**of, **views, **scaled, "rows": EVERY}
        given_first: Any = (*(given[name] for name in names), sure)
        return box_loss(
            *given_first, overlap=0.3, below=by.get("below"), above=by.get("above", 0.0)
        )

    # Boxes are 0.1 to 0.4 wide: these deviations are an uncertainty above 2 of the first, 0 of the others.
    shaken = torch.zeros(N, M, 4, dtype=torch.float64)
    shaken[:, 0] = 1.0
    second = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(N, M)
    torch.testing.assert_close(loss(shaken, below=0.02), loss(second, above=0.9))
    torch.testing.assert_close(loss(second, 3.0, above=0.9), loss(second, above=0.9))
    assert loss(0 * second, above=0.9) == 0


def test_a_student_on_the_boxes_has_no_loss_and_one_a_side_away_has_one() -> None:
    grid = torch.tensor([[0.0, 0.2], [0.5, 0.9]])
    every = torch.ones(1, 2, dtype=torch.bool)
    wanted = grid[None] + 0.01
    assert candidate_boxes(wanted, grid, wanted, every) == 0
    away = wanted + torch.tensor([[[0.2, 0.2], [0.4, 0.4]]])
    torch.testing.assert_close(candidate_boxes(away, grid, wanted, every), torch.tensor(1.0))


def test_rows_without_a_single_box_give_a_finite_loss_and_gradient() -> None:
    of = {name: held.clone() for name, held in drawn(0).items()}
    scores, refined = of["scores"].requires_grad_(), of["refined"].requires_grad_()
    none = {name: of[name][:, :0] for name in ("boxes", "label", "score")}
    rows, grid, length = EVERY, of["candidates"], torch.zeros(N, dtype=torch.long)
    found = class_loss(
        *(scores, grid, rows, none["boxes"], length, SAME, SAME, none["label"], none["score"]),
        overlap=0.5,
        above=0.9,
    )
    placed = box_loss(
        *(refined, grid, rows, none["boxes"], length, SAME, SAME, none["boxes"]),
        overlap=0.5,
        below=0.02,
    )
    (found + placed).backward()
    torch.testing.assert_close(found, -scores.log_softmax(-1)[..., -1].mean())
    assert placed == 0
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert refined.grad is not None
    assert (refined.grad == 0).all()


@seeds
def test_a_grid_seen_as_it_is_keeps_its_values_and_out_of_sight_there_are_none(seed: int) -> None:
    of = drawn(seed)
    kept = carried(of["background"], of["candidates"], SAME)
    torch.testing.assert_close(kept, of["background"])
    far = SAME.clone()
    far[:, 0, 2] = 10
    assert (carried(of["background"], of["candidates"], far) == 0).all()


def test_a_candidate_belongs_to_the_box_that_it_overlaps_most() -> None:
    boxes = torch.tensor([[[0.0, 1.0], [0.4, 1.4], [0.0, 1.0]]])
    there = torch.tensor([[True, True, False]])
    grid = torch.tensor([[0.3, 1.3], [0.0, 0.9], [5.0, 6.0]])
    front, label = assigned(grid, boxes, there, torch.tensor([[7, 8, 9]]), overlap=0.5)
    assert front.tolist() == [[True, True, False]]
    assert label[0, :2].tolist() == [8, 7]
    loss = candidate_classes(torch.zeros(1, 3, 3), front, label % 2, torch.ones(1, 3))
    torch.testing.assert_close(loss, torch.log(torch.tensor(3.0)))


def test_settings_decide_what_is_read_and_impossible_ones_are_refused() -> None:
    whole = recipes.find("soft-teacher")
    assert (whole.reads, whole.streams) == (("background", "boxes"), ("labelled",))
    assert recipes.find("soft-teacher", soft_background=False).reads == ("boxes",)
    by_score = recipes.find("soft-teacher", select_by_jitter=False)
    assert "teacher.boxes.jitter" in whole.names - by_score.names
    for wrong in ({"alpha": 0.0}, {"uncertainty": -1.0}, {"score": 1.0}, {"overlap": 1.5}):
        with pytest.raises(ValueError, match=r"soft-teacher: alpha and uncertainty must be above"):
            recipes.find("soft-teacher", **wrong)
