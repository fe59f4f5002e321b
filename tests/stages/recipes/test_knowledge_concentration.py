"""Knowledge concentration: its sparse targets, its gradient, and what a vertical of the head sees."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, ModuleTeacher, RoutedTeacher, recipes, teach
from stillroom.stages.loading import Loader
from stillroom.stages.proving.models import untrained
from stillroom.stages.recipes.knowledge_concentration import (
    OWNER,
    _average_precision,
    _specialist,
    concentration,
    sigmoid_cross_entropy,
    vertical_head,
)
from stillroom.storage import Cache, Reader

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)
ROWS, CLASSES, KEPT = 5, 9, 3


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits of a student, what is stored of a specialist, and the dense target that it stands for."""
    made = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, ROWS, CLASSES, generator=made, dtype=torch.float64) * 3
    values, indices = teacher.topk(KEPT, dim=-1)
    total = teacher.logsumexp(-1)
    dense = torch.zeros_like(teacher).scatter(-1, indices, values.sigmoid())
    return student.requires_grad_(), indices, values - total[:, None], total, dense


@quick
@given(seeds)
def test_its_loss_is_the_sigmoid_cross_entropy_to_the_dense_target(seed: int) -> None:
    student, indices, values, total, dense = drawn(seed)
    wanted = binary_cross_entropy_with_logits(student, dense, reduction="none").sum(-1)
    torch.testing.assert_close(concentration(student, indices, values, total), wanted)
    torch.testing.assert_close(sigmoid_cross_entropy(student, dense), wanted)


@quick
@given(seeds)
def test_its_gradient_is_the_difference_of_probabilities_over_rows(seed: int) -> None:
    student, indices, values, total, dense = drawn(seed)
    values.requires_grad_()
    concentration(student, indices, values, total).mean().backward()
    torch.testing.assert_close(student.grad, (student.detach().sigmoid() - dense) / ROWS)
    assert values.grad is None


def test_logits_far_away_are_finite() -> None:
    far = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = sigmoid_cross_entropy(far, torch.tensor([[1.0, 0.0]]))
    loss.sum().backward()
    assert loss.item() == 0
    assert far.grad is not None
    assert not far.grad.any()


OF = torch.tensor([0, 2, 1, 0, 2, 2, 1, 0, 0])
MARKS = torch.arange(3)[:, None] == OF


def head(**settings: Any) -> Any:
    """Of 4 features to nine classes that three verticals share in no order."""
    torch.manual_seed(0)
    given = {"verticals": 3, "width": 5, "connected": True, "paced": True} | settings
    return vertical_head(((4,), (CLASSES,)), (), **given).double()


@pytest.mark.parametrize("paced", [True, False])
def test_a_vertical_learns_nothing_from_another_ones_rows(paced: bool) -> None:
    made, feature = head(paced=paced), torch.randn(6, 4, dtype=torch.float64)
    made(feature, MARKS)[:, OF == 1].square().sum().backward()
    assert [bool(block.weight.grad is None) for block in made.blocks] == [False] * 3
    assert [bool(block.weight.grad.any()) for block in made.blocks] == [False, True, False]
    assert not made.classes.weight.grad[OF != 1].any()
    assert made.classes.weight.grad[OF == 1].any()
    if paced:
        assert (made.gain.grad != 0).tolist() == [False, True, False]


@quick
@given(seeds, st.floats(0.01, 100))
def test_a_paced_vertical_does_not_know_how_large_its_logits_are(seed: int, by: float) -> None:
    made = head()
    feature = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    before = made(feature, MARKS)
    with torch.no_grad():
        made.classes.weight[OF == 2] *= by
        made.classes.bias[OF == 2] *= by
    torch.testing.assert_close(made(feature, MARKS), before)
    sizes = torch.stack([before[:, v == OF].norm(dim=-1) for v in range(3)], -1)
    gamma = torch.tensor([4.0, 2.0, 3.0]).double().sqrt() + made.gain
    torch.testing.assert_close(sizes, gamma.expand(6, 3))
    assert made.gain.abs().max() < 0.01


def test_unpaced_logits_are_those_of_the_blocks() -> None:
    made, feature = head(paced=False), torch.randn(6, 4, dtype=torch.float64)
    found = made(feature, MARKS)
    for place, vertical in enumerate(OF.tolist()):
        hidden = made.blocks[vertical](feature).relu()
        wanted = hidden @ made.classes.weight[place] + made.classes.bias[place]
        torch.testing.assert_close(found[:, place], wanted)


def test_it_has_as_many_weights_as_the_paper_says() -> None:
    for connected, blocks in ((True, 3), (False, 1)):
        made = head(connected=connected)
        weights = sum(p.numel() for p in made.parameters() if p.ndim > 1)
        assert weights == 4 * 5 * blocks + 5 * CLASSES


def test_a_vertical_without_classes_is_left_out() -> None:
    marks = torch.arange(3)[:, None] == torch.zeros(CLASSES)
    found = head()(torch.randn(6, 4, dtype=torch.float64), marks)
    assert found.isfinite().all()
    torch.testing.assert_close(
        found.norm(dim=-1), torch.full((6,), 3.0).double(), atol=0.01, rtol=0
    )


def test_each_row_is_taught_by_its_specialist_alone(tmp_path: Path) -> None:
    """Through a cache: targets outside of the row's vertical are exactly 0, and at most two are not."""
    drawn_now = np.random.default_rng(0)
    image = drawn_now.standard_normal((12, 1, 8, 8)).astype(np.float32)
    said, keys = np.arange(12) % 3, [f"r{i}" for i in range(12)]
    experts: dict[str | int, Any] = {}
    for v in range(3):
        build = partial(_specialist, v)
        weights = untrained(build, tmp_path / f"{v}.safetensors", seed=v)
        how: dict[str, Any] = {"weights": weights, "encodings": {"logits": "topk(2)"}}
        experts[v] = ModuleTeacher(f"expert-{v}", build, **how)
    teacher = RoutedTeacher("experts", "said", experts)
    rows = teacher.rows(ArrayRows(keys, image=image, said=said))
    snapshot = teach(Cache.at(tmp_path / "cache"), rows, teacher, runner=LocalRunner())
    reader = Reader(snapshot, ["logits"])
    batch = Loader(None, keys, (), reader, batch_size=12, parts=["logits"]).batch(np.arange(12))
    names = [f"teacher.logits.{part}" for part in ("indices", "values", "logsumexp")]
    indices, values, total = (batch[name] for name in names)
    target = torch.zeros(12, 16).scatter(-1, indices, (values + total[:, None]).sigmoid())
    assert not target[torch.from_numpy(said)[:, None] != torch.from_numpy(OWNER)].any()
    assert ((target > 0).sum(-1) == 2).all()
    for v in range(3):
        said_now = experts[v].load()({"image": image[said == v]})["logits"]
        wanted = torch.as_tensor(said_now).topk(2).values.sigmoid()
        torch.testing.assert_close(target[said == v].topk(2).values, wanted, atol=2e-3, rtol=0)


def test_average_precision_counts_only_a_verticals_own_rows() -> None:
    """A right row in the second of two places: 1/2 for that class, 1 for those in order."""
    scores, truth = torch.zeros(3, 16), torch.zeros(3, 16)
    truth[0, 0] = truth[2, 5] = 1
    scores[1, 0] = 1  # before the right one
    scores[2, 0] = 2  # of another vertical
    owner = torch.tensor([0, 0, 1])
    names = {"student.logits": scores, "row.truth": truth, "row.vertical": owner}
    assert _average_precision(names) == {"ap": (0.5 + 1) / 2}


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="knowledge-concentration: verticals and width must be at"):
        recipes.find("knowledge-concentration", verticals=0)
