"""DHO: what reaches which head, the mixture at inference, and replayed views beside labelled rows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    ArrayRows,
    Evaluation,
    Fit,
    FunctionTeacher,
    Student,
    classification,
    recipes,
    train,
)
from stillroom.stages.loading import Loader
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.proving.data import few_of_each
from stillroom.stages.proving.gradients import watched
from stillroom.stages.proving.models import trunk
from stillroom.stages.recipes.dho import accuracy, mixed
from stillroom.stages.streams import Streams
from stillroom.stages.views.boxes import Crop, Flip
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.replay import Replay
from stillroom.storage import Reader
from tests.stages.builders import data, network, taught
from tests.stages.view_builders import album, viewed

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)
ROWS, DIM, CLASSES = 8, 5, 4
HEADS = ("label", "teacher")


def batch(seed: int) -> dict[str, Any]:
    """Eight rows, the last four labelled, with two heads' logits as functions of their weights."""
    made = torch.Generator().manual_seed(seed)
    labelled = torch.arange(ROWS) >= 4
    return {
        "feature": torch.randn(ROWS, DIM, generator=made, dtype=torch.float64),
        "label": torch.randn(CLASSES, DIM, generator=made, dtype=torch.float64).requires_grad_(),
        "teacher": torch.randn(CLASSES, DIM, generator=made, dtype=torch.float64).requires_grad_(),
        "teacher.logits": torch.randn(ROWS, CLASSES, generator=made, dtype=torch.float64) * 3,
        "row.label": torch.randint(CLASSES, (ROWS,), generator=made),
        "batch.labelled": labelled,
        "batch.main": ~labelled,
    }


def loss(given: dict[str, Any], **how: Any) -> Tensor:
    """The recipe's whole loss; its gradients are in the two heads' weights afterwards."""
    for name in HEADS:
        given[name].grad = None
        given[f"head.{name}"] = given["feature"] @ given[name].T
    terms = recipes.find("dho", **how).terms
    total = torch.stack([one.weighted(one.mean(given), given) for one in terms]).sum()
    total.backward()
    return total.detach()


@quick
@given(seeds, st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([1.0, 2.0]))
def test_its_loss_is_the_papers(seed: int, lam: float, temperature: float) -> None:
    given = batch(seed)
    found = loss(given, lam=lam, temperature=temperature)
    few, rest = given["batch.labelled"], given["batch.main"]
    hard = cross_entropy(given["head.label"][few], given["row.label"][few]).mean()
    soft = [
        kl(given["head.teacher"][r], given["teacher.logits"][r], temperature=temperature).mean()
        for r in (few, rest)
    ]
    torch.testing.assert_close(found, lam * hard + (1 - lam) * (soft[0] + soft[1]))


@quick
@given(seeds)
def test_labels_move_one_head_and_the_teacher_the_other(seed: int) -> None:
    given = batch(seed)
    loss(given)
    before = {name: given[name].grad.clone() for name in HEADS}
    loss(given | {"row.label": (given["row.label"] + 1) % CLASSES})
    assert torch.equal(given["teacher"].grad, before["teacher"])
    assert not torch.equal(given["label"].grad, before["label"])
    loss(given | {"teacher.logits": given["teacher.logits"].flip(-1)})
    assert torch.equal(given["label"].grad, before["label"])
    assert not torch.equal(given["teacher"].grad, before["teacher"])


@quick
@given(seeds)
def test_unlabelled_rows_never_reach_the_head_of_labels(seed: int) -> None:
    given = batch(seed)
    loss(given)
    before = given["label"].grad.clone()
    other = given["feature"].clone()
    other[given["batch.main"]] += 10
    unknown = given["row.label"].masked_fill(given["batch.main"], -1)
    total = loss(given | {"feature": other, "row.label": unknown})
    assert total.isfinite()
    assert torch.equal(given["label"].grad, before)


@quick
@given(seeds, st.floats(-50, 50))
def test_distillation_is_zero_for_logits_that_differ_by_a_constant_alone(
    seed: int, constant: float
) -> None:
    teacher = batch(seed)["teacher.logits"]
    same = kl(teacher + constant, teacher, temperature=2.0)
    torch.testing.assert_close(same, torch.zeros(ROWS, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (kl(teacher + torch.eye(ROWS, CLASSES) * 3, teacher, temperature=2.0)[:4] > 1e-6).all()


@quick
@given(seeds, st.sampled_from([0.5, 1.0, 4.0]))
def test_the_mixture_goes_from_one_head_to_the_other(seed: int, beta: float) -> None:
    made = torch.Generator().manual_seed(seed)
    label, teacher = torch.randn(2, ROWS, CLASSES, generator=made) * 9
    assert torch.equal(mixed(label, teacher, alpha=1.0, beta=beta), label.log_softmax(-1))
    assert torch.equal(mixed(label, teacher, alpha=0.0, beta=1.0), teacher.log_softmax(-1))
    found = mixed(label, teacher, alpha=0.3, beta=beta).exp()
    wanted = 0.3 * label.softmax(-1) + 0.7 * (teacher / beta).softmax(-1)
    torch.testing.assert_close(found, wanted)


def test_settings_are_tried_from_the_papers_own_outwards() -> None:
    answer = recipes.find("dho").answer
    assert answer is not None
    assert answer.settings == {"alpha": 0.5, "beta": 0.5}
    assert answer.grid["alpha"][:3] == (0.5, 0.45, 0.55)
    assert sorted(answer.grid["alpha"]) == [i / 20 for i in range(21)]
    for bad in ({"lam": 1.0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match=r"dho: lam must be in \(0, 1\) and alpha in \[0, 1\]"):
            recipes.find("dho", **bad)
    with pytest.raises(ValueError, match="dho: temperature and beta must be above 0"):
        recipes.find("dho", beta=0.0)


def test_a_row_without_a_label_has_no_loss_and_reaches_nothing_that_is_masked() -> None:
    logits = torch.randn(3, CLASSES, requires_grad=True)
    losses = cross_entropy(logits, torch.tensor([1, -1, 2]))
    assert losses.isnan().tolist() == [False, True, False]
    losses[torch.tensor([True, False, True])].sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[1] == 0).all()


def test_a_few_of_each_class_are_the_first_of_each() -> None:
    rows = ArrayRows(list("abcdefgh"), label=np.array([2, 0, 2, 2, 0, 1, 0, 2]))
    assert few_of_each(rows, list("hgfedcb"), 2) == ["h", "g", "f", "e", "d"]


def test_only_two_losses_can_be_watched() -> None:
    for recipe in (recipes.find("labels"), watched(recipes.find("dho"))):
        with pytest.raises(ValueError, match="cannot be watched: it needs two terms"):
            watched(recipe)


def seen_again(image: Any) -> dict[str, Any]:
    """A teacher whose answer is what it saw."""
    return {"image": image}


def test_labelled_and_unlabelled_rows_are_the_very_views_that_the_teacher_saw(
    tmp_path: Path,
) -> None:
    plan = ViewPlan((Crop((0.5, 1.0)), Flip()))
    eye = FunctionTeacher("eye", seen_again, ("image",), ("image",))
    snapshot = viewed(tmp_path / "cache", plan, teacher=eye, views=2)
    rows, keys = album(), [f"p{i}" for i in range(12)]

    def loader(chosen: list[str]) -> Loader:
        replay = Replay(rows, snapshot, chosen, views=2, signals=["image"])
        reader = Reader(snapshot, ["image"])
        return Loader(rows, chosen, ("image",), reader, batch_size=4, replay=replay)

    streams = Streams(loader(keys[:8]), {"labelled": loader(keys[8:])})
    made = []
    for epoch in (1, 2):
        for _, tensors in streams.epoch(epoch):
            assert torch.equal(tensors["row.image"], tensors["teacher.image"])
            assert tensors["batch.labelled"].tolist() == [False] * 4 + [True] * 4
            made += list(tensors["row.image"])
    plain: Any = rows.read(np.arange(12), ["image"])["image"]
    same = [torch.equal(one, torch.from_numpy(other)) for one in made for other in plain]
    assert len(made) == 32
    assert sum(same) < 16  # they are views, hardly ever the row as it is


KEYS = [f"r{i}" for i in range(90)]
SPLITS = {"train": KEYS[:40], "few": KEYS[40:48], "validation": KEYS[48:70], "test": KEYS[70:]}


def hidden(*, shuffled: bool = False) -> ArrayRows:
    """Rows of which those to train on have no label; those of the test maybe others than their own."""
    columns: Any = data(90).read(np.arange(90), ["image", "label"])
    label = columns["label"].copy()
    label[:40] = -1
    label[70:] = (label[70:] + shuffled) % CLASSES
    return ArrayRows(KEYS, image=columns["image"], label=label)


def pupil(recipe: Any = None, **how: Any) -> Student:
    """A small student with a stream of labelled rows."""
    return Student(
        how.pop("name", "pupil"),
        partial(trunk, 8, 6),
        recipe or recipes.find("dho"),
        layers={"feature": ""},
        beside={"labelled": "few"},
        fit=Fit(epochs=2, batch_size=10, evaluate_every=2),
        **how,
    )


def test_a_student_learns_tunes_and_keeps_its_heads_without_any_label_of_its_rows(
    tmp_path: Path,
) -> None:
    snapshot = taught(tmp_path / "cache", data(90), network(), batch_size=90, shard_rows=90)
    again = replace(watched(recipes.find("dho")), name="dho-watched")
    students = [
        pupil(validation="validation"),
        pupil(name="fixed"),
        pupil(again, name="watched"),
    ]

    def trained(rows: ArrayRows, folder: str) -> Any:
        return train(
            *(students, rows, snapshot),
            splits=SPLITS,
            evaluation=Evaluation("test", classification),
            folder=tmp_path / folder,
            runner=LocalRunner(),
        )

    tuned, fixed, other = trained(hidden(), "own")
    assert fixed.content["answer"] == {"alpha": 0.5, "beta": 0.5}
    assert set(load_file(tuned.heads)) == {
        f"{head}.1.{part}" for head in HEADS for part in ("weight", "bias")
    }
    # Being watched changes nothing but what is known of it.
    assert other.metrics == fixed.metrics
    assert -1 <= other.content["state"]["cosine"] <= 1
    assert "state" not in fixed.content
    # What was chosen is the first best on the validation rows, by hand from what was stored.
    heads, module = load_file(tuned.heads), trunk(8, 6)
    module.load_state_dict(load_file(tuned.weights))
    rows: Any = hidden().read(np.arange(48, 70), ["image", "label"])
    feature = module(torch.from_numpy(rows["image"])).detach()
    logits = [feature @ heads[f"{h}.1.weight"].T + heads[f"{h}.1.bias"] for h in HEADS]
    answer = recipes.find("dho").answer
    assert answer is not None
    tried = [(a, b) for a in answer.grid["alpha"] for b in answer.grid["beta"]]
    scores = [
        accuracy(mixed(*logits, alpha=a, beta=b), torch.from_numpy(rows["label"])) for a, b in tried
    ]
    best = tried[scores.index(max(scores))]
    assert tuned.content["answer"] == {"alpha": best[0], "beta": best[1]}
    # Other labels of the test rows move its accuracy, never its settings.
    blind = trained(hidden(shuffled=True), "other")[0]
    assert blind.metrics["accuracy"] != tuned.metrics["accuracy"]
    assert blind.content["answer"] == tuned.content["answer"]
