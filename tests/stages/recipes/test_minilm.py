"""What is exactly true of MiniLM: when it is zero, what it cannot see, and that padding counts nothing."""

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

from stillroom.pipeline import LocalRunner
from stillroom.stages import ModuleTeacher, recipes, teach
from stillroom.stages.proving import texts
from stillroom.stages.proving.transformers import token_transformer
from stillroom.stages.recipes.minilm import relation_kl, relations
from stillroom.storage import Cache, Reader

ROWS, HEADS, TOKENS = 2, 3, 6
THERE = torch.arange(TOKENS) < torch.tensor([[6], [4]])
seeds = st.integers(0, 99)


def drawn(seed: int, *widths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, HEADS, TOKENS)
    return [torch.randn(*shape, d, generator=generator, dtype=torch.float64) for d in widths]


@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_turning_both_sides_alike_changes_nothing(seed: int) -> None:
    q, k, v, teacher = drawn(seed, 4, 4, 4, 8)
    turn, _ = torch.linalg.qr(drawn(seed + 1, 4)[0][0, 0, :4])
    loss = partial(relation_kl, teacher_left=teacher, teacher_right=teacher, there=THERE)
    torch.testing.assert_close(loss(q @ turn, k @ turn), loss(q, k))
    torch.testing.assert_close(loss(v @ turn, v @ turn), loss(v, v))
    assert not torch.allclose(loss(q @ turn, k), loss(q, k))


@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_it_is_zero_for_equal_relations_alone_whatever_the_widths(seed: int) -> None:
    q, k, other = drawn(seed, 4, 4, 4)
    # The same scores from twice the width: each half of the scaled dot product, and a constant a row.
    wide = torch.cat([q, q], -1) * 2**0.25, torch.cat([k, k], -1) * 2**0.25 / 2**0.5 * 2**-0.5
    scaled = wide[0] * (relations(q, k, THERE)[0, 0, 0, 0] / relations(*wide, THERE)[0, 0, 0, 0])
    shifted = torch.cat([scaled, torch.ones_like(q[..., :1])], -1) * (9 / 8) ** 0.5
    towards = torch.cat([wide[1], torch.full_like(q[..., :1], 3.0)], -1)
    assert relation_kl(shifted, towards, q, k, THERE)[THERE].abs().max() < 1e-12
    found = relation_kl(q, other, q, k, THERE)[THERE]
    assert (found > 1e-9).all()


def test_it_is_the_mean_over_heads_of_kl_between_softmaxes() -> None:
    q, k, tq, tk = drawn(0, 4, 4, 8, 8)
    mine, theirs = ((a @ b.mT / a.shape[-1] ** 0.5).softmax(-1) for a, b in ((q, k), (tq, tk)))
    expected = (theirs * (theirs / mine).log()).sum(-1).mean(1)
    found = relation_kl(q, k, tq, tk, torch.ones(ROWS, TOKENS, dtype=torch.bool))
    torch.testing.assert_close(found, expected)


def test_what_is_not_there_counts_nothing() -> None:
    recipe = recipes.find("minilm")
    names = [
        f"{side}.{name}" for side in ("student", "teacher") for name in ("query", "key", "value")
    ]
    given: dict[str, Any] = dict(zip(names, drawn(0, 4, 4, 4, 8, 8, 8), strict=True))
    given["row.there"] = THERE
    for name in names:
        given[name].requires_grad_()
    total = sum(one.mean(given) for one in recipe.terms)
    assert isinstance(total, Tensor)
    total.backward()
    for name in names[:3]:
        assert (given[name].grad[1, :, 4:] == 0).all()
        assert given[name].grad[1, :, :4].abs().sum() > 0
    assert all(given[name].grad is None for name in names[3:])
    for name in names:
        given[name].data[1, :, 4:] = 1e3
    torch.testing.assert_close(sum(one.mean(given) for one in recipe.terms), total)
    # And a row alone, cut to its length, costs what it costs among the others.
    short = {n: given[n][1:, :, :4] for n in names} | {"row.there": THERE[1:, :4]}
    for one in recipe.terms:
        torch.testing.assert_close(one(short), one(given)[1:, :4])


def test_heads_must_be_as_many() -> None:
    q, k = drawn(0, 4, 4)
    with pytest.raises(ValueError, match="give the student as many heads as the teacher has"):
        relation_kl(q, k, q[:, :2], k[:, :2], THERE)


def test_one_of_the_two_relations_may_be_left_out() -> None:
    assert recipes.find("minilm").reads == ("key", "query", "value")
    assert recipes.find("minilm", attention=0.0).reads == ("value",)
    assert recipes.find("minilm", value=0.0).reads == ("key", "query")
    for wrong in ({"attention": -1.0}, {"attention": 0.0, "value": 0.0}):
        with pytest.raises(ValueError, match="minilm: attention and value are weights"):
            recipes.find("minilm", **wrong)


def test_maps_from_cached_queries_and_keys_are_the_live_teachers(tmp_path: Path) -> None:
    rows = texts.repeated_rows(12, seed=0)
    build = partial(token_transformer, vocabulary=33, tokens=12, width=16, depth=2, heads=4)
    layers = {n: f"{n}(blocks.1.self_attn)" for n in ("query", "key", "value")}
    live = {"attention": "attention(blocks.1.self_attn)"}
    teacher = partial(ModuleTeacher, "t", build, None, ("tokens", "there"))
    coded = teacher(layers, dict.fromkeys(layers, "float16"))
    snapshot = teach(Cache.at(tmp_path / "c"), rows, coded, runner=LocalRunner())
    kept = Reader(snapshot, list(layers)).gather(rows.keys)
    q, k = (torch.from_numpy(np.asarray(kept[n])) for n in ("query", "key"))
    batch = rows.read(np.arange(12), ["tokens", "there"])
    expected = torch.as_tensor(np.asarray(teacher(live).load()(batch)["attention"]))
    there = torch.as_tensor(np.asarray(batch["there"]))
    torch.testing.assert_close(relations(q, k, there).softmax(-1), expected, atol=1e-3, rtol=0)
