"""lelp: parts of a class sum to it, and follow only what the logits do not tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, derive, derive_signals, recipes
from stillroom.stages.objectives.logits import kl, soft_cross_entropy
from stillroom.stages.recipes import lelp
from stillroom.storage import Cache, Derived, Reader, Snapshot
from stillroom.storage.errors import SignalError
from tests.stages.builders import taught

WEIGHT = np.random.default_rng(5).standard_normal((3, 9))
X = np.random.default_rng(6).standard_normal((80, 9)).astype(np.float32) * np.linspace(
    1, 3, 9, dtype="f4"
)


def answer(x: NDArray[np.float32]) -> dict[str, Any]:
    return {"embedding": x, "logits": np.float32(x.astype(np.float64) @ WEIGHT.T)}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    teacher = FunctionTeacher("big", answer, ("x",), ("embedding", "logits"))
    return taught(tmp_path_factory.mktemp("taught") / "c", ArrayRows(range(80), x=X), teacher)


@pytest.fixture(scope="module")
def found(snapshot: Snapshot) -> Derived:
    return derive(Cache.at(snapshot.cache), snapshot, lelp.directions(WEIGHT, subclasses=4))


def parts(found: Derived, x: NDArray[Any], beta: float = 0.3, temperature: float = 1.0) -> Any:
    """(n, 3, S) targets."""
    told = answer(x)
    made = lelp.split(**told, found=found.arrays, beta=beta, temperature=temperature)
    return made["subclasses"].reshape(len(x), 3, -1).astype(np.float64)


def softmax(logits: NDArray[Any]) -> Any:
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(-1).numpy()


def test_directions_are_orthonormal_and_orthogonal_to_what_the_logits_tell(found: Derived) -> None:
    for chosen in found["directions"]:
        np.testing.assert_allclose(chosen @ chosen.T, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(chosen @ WEIGHT.T, 0, atol=1e-12)


def test_they_span_the_principal_directions_of_each_class_and_the_scale_is_theirs(
    found: Derived,
) -> None:
    basis = np.linalg.qr(WEIGHT.T)[0]
    called = answer(X)["logits"].argmax(1)
    for c in range(3):
        rest = X[called == c].astype(np.float64)
        rest = rest - rest @ basis @ basis.T
        centred = rest - rest.mean(0)
        _, sizes, top = np.linalg.svd(centred, full_matrices=False)
        mine = found["directions"][c]
        np.testing.assert_allclose(mine.T @ mine, top[:4].T @ top[:4], atol=1e-9)
        variance = (sizes[:4] ** 2).mean() / (len(rest) - 1)
        np.testing.assert_allclose(found["scales"][c] ** 2, variance, rtol=1e-9)


@given(st.integers(0, 2**16), st.floats(0.05, 5), st.floats(0.5, 4))
@settings(max_examples=25, deadline=None)
def test_parts_of_a_class_sum_to_it(
    found: Derived, seed: int, beta: float, temperature: float
) -> None:
    x = np.random.default_rng(seed).standard_normal((6, 9)).astype(np.float32) * 4
    whole = softmax(answer(x)["logits"] / temperature)
    # Logits near 30 are float32: their last bits, by the temperature, are those of a probability.
    together = parts(found, x, beta, temperature).sum(-1)
    np.testing.assert_allclose(together, whole, rtol=1e-5, atol=1e-7)


def test_what_the_logits_tell_does_not_move_the_split(found: Derived) -> None:
    told = answer(X[:10])
    moved = told | {
        "embedding": told["embedding"] + np.random.default_rng(0).standard_normal((10, 3)) @ WEIGHT
    }
    how: dict[str, Any] = {"found": found.arrays, "beta": 0.1, "temperature": 1.0}
    np.testing.assert_allclose(
        lelp.split(**moved, **how)["subclasses"], lelp.split(**told, **how)["subclasses"], atol=1e-7
    )
    other = told | {"embedding": told["embedding"] + found["directions"][0, 0]}
    assert (
        np.abs(
            lelp.split(**other, **how)["subclasses"] - lelp.split(**told, **how)["subclasses"]
        ).max()
        > 0.01
    )


def test_blurred_without_end_every_part_has_the_same_share(found: Derived) -> None:
    whole = softmax(answer(X)["logits"])
    np.testing.assert_allclose(
        parts(found, X, beta=1e9), np.repeat(whole[:, :, None] / 4, 4, -1), atol=1e-7
    )


def test_one_part_for_each_class_is_plain_distillation(snapshot: Snapshot) -> None:
    one = derive(Cache.at(snapshot.cache), snapshot, lelp.directions(WEIGHT, subclasses=1))
    target = torch.from_numpy(parts(one, X)[:, :, 0])
    logits = torch.from_numpy(answer(X)["logits"]).double()
    student = torch.randn(80, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entropy = soft_cross_entropy(logits, logits.softmax(-1))
    found = recipes.find("lelp", subclasses=1).terms[0]
    loss = found({"student.logits": student, "teacher.subclasses": target})
    torch.testing.assert_close(loss - entropy, kl(student, logits), atol=1e-6, rtol=0)


def test_targets_are_cached_as_a_signal_and_few_dimensions_are_refused(
    snapshot: Snapshot, found: Derived
) -> None:
    cache = Cache.at(snapshot.cache)
    made = derive_signals(cache, snapshot, lelp.targets(found, beta=0.3), runner=LocalRunner())
    stored = np.asarray(Reader(made, ["subclasses"]).gather([3, 7])["subclasses"])
    np.testing.assert_allclose(
        stored.reshape(2, 3, 4).astype(float), parts(found, X[[3, 7]]), atol=1e-6
    )
    with pytest.raises(
        SignalError, match=r"7 subclasses need as many directions.*of 9 there are 6"
    ):
        derive(cache, made, lelp.directions(WEIGHT, subclasses=7))


@given(st.integers(0, 2**16), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_the_answer_sums_parts(seed: int, subclasses: int) -> None:
    logits = torch.randn(4, 3 * subclasses, generator=torch.Generator().manual_seed(seed)).double()
    summed = logits.softmax(-1).reshape(4, 3, subclasses).sum(-1)
    torch.testing.assert_close(lelp.marginal(logits, subclasses=subclasses).softmax(-1), summed)
    label = torch.tensor([0, 2, 1, 1])
    hard = lelp.marginal_cross_entropy(logits, label, subclasses=subclasses)
    torch.testing.assert_close(hard, -summed[torch.arange(4), label].log())


def test_labels_are_read_only_where_they_count() -> None:
    assert recipes.find("lelp").columns == ()
    assert recipes.find("lelp", alpha=0.5).columns == ("label",)
    with pytest.raises(
        ValueError, match=r"lelp: subclasses must be at least 1 and alpha in \[0, 1\)"
    ):
        recipes.find("lelp", alpha=1.0)
