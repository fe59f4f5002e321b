"""Dense Hebbian memories: closed forms, energies that never rise, and class means from the cache."""

from __future__ import annotations

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
    derivations,
    derive,
    recipes,
    train,
)
from stillroom.stages.heads.memories import energy, memory, overlaps, recalled, updated
from stillroom.stages.recipes.dense_hebbian_supervised import archive, retrieval
from stillroom.storage import Cache
from tests.stages.builders import taught

quick = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 10_000)
SIZE, CLASSES = 30, 4


def signs(seed: int, rows: int, size: int = SIZE) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)).double().sign()


def patterns(seed: int, rows: int = 5) -> Tensor:
    """Means of some examples, between -1 and 1."""
    return signs(seed, rows * 4).reshape(rows, 4, SIZE).mean(1)


@quick
@given(seed=seeds, order=st.sampled_from([2, 4, 6]))
def test_no_update_raises_the_energy_of_an_even_order(seed: int, order: int) -> None:
    held, state = patterns(seed), signs(seed + 1, 3)
    before = energy(held, state, order=order)
    after = energy(held, updated(held, state, order=order), order=order)
    assert (after <= before + 1e-9).all()
    one = state.clone()  # one unit alone: asynchronous
    one[:, 7] = updated(held, state, order=order)[:, 7]
    assert (energy(held, one, order=order) <= before + 1e-9).all()


@quick
@given(seed=seeds, order=st.sampled_from([2, 4]))
def test_a_state_and_its_opposite_are_alike_where_the_order_is_even(seed: int, order: int) -> None:
    held, state = patterns(seed), signs(seed + 1, 3)
    torch.testing.assert_close(energy(held, state, order=order), energy(held, -state, order=order))
    assert torch.equal(recalled(held, -state, order=order), -recalled(held, state, order=order))


@quick
@given(seed=seeds)
def test_order_two_is_hopfields_network(seed: int) -> None:
    """With the couplings J = patterns^T patterns / N written out."""
    held, state = signs(seed, 3, 31), signs(seed + 1, 4, 31)  # odd numbers: no field is 0
    couplings = held.T @ held / 31
    expected = -0.5 * torch.einsum("ni,ij,nj->n", state, couplings, state)
    torch.testing.assert_close(energy(held, state, order=2), expected)
    assert torch.equal(updated(held, state, order=2), (state @ couplings).sign())


def test_order_four_is_the_tensor_of_couplings() -> None:
    held, state = signs(0, 3, 6), signs(1, 4, 6)
    couplings = torch.einsum("mi,mj,mk,ml->ijkl", held, held, held, held) / 6**3
    expected = -0.5 * torch.einsum("ijkl,ni,nj,nk,nl->n", couplings, state, state, state, state)
    torch.testing.assert_close(energy(held, state, order=4), expected)


@quick
@given(seed=seeds, order=st.sampled_from([2, 3, 4]))
def test_a_single_pattern_is_recalled_at_once(seed: int, order: int) -> None:
    held = signs(seed, 1)
    cue = held.clone()
    cue[0, :5] *= -1
    assert torch.equal(updated(held, cue, order=order), held)
    torch.testing.assert_close(overlaps(held, held), torch.ones(1, 1, dtype=torch.float64))


def data(examples: int, classes: int = CLASSES) -> ArrayRows:
    numbers = np.random.default_rng(0)
    archetypes = numbers.choice(np.array([-1, 1], np.int8), (classes, SIZE))
    label = np.repeat(np.arange(classes), examples)
    keys = [f"{c}-{i}" for c in range(classes) for i in range(examples)]
    given = archetypes[label]
    return ArrayRows(keys, label=label, archetype=given, cue=given, seed=np.arange(len(label)))


def learned(
    folder: Path, rows: ArrayRows, *, quality: float, supervised: bool = True, epochs: int = 1
) -> tuple[Tensor, dict[str, Any], Any]:
    """The memory's patterns, what it retrieved, and the snapshot that it learned from."""
    answer = partial(archive, quality=quality)
    teacher = FunctionTeacher("archive", answer, ("archetype", "seed"), ("pattern",))
    snapshot = taught(folder / "c", rows, teacher)
    slots = CLASSES if supervised else len(rows)
    student = Student(
        "memory",
        partial(memory, slots, SIZE),
        recipes.find("dense-hebbian-supervised", supervised=supervised),
        inputs=("cue",),
        layers={"state": ":state"},
        fit=Fit(epochs=epochs, batch_size=7),
    )
    (record,) = train(
        [student],
        rows,
        snapshot,
        splits={"all": rows.keys.to_pylist(), "train": rows.keys.to_pylist()},
        evaluation=Evaluation("all", retrieval, ("archetype",)),
        folder=folder / "students",
        runner=LocalRunner(),
    )
    assert record.content["parameters"] == 0
    return load_file(record.weights)["patterns"], dict(record.metrics), snapshot


def test_the_memory_holds_the_class_means_that_the_cache_derives(tmp_path: Path) -> None:
    rows = data(9)
    found, _, snapshot = learned(tmp_path, rows, quality=0.3)
    means = derivations.class_means("pattern", "label")
    expected = derive(Cache.at(tmp_path / "c"), snapshot, means, rows=rows)["means"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_rows_that_come_twice_change_no_mean(tmp_path: Path) -> None:
    once, _, _ = learned(tmp_path / "a", data(6), quality=0.3)
    twice, _, _ = learned(tmp_path / "b", data(6), quality=0.3, epochs=3)
    torch.testing.assert_close(once, twice)


def test_perfect_examples_give_the_archetypes(tmp_path: Path) -> None:
    rows = data(3)
    found, metrics, _ = learned(tmp_path, rows, quality=1.0)
    archetypes = rows.read(np.arange(0, 12, 3), ["archetype"])["archetype"]
    np.testing.assert_array_equal(found.numpy(), archetypes)
    assert metrics["overlap"] == 1.0


def test_with_one_example_of_each_a_teacher_adds_nothing(tmp_path: Path) -> None:
    taught_, metrics, _ = learned(tmp_path / "a", data(1), quality=0.5)
    alone, same, _ = learned(tmp_path / "b", data(1), quality=0.5, supervised=False)
    assert torch.equal(taught_, alone)
    assert metrics == same


def test_examples_keep_their_archetypes_bits_as_often_as_said() -> None:
    archetype = np.ones((400, 200), np.int8)
    made = archive(archetype, np.arange(400), quality=0.3)["pattern"]
    assert set(np.unique(made)) == {-1, 1}
    assert made.mean() == pytest.approx(0.3, abs=0.02)
    # The mean of M examples is as far from r as the archive's entropy rho = (1 - r^2) / (M r^2) says.
    spread = made.reshape(4, 100, 200).mean(axis=1).var()
    assert spread == pytest.approx((1 - 0.3**2) / 100, rel=0.2)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="supervised is True or False, found 'yes'"):
        recipes.find("dense-hebbian-supervised", supervised="yes")
