"""What is exactly true of DMAE: bounds of its alignment, which pixels count, what is replayed and kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    ArrayRows,
    Evaluation,
    Fit,
    ModuleTeacher,
    Student,
    recipes,
    teach,
    train,
)
from stillroom.stages.heads.decoders import masked_decoder, patches_of
from stillroom.stages.heads.projectors import token_projector
from stillroom.stages.proving.probes import few_labelled, probe_accuracy
from stillroom.stages.proving.transformers import patch_transformer
from stillroom.stages.recipes.dmae import alignment, reconstruction
from stillroom.stages.shapes import Shape, random_tensors
from stillroom.stages.views.pixels import Mask
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.replay import Replay
from stillroom.stages.views.rows import ViewedRows
from stillroom.stages.views.teacher import ViewedTeacher
from stillroom.storage import Cache, Reader

draws = st.integers(0, 99).map(lambda seed: torch.Generator().manual_seed(seed))
VIT = partial(patch_transformer, patch=2, patches=16, depth=2, heads=2)
PLAN = ViewPlan((Mask(2, 0.75),), seed=3)


@given(draw=draws, channels=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_the_alignment_is_bounded_and_zero_for_positive_multiples_alone(
    draw: torch.Generator, channels: int
) -> None:
    a, b = (torch.randn(3, 5, channels, generator=draw, dtype=torch.float64) for _ in "ab")
    factor = torch.rand(3, 5, 1, generator=draw, dtype=torch.float64) + 0.1
    assert alignment(factor * b, b).max() < 1e-12
    for other in (a, -b):
        found = alignment(other, b)
        assert (found <= 2 / channels**0.5 + 1e-12).all()
        same = torch.nn.functional.cosine_similarity(other, b, -1) > 1 - 1e-9
        assert ((found < 1e-9) == same).all()


@given(draw=draws)
@settings(max_examples=20, deadline=None)
def test_only_pixels_of_patches_that_were_not_kept_count(draw: torch.Generator) -> None:
    image, guess = torch.rand(4, 1, 8, 8, generator=draw), torch.rand(4, 16, 4, generator=draw)
    mask = torch.rand(4, 16, generator=draw).argsort(-1) < 4
    found = reconstruction(guess.requires_grad_(), image, mask)
    hidden = [(guess[i] - patches_of(image, 16)[i])[~mask[i]].square().mean() for i in range(4)]
    torch.testing.assert_close(found, torch.stack(hidden))
    found.sum().backward()
    assert guess.grad is not None
    assert (guess.grad[mask] == 0).all()
    pixels = mask.reshape(4, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    changed = torch.where(pixels, image + 5, image)
    torch.testing.assert_close(reconstruction(guess, changed, mask), found)
    assert (reconstruction(guess, image, torch.ones_like(mask)) == 0).all()


def test_the_decoder_puts_every_token_in_the_place_of_its_patch() -> None:
    torch.manual_seed(0)
    decoder = masked_decoder(((5, 6), (16,)), (1, 8, 8), width=8, depth=0, heads=2)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [2, 3, 9, 15]] = True
    tokens = torch.randn(1, 5, 6)
    first = decoder(tokens, mask)
    assert first.shape == (1, 16, 4)
    tokens[0, 3] += 1  # the third patch that was kept: number 9
    changed = (decoder(tokens, mask) != first).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [9]


def test_a_token_projector_treats_every_token_alike() -> None:
    projector = token_projector((5, 6), (5, 9))
    tokens = torch.randn(2, 5, 6)
    torch.testing.assert_close(projector(tokens)[:, 3], projector(tokens[:, 3]))


def test_the_student_and_the_teacher_read_the_same_few_patches_and_only_the_student_stays(
    tmp_path: Path,
) -> None:
    image = np.random.default_rng(0).random((24, 1, 8, 8), np.float32)
    rows = ArrayRows([f"r{i}" for i in range(24)], image=image)
    big, keys = partial(VIT, width=8), rows.keys.to_pylist()
    teacher = ModuleTeacher(
        *("t", partial(big, until=1), None, ("image", "mask"), {"tokens": "blocks.0"})
    )
    viewed = ViewedRows(rows, PLAN, views=2, plain=False)
    cache = Cache.at(tmp_path / "c")
    snapshot = teach(cache, viewed, ViewedTeacher(teacher, PLAN), runner=LocalRunner())

    replay = Replay(rows, snapshot, keys, views=2, signals=["tokens"])
    batch = replay.read(np.arange(24), 2, ["image", "mask"])
    assert (np.asarray(batch["mask"]).sum(1) == 4).all()
    kept = Reader(snapshot, ["tokens"]).take(replay.positions[1])["tokens"]
    live = teacher.load()(batch)["tokens"]
    np.testing.assert_allclose(np.asarray(kept), np.asarray(live), atol=1e-6)
    assert np.asarray(kept).shape == (24, 5, 8)

    student = Student(
        "s",
        partial(VIT, width=4),
        recipes.find("dmae", decoder_width=8, decoder_depth=1, decoder_heads=2),
        layers={"encoded": "", "tokens": "blocks.0"},
        fit=Fit(epochs=2, batch_size=12, views=2),
    )
    (record,) = train(
        [student],
        rows,
        snapshot,
        splits={"train": keys, "test": keys[:6]},
        evaluation=Evaluation("test", whole, columns=()),
        folder=tmp_path / "students",
        runner=LocalRunner(),
    )
    assert record.metrics == {"tokens": 17}
    assert not record.heads.exists()
    with safe_open(record.weights, "np") as stored:
        assert set(stored.keys()) == set(partial(VIT, width=4)().state_dict())


def whole(tensors: Any) -> dict[str, Any]:
    """At inference every patch is read."""
    return {"tokens": tensors["student.encoded"].shape[1]}


def test_with_weight_0_no_teacher_is_read() -> None:
    alone = recipes.find("dmae", weight=0.0)
    assert (alone.reads, [head.name for head in alone.heads]) == ((), ["pixels"])
    assert recipes.find("dmae").reads == ("tokens",)
    with pytest.raises(ValueError, match="dmae: weight is at least 0, found -1"):
        recipes.find("dmae", weight=-1.0)


def test_patches_must_fill_an_image() -> None:
    with pytest.raises(ValueError, match="5 square patches do not fill an image of 8 x 8"):
        patches_of(torch.zeros(1, 1, 8, 8), 5)


def test_a_shape_may_say_how_many_are_marked() -> None:
    said = {"row.mask": "bool n patches with kept", "student.tokens": "float n 1+kept dim*2"}
    made = random_tensors(said)
    assert (made["row.mask"].sum(-1) == made["student.tokens"].shape[1] - 1).all()
    assert made["student.tokens"].shape[2] % 2 == 0
    for wrong, why in (
        ("float n with k", "only marks have 'with"),
        ("bool n with", "one size stands"),
    ):
        with pytest.raises(ValueError, match=why):
            Shape.of(wrong)


def test_a_probe_is_fitted_to_the_few_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    label = torch.arange(60) % 3
    feature = torch.nn.functional.one_hot(label, 3) + 0.1 * torch.randn(60, 3, generator=draw)
    few = torch.arange(60) < 15
    assert probe_accuracy(feature, label, few) == 1
    noise = torch.randn(60, 3, generator=draw)
    assert probe_accuracy(torch.where(few[:, None], feature, noise), label, few) < 0.7
    other = torch.where(few, label, (label + 1) % 3)
    assert probe_accuracy(feature, other, few) == 0


def test_few_are_the_first_of_each_class_to_train_on() -> None:
    label = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    rows = ArrayRows(list("abcdefgh"), label=label)
    made, splits = few_labelled(rows, {"train": list("dcbafe"), "test": list("gh")}, each=2)
    assert splits["few"] == list("dcba")
    assert splits["test"] == list("ghdcba")
    assert list(made.read(np.arange(8), ["few"])["few"]) == [True] * 4 + [False] * 4
