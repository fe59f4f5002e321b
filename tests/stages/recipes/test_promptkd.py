"""promptkd: class vectors are shared and still, classes can be added, and only prompts learn."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    Evaluation,
    Fit,
    FunctionTeacher,
    Record,
    Student,
    classification,
    recipes,
    train,
)
from stillroom.stages.objectives.logits import kl
from stillroom.stages.proving.models import prompted
from stillroom.stages.recipes.promptkd import class_logits, projector, shared_kl
from stillroom.storage import Snapshot
from tests.stages.builders import data, stamps, taught

SETTINGS: dict[str, Any] = {"temperature": 2.0, "teacher_scale": 30.0, "student_scale": 10.0}


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 2**16), st.integers(2, 6), st.floats(0.5, 4))
@settings(max_examples=25, deadline=None)
def test_it_is_the_mean_over_classes_of_plain_soft_targets(
    seed: int, classes: int, temperature: float
) -> None:
    student, teacher, vectors = (
        drawn(seed, 5, 3),
        drawn(seed + 1, 5, 3),
        drawn(seed + 2, classes, 3),
    )
    how = SETTINGS | {"temperature": temperature}
    said = class_logits(student, vectors, scale=10.0)
    taught = class_logits(teacher, vectors, scale=30.0)
    found = shared_kl(student, teacher, vectors, **how)
    torch.testing.assert_close(
        1000 * found.mean(), 1000 / classes * kl(said, taught, temperature=temperature).mean()
    )


def test_it_is_zero_only_where_logits_agree_up_to_an_offset_of_each_row() -> None:
    vectors = drawn(0, 4, 6)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    # What is orthogonal to all differences of class vectors adds the same to every class.
    away = torch.linalg.svd(vectors[1:] - vectors[:1])[2][-1]
    teacher = drawn(1, 3, 6)
    moved = teacher / teacher.norm(dim=-1, keepdim=True) + 0.7 * away
    scale = moved.norm(dim=-1)
    alike: dict[str, Any] = {"temperature": 1.0, "teacher_scale": 3.0}
    for row in range(3):
        how = alike | {"student_scale": 3.0 * scale[row].item()}
        same = shared_kl(moved[row : row + 1], teacher[row : row + 1], vectors, **how)
        assert same.abs().max() < 1e-12
        other = shared_kl(
            moved[row : row + 1] + 0.1 * vectors[0], teacher[row : row + 1], vectors, **how
        )
        assert other.min() > 1e-6


def test_neither_class_vectors_nor_the_cache_get_a_gradient() -> None:
    student, teacher, vectors = (drawn(i, 4, 3).requires_grad_() for i in range(3))
    own = drawn(4, 4, 3).requires_grad_()
    for given_own in ((), (own,)):
        student.grad = None
        shared_kl(student, teacher, vectors, *given_own, **SETTINGS).sum().backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
    assert (teacher.grad, vectors.grad, own.grad) == (None, None, None)


def embed(image: Any) -> dict[str, Any]:
    return {"embedding": image[:, :5]}


def vectors(classes: int) -> NDArray[np.float32]:
    found = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
    return found[:classes]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    teacher = FunctionTeacher("clip", embed, ("image",), ("embedding",))
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=teacher)


def learned(folder: Path, snapshot: Snapshot, classes: int) -> Record:
    rows = data()
    keys = rows.keys.to_pylist()
    student = Student(
        "s",
        partial(prompted, 8, 7, seed=3),
        recipes.find("promptkd"),
        layers={"feature": ""},
        fit=Fit(epochs=2, batch_size=20),
    )
    (record,) = train(
        [student],
        rows,
        snapshot,
        splits={"train": keys[:40], "test": keys[40:]},
        evaluation=Evaluation("test", classification),
        folder=folder,
        runner=LocalRunner(),
        tables={"classes": vectors(classes)},
    )
    return record


def test_only_prompt_and_projector_learn_and_both_are_kept(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    record = learned(tmp_path, snapshot, 4)
    before, after = prompted(8, 7, seed=3).state_dict(), load_file(record.weights)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"1.bias"}
    module, heads = projector((7,), (5,)), load_file(record.heads)
    module.load_state_dict({n.removeprefix("image."): t for n, t in heads.items()})  # all of it
    assert record.metrics["accuracy"] >= 0


def test_a_class_is_added_without_touching_the_cache(tmp_path: Path, snapshot: Snapshot) -> None:
    cache = Path(str(snapshot.cache))
    before = stamps(cache)
    four, five = learned(tmp_path, snapshot, 4), learned(tmp_path, snapshot, 5)
    assert stamps(cache) == before
    assert four.content["digest"] != five.content["digest"]
    embedding = torch.from_numpy(embed(data().read(np.arange(3), ["image"])["image"])["embedding"])
    few, more = (class_logits(embedding, torch.from_numpy(vectors(n)), scale=100.0) for n in (4, 5))
    torch.testing.assert_close(more[:, :4], few)
    assert not torch.allclose(more.softmax(-1)[:, :4], few.softmax(-1))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="promptkd: temperature must be above 0, found 0"):
        recipes.find("promptkd", temperature=0)
    assert recipes.find("promptkd").columns == ()
