"""What is exactly true of TAID: its target, its gradient, its schedule, and rows that differ in length."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.pipeline import LocalRunner
from stillroom.stages import FunctionTeacher, Recipe, recipes, teach, term
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.objectives.sparse import buckets, stored_buckets
from stillroom.stages.parts import Seen
from stillroom.stages.proving import texts
from stillroom.stages.recipes.taid import schedule, schedule_start, taid
from stillroom.storage import Cache, Reader

CLASSES = 7
shares = st.floats(0, 1)


def stored(k: int = CLASSES, seed: int = 0) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
    """A student's logits (2, 5, classes), what topk(k) keeps of a teacher's, and all of the teacher's."""
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(2, 5, CLASSES, generator=draw, dtype=torch.float64) for _ in "st"
    )
    values, indices = teacher.log_softmax(-1).topk(k)
    return student.requires_grad_(), (indices, values, 1 - values.exp().sum(-1)), teacher


@given(t=shares, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_its_gradient_is_the_student_less_the_target(t: float, seed: int) -> None:
    student, kept, teacher = stored(seed=seed)
    taid(student, *kept, torch.tensor(t)).sum().backward()
    own = student.detach()
    target = ((1 - t) * own + t * teacher).softmax(-1)
    torch.testing.assert_close(student.grad, own.softmax(-1) - target)


def test_at_1_it_is_cross_entropy_to_the_teacher_and_at_0_it_teaches_nothing() -> None:
    student, kept, teacher = stored()
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    found = taid(student, *kept, torch.tensor(1.0))
    torch.testing.assert_close(found, kl(student, teacher) + entropy)
    taid(student, *kept, torch.tensor(0.0)).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15


@given(k=st.integers(1, CLASSES), t=shares, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_buckets_are_distributions_and_teach_the_student_alone(k: int, t: float, seed: int) -> None:
    student, kept, _ = stored(k, seed)
    for one in (buckets(student, kept[0]), stored_buckets(student, *kept)):
        assert one.shape[-1] == min(k + 1, CLASSES)
        torch.testing.assert_close(one.logsumexp(-1), torch.zeros(2, 5).double())
    indices, values, tail = kept[0], kept[1].requires_grad_(), kept[2].requires_grad_()
    taid(student, indices, values, tail, torch.tensor(t)).sum().backward()
    assert values.grad is None
    assert tail.grad is None
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_classes_in_one_bucket_are_not_told_apart() -> None:
    """Mass moved among the classes that are not kept costs nothing; moved to a kept one it does."""
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0, 0.5, 0.2, 0.1]]])
    indices = torch.tensor([[[0, 1]]])
    kept = (indices, torch.tensor([[[-0.5, -1.5]]]), torch.tensor([[0.17]]))
    others = logits.clone()
    others[..., 2:] = logits[..., 2:].flip(-1)
    t = torch.tensor(0.6)
    torch.testing.assert_close(taid(logits, *kept, t), taid(others, *kept, t))
    others[..., 1] += 1
    assert not torch.allclose(taid(logits, *kept, t), taid(others, *kept, t))


def run(losses: list[float], **given: Any) -> list[float]:
    """t before every step and after the last."""
    settings = {"t_start": 0.4, "t_end": 1.0, "alpha": 5e-4, "beta": 0.99, "adaptive": True} | given
    state: dict[str, Any] = dict(schedule_start(**settings))
    found = [state["t"]]
    for step, loss in enumerate(losses, start=1):
        seen = Seen({"taid": torch.tensor(loss)}, {}, step, len(losses))
        state |= schedule(
            {n: torch.tensor(v, dtype=torch.float64) for n, v in state.items()}, seen, **settings
        )
        found.append(state["t"])
    return found


@given(
    losses=st.lists(st.floats(0.01, 10), min_size=2, max_size=30),
    alpha=st.floats(0, 2),
    end=st.floats(0.5, 1),
)
@settings(max_examples=20, deadline=None)
def test_t_never_falls_nor_passes_its_end(losses: list[float], alpha: float, end: float) -> None:
    found = run(losses, alpha=alpha, t_end=end)
    assert found[:2] == [0.4, 0.4]  # the first step only remembers its loss
    assert all(b >= a - 1e-6 for a, b in pairwise(found))
    assert found[-1] == pytest.approx(end)


def test_t_moves_faster_where_the_loss_falls_and_not_by_the_loss_of_now() -> None:
    falls = run([4.0, 2.0] + [1.0] * 18, alpha=0.5, beta=0.5)
    rises = run([1.0, 2.0] + [4.0] * 18, alpha=0.5, beta=0.5)
    sigmoid = 1 / (1 + np.exp(-0.5 * (4 - 2) / 4))
    assert falls[2] == pytest.approx(0.4 + 0.5 * sigmoid * 0.6)
    assert falls[1] == rises[1]
    assert all(a > b for a, b in zip(falls[2:6], rises[2:6], strict=True))


def test_without_adaption_t_is_linear() -> None:
    assert run([3.0, 9.0, 1.0], adaptive=False) == pytest.approx([0.4, 0.6, 0.8, 1.0])


def test_the_text_itself_may_be_mixed_in() -> None:
    assert recipes.find("taid").columns == ("there",)
    mixed = recipes.find("taid", distil_ratio=0.3)
    assert mixed.columns == ("next", "there")
    assert [one.weight for one in mixed.terms] == pytest.approx([0.3, 0.7])
    assert mixed.parts == mixed.reads == ("logits",)


@pytest.mark.parametrize(
    "wrong", [{"t_start": 0.9, "t_end": 0.5}, {"distil_ratio": 0.0}, {"beta": 1.0}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"taid: .*found"):
        recipes.find("taid", **wrong)


def test_marks_may_be_wider_than_ragged_losses_but_mark_nothing_there() -> None:
    one = term(cross_entropy, "student.logits", "row.next", where="row.there")
    there = torch.tensor([[True, True, False, False], [True, False, False, False]])
    narrow = {"student.logits": torch.randn(2, 2, 5), "row.next": torch.tensor([[1, 2], [3, 4]])}
    losses = one(narrow)
    expected = losses[there[:, :2]].mean()
    torch.testing.assert_close(one.mean(narrow | {"row.there": there}), expected)
    there[1, 3] = True
    with pytest.raises(ValueError, match="they must begin alike"):
        one.mean(narrow | {"row.there": there})
    assert isinstance(recipes.find("taid"), Recipe)


def test_the_n_gram_model_is_that_of_witten_and_bell() -> None:
    """By hand, for one character before: interpolated with how often characters are there at all."""
    text = texts.prose()[0]
    seen, size = (
        [text[i + 1] for i in range(len(text) - 1) if text[i] == "e"],
        len(texts.alphabet()),
    )
    at = texts.alphabet().index
    distinct, all_distinct = len(set(seen)), len(set(text))
    alone = (text.count("r") + all_distinct / size) / (len(text) + all_distinct)
    expected = (seen.count("r") + distinct * alone) / (len(seen) + distinct)
    found = texts.witten_bell(np.array([[at("e")]]), texts=1)[0]
    assert found[at("r")] == pytest.approx(expected)
    assert found.sum() == pytest.approx(1)


def test_texts_of_any_length_are_stored_as_their_top_classes(tmp_path: Path) -> None:
    rows, splits = texts.character_rows(learn=40, test=5, seed=0, texts=2)
    made = rows.read(np.arange(45), ["ids", "next", "there"])
    lengths = np.asarray(made["there"]).sum(1)
    assert (np.asarray(made["next"]) == np.asarray(made["ids"])[:, 8:]).all()

    teacher = FunctionTeacher(
        *("t", answer, ("ids", "there"), ("logits",)), encodings={"logits": "topk(4)"}
    )
    snapshot = teach(Cache.at(tmp_path / "c"), rows, teacher, runner=LocalRunner())
    reader = Reader(snapshot, ["logits"])
    found = reader.parts(snapshot.positions(rows.keys))["logits"]
    assert (found["indices"].lengths == lengths).all()
    assert (np.diff(found["values"].values) <= 0).all()
    assert splits["test"]


def answer(ids: Any, there: Any) -> Any:
    """The n-gram model of two texts."""
    return texts.foretold(ids, there, order=3, texts=2)
