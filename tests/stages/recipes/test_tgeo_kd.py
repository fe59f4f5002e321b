"""tgeo-kd: the blend's ends, the state, and the gradient of the step that is looked ahead."""

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

from stillroom.pipeline import LocalRunner
from stillroom.stages import Evaluation, Fit, Record, Student, derivations, derive, recipes, train
from stillroom.stages.evaluating import classification
from stillroom.stages.learning import Learning
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.recipes.tgeo_kd import blended, ratio, state
from stillroom.storage import Cache, Snapshot
from tests.stages.builders import data, network, pupil, taught


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 2**16), st.floats(0.5, 5))
@settings(max_examples=25, deadline=None)
def test_all_trust_is_plain_distillation_and_none_are_the_labels(seed: int, t: float) -> None:
    student, teacher, label = (
        drawn(seed, 5, 4),
        drawn(seed + 1, 5, 4),
        torch.tensor([0, 1, 2, 3, 3]),
    )
    ones, zeros = torch.ones(5), torch.zeros(5)
    soft = kl(student, teacher, temperature=t)
    torch.testing.assert_close(blended(student, teacher, label, ones, temperature=t), soft)
    torch.testing.assert_close(
        blended(student, teacher, label, zeros, temperature=t), cross_entropy(student, label)
    )
    mixed = blended(student, teacher, label, 0.25 * ones, temperature=t)
    torch.testing.assert_close(mixed, 0.25 * soft + 0.75 * cross_entropy(student, label))


def test_the_state_has_nine_numbers_for_each_class_and_no_gradient() -> None:
    student, teacher = drawn(0, 2, 3).requires_grad_(), drawn(1, 2, 3)
    averages, label = drawn(2, 3, 3).softmax(-1), torch.tensor([2, 0])
    found = state(student, teacher, label, averages)
    assert found.shape == (2, 27)
    assert not found.requires_grad
    s, t, a = student.detach().softmax(-1), teacher.softmax(-1), averages[label]
    g = torch.tensor([[0.0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    wanted = [s, t, g, a, (a - s) ** 2, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2, (a - g) ** 2]
    torch.testing.assert_close(found.reshape(2, 9, 3), torch.stack(wanted, 1))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def linear() -> torch.nn.Module:
    return torch.nn.Linear(8, 4).double()


def looking(seed: int = 0) -> tuple[Learning, dict[str, Any]]:
    """A student of float64 with a batch of 12 rows, 6 of them for validation."""
    student = Student("s", linear, recipes.find("tgeo-kd", hidden=5), beside={"validation": "v"})
    torch.manual_seed(seed)
    table = {"averages": drawn(9, 4, 4).softmax(-1)}
    learning = Learning(student, student.build(), torch.device("cpu"), table)
    main = torch.arange(12) < 6
    batch = {
        "row.image": drawn(seed, 12, 8),
        "row.label": torch.arange(12) % 4,
        "teacher.logits": drawn(seed + 1, 12, 4),
        "batch.main": main,
        "batch.validation": ~main,
    }
    learning.prepare(batch, 10, 10)
    learning.heads.double()
    learning.tensors = learning.given(batch)
    return learning, batch


def blend(rows: dict[str, Any], alpha: torch.Tensor) -> torch.Tensor:
    student, teacher, label = (rows[n] for n in ("student.logits", "teacher.logits", "row.label"))
    return blended(student, teacher, label, alpha, temperature=1.5).mean()


def far(learning: Learning, *, unrolled: bool = True) -> torch.Tensor:
    """The validation loss after a step of 0.3, as a function of the MLP."""
    rows, held = learning.of_stream("main"), learning.of_stream("validation")
    rows |= learning.outputs(rows)
    (head,) = learning.student.recipe.heads
    alpha = learning.apply(head, rows)
    loss = blend(rows, alpha if unrolled else alpha.detach())
    after = learning.ahead(loss, 0.3)
    return cross_entropy(learning.outputs(held, after)["student.logits"], held["row.label"]).mean()


def test_the_gradient_through_the_look_ahead_is_that_of_finite_differences() -> None:
    learning, _ = looking()
    bias = list(learning.heads["ratio"].parameters())[-1]
    (found,) = torch.autograd.grad(far(learning), bias)
    assert found.abs().item() > 1e-6
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            bias.add_(step)
        values.append(far(learning).item())
    assert found.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_without_the_look_ahead_the_gradient_is_exactly_zero() -> None:
    learning, _ = looking()
    mine = list(learning.heads["ratio"].parameters())
    how: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    assert all(
        (g == 0).all() for g in torch.autograd.grad(far(learning, unrolled=False), mine, **how)
    )
    assert any((g != 0).any() for g in torch.autograd.grad(far(learning), mine, **how))


def test_one_step_moves_the_student_by_the_blend_with_the_new_alpha() -> None:
    learning, batch = looking()
    step = learning.student.recipe.step
    assert step is not None
    before = {n: p.detach().clone() for n, p in learning.module.named_parameters()}
    loss = step(learning)
    (head,) = learning.student.recipe.heads
    other, _ = looking()
    other.heads.load_state_dict(learning.heads.state_dict())
    rows = other.of_stream("main")
    rows |= other.outputs(rows)
    again = blend(rows, other.apply(head, rows).detach())
    torch.testing.assert_close(loss, again)
    other.descend(again)
    for (name, mine), theirs in zip(
        learning.module.named_parameters(), other.module.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
        assert not torch.equal(mine, before[name])
    assert batch["row.image"].grad is None


def learned(folder: Path, snapshot: Snapshot, **how: Any) -> Record:
    rows = data()
    keys = rows.keys.to_pylist()
    answers = derive(
        Cache.at(snapshot.cache),
        snapshot,
        derivations.class_answers("logits", "label"),
        rows=rows,
        keys=keys[:30],
    )
    np.testing.assert_allclose(answers["answers"].sum(1), 1)
    made = recipes.find("tgeo-kd", hidden=4, **how)
    kept = replace(made, heads=(replace(made.heads[0], kept=True),))
    (record,) = train(
        [
            Student(
                "s", pupil, kept, beside={"validation": "held"}, fit=Fit(epochs=12, batch_size=15)
            )
        ],
        rows,
        snapshot,
        splits={"train": keys[:30], "held": keys[30:40], "test": keys[40:]},
        evaluation=Evaluation("test", classification, signals=("logits",)),
        folder=folder,
        runner=LocalRunner(),
        tables={"averages": answers["answers"].astype(np.float32)},
    )
    return record


def test_as_released_weight_decay_alone_moves_the_ratio(tmp_path: Path, snapshot: Snapshot) -> None:
    as_released = load_file(learned(tmp_path, snapshot, unrolled=False, rate=0.01).heads)
    still = load_file(learned(tmp_path, snapshot, unrolled=False, decay=0.0).heads)
    moved = load_file(learned(tmp_path, snapshot, decay=0.0).heads)
    assert any((still[n] - moved[n]).abs().max() > 0.05 for n in still)
    for name, tensor in still.items():  # as they were drawn
        shrunk = (as_released[name].abs() <= tensor.abs().clamp_min(0.02) + 1e-6).float().mean()
        assert shrunk == 1


def test_class_answers_are_mean_probabilities_of_each_label(snapshot: Snapshot) -> None:
    from stillroom.storage import Reader

    rows = data()
    label = np.asarray(rows.read(np.arange(60), ["label"])["label"])
    made = derivations.class_answers("logits", "label")
    found = derive(Cache.at(snapshot.cache), snapshot, made, rows=rows)
    logits = Reader(snapshot, ["logits"]).gather(rows.keys)["logits"]
    likely = torch.from_numpy(logits).double().softmax(-1).numpy()
    assert found["counts"].tolist() == np.bincount(label, minlength=4).tolist()
    for c in range(4):
        np.testing.assert_allclose(found["answers"][c], likely[label == c].mean(0), rtol=1e-10)
    some = [key for key, one in zip(rows.keys.to_pylist(), label, strict=True) if one != 2]
    part = derive(Cache.at(snapshot.cache), snapshot, made, rows=rows, keys=some)
    np.testing.assert_allclose(part["answers"][2], 0.25)


def test_the_ratio_is_a_share_of_each_row_and_wrong_settings_are_refused() -> None:
    module = partial(ratio, hidden=8)(((4,), (4,), (), (4,)), ())
    seen = drawn(0, 3, 4).float(), drawn(1, 3, 4).float(), torch.tensor([0, 3, 1]), torch.eye(4)
    alpha = module(*seen)
    assert alpha.shape == (3,)
    assert ((alpha > 0) & (alpha < 1)).all()
    with pytest.raises(ValueError, match="tgeo-kd: ahead must be above 0, found 0"):
        recipes.find("tgeo-kd", ahead=0)


def test_recipes_of_the_same_settings_are_equal_and_of_others_are_not() -> None:
    assert recipes.find("tgeo-kd") == recipes.find("tgeo-kd")
    assert hash(recipes.find("tgeo-kd").heads[0]) == hash(recipes.find("tgeo-kd").heads[0])
    assert recipes.find("tgeo-kd") != recipes.find("tgeo-kd", rate=0.2)
    assert recipes.find("tgeo-kd") != recipes.find("tgeo-kd", hidden=64)
