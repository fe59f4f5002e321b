"""Arrays derived over a whole cache: exact against numpy, whatever the layout, and kept once."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from stillroom.stages import ArrayRows, Summary, derivations, derive, derived
from stillroom.stages.deriving.methods.moments import merged, moments_of
from stillroom.stages.deriving.methods.pca import signed
from stillroom.stages.deriving.methods.quantiles import values_of, words_of
from stillroom.storage import (
    Cache,
    RowsError,
    SignalError,
    Snapshot,
    UnknownRowError,
    UnknownSignalError,
)
from tests.stages.deriving_builders import (
    CLASSES,
    WIDTH,
    by_key,
    cached,
    features,
    in_pieces,
    labels,
    source,
)

SMALL = {"block_bytes": 800}
"""Three blocks of each pass at least."""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Nobody changes this cache but by adding derived results."""
    return cached(tmp_path_factory.mktemp("one") / "c")


@pytest.fixture(scope="module")
def other_layout(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The same rows, in three segments of each teacher, the last ones first."""
    snapshot = in_pieces(tmp_path_factory.mktemp("pieces") / "c")
    assert len(snapshot.segment_names()) > 4
    assert snapshot.keys.to_pylist() != sorted(snapshot.keys.to_pylist())
    return snapshot


def found(snapshot: Snapshot, summary: Summary, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"rows": source(), **SMALL, **more}
    return dict(derive(Cache(snapshot.cache), snapshot, summary, **given).arrays)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(1, 3), st.integers(1, 4))
def test_moments_of_any_split_are_those_of_the_whole(
    data: st.DataObject, rows: int, width: int, classes: int
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = 1e4 + random.standard_normal((rows, width)) * 3
    marks = random.integers(0, classes, rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    parts = [
        moments_of(values[low:high], marks[low:high], classes, squares=True)
        for low, high in zip([0, *cuts], [*cuts, rows], strict=True)
    ]
    while len(parts) > 1:
        size = data.draw(st.integers(2, len(parts)))
        parts = [merged(parts[:size]), *parts[size:]]
    whole = parts[0]
    assert whole.squares is not None
    for c in range(classes):
        mine = values[marks == c]
        assert whole.counts[c] == len(mine)
        if len(mine):
            assert_allclose(whole.means[c], mine.mean(axis=0), rtol=1e-13)
            gaps = mine - mine.mean(axis=0)
            assert_allclose(whole.squares[c], gaps.T @ gaps, rtol=1e-9, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=30))
def test_words_are_in_the_order_of_values_and_lead_back(values: list[float]) -> None:
    given = np.array(values)
    assert_array_equal(values_of(words_of(given)), given)
    assert_array_equal(values_of(np.sort(words_of(given))), np.sort(given))


def test_means_and_covariances_are_those_of_numpy(one: Snapshot) -> None:
    x, y = by_key(one, "feature").astype(float), labels(90)
    whole = found(one, derivations.moments("feature"))
    assert_allclose(whole["mean"], x.mean(axis=0), rtol=1e-13)
    assert_allclose(whole["covariance"], np.cov(x.T), rtol=1e-10)
    assert whole["count"] == 90
    each = found(one, derivations.class_moments("feature", "label", classes=5))
    assert each["counts"].tolist() == [*np.bincount(y), 0]
    assert np.isnan(each["means"][4]).all()
    assert np.isnan(each["covariances"][4]).all()
    pooled = np.zeros((WIDTH, WIDTH))
    for c in range(CLASSES):
        assert_allclose(each["means"][c], x[y == c].mean(axis=0), rtol=1e-13)
        assert_allclose(each["covariances"][c], np.cov(x[y == c].T), rtol=1e-10)
        pooled += np.cov(x[y == c].T) * ((y == c).sum() - 1)
    assert_allclose(each["within"], pooled / (90 - CLASSES), rtol=1e-10)
    means = found(one, derivations.class_means("feature", "label", classes=5))
    assert set(means) == {"counts", "means"}
    assert_array_equal(means["means"], each["means"])


@pytest.mark.parametrize("solver", ["covariance", "subspace"])
def test_components_are_the_eigenvectors_of_the_covariance(one: Snapshot, solver: str) -> None:
    x, y = by_key(one, "feature").astype(float), labels(90)
    mine = found(one, derivations.pca("feature", 3, solver=solver))
    variances, vectors = np.linalg.eigh(np.cov(x.T))
    assert_allclose(mine["variances"], variances[::-1][:3], rtol=1e-9)
    assert_allclose(mine["components"], signed(vectors[:, ::-1].T[:3]), atol=1e-6)
    assert_allclose(mine["total_variance"], np.trace(np.cov(x.T)), rtol=1e-12)
    assert mine["residuals"].max() < 1e-6
    each = found(one, derivations.class_pca("feature", "label", 2, solver=solver))
    for c in range(CLASSES):
        variances, vectors = np.linalg.eigh(np.cov(x[y == c].T))
        assert_allclose(each["variances"][c], variances[::-1][:2], rtol=1e-9)
        assert_allclose(each["components"][c], signed(vectors[:, ::-1].T[:2]), atol=1e-6)


def test_directions_without_variance_are_zeros_and_not_noise(one: Snapshot) -> None:
    three = found(one, derivations.pca("feature", 5, name="three"), keys=[4, 40, 80])
    assert (three["variances"][:2] > 1e-3).all()
    assert (three["components"][2:] == 0).all()
    assert (three["variances"][2:] == 0).all()


def test_quantiles_are_those_of_numpy_to_the_last_bit(one: Snapshot) -> None:
    x, y, at = by_key(one, "feature").astype(float), labels(90), [0, 0.05, 0.5, 0.731, 1]
    whole = found(one, derivations.quantiles("feature", at))
    assert_array_equal(whole["quantiles"], np.quantile(x, at, axis=0))
    each = found(one, derivations.quantiles("feature", at, label="label", classes=5, name="each"))
    for c in range(CLASSES):
        assert_array_equal(each["quantiles"][c], np.quantile(x[y == c], at, axis=0))
    assert np.isnan(each["quantiles"][4]).all()


def test_the_temperature_is_where_the_likelihood_is_flat(one: Snapshot) -> None:
    keys = list(range(0, 90, 2))
    mine = found(one, derivations.temperature("logits", "label"), keys=keys)
    z, y = by_key(one, "logits").astype(float)[keys], labels(90)[keys]

    def nll(t: float) -> float:
        scaled = z / t
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((total - scaled[np.arange(len(y)), y]).mean())

    t = float(mine["temperature"])
    assert_allclose(mine["nll"], nll(t), rtol=1e-12)
    assert_allclose(mine["nll_before"], nll(1.0), rtol=1e-12)
    assert nll(t) < nll(1.0)
    # Convex in 1 / T: flat there, and rising on both sides.
    assert abs(nll(1 / (1 / t + 1e-5)) - nll(1 / (1 / t - 1e-5))) / 2e-5 < 1e-7
    assert min(nll(t * 1.01), nll(t * 0.99)) > nll(t)


def test_a_temperature_that_there_is_not_is_refused(one: Snapshot) -> None:
    z = by_key(one, "logits")
    perfect = ArrayRows(range(90), label=z.argmax(axis=1))
    with pytest.raises(SignalError, match="tells every one of the 90 labels"):
        found(one, derivations.temperature("logits", "label"), rows=perfect)
    worst = ArrayRows(range(90), label=z.argmin(axis=1))
    with pytest.raises(SignalError, match="no more of the labels than chance"):
        found(one, derivations.temperature("logits", "label"), rows=worst)


def test_k_means_ends_where_no_centre_would_move(one: Snapshot) -> None:
    x = by_key(one, "feature").astype(float)
    mine = found(one, derivations.kmeans("feature", CLASSES, seed=3))
    gaps = ((x[:, None] - mine["centroids"]) ** 2).sum(axis=2)
    label = gaps.argmin(axis=1)
    assert_array_equal(mine["counts"], np.bincount(label, minlength=CLASSES))
    assert_allclose(mine["inertia"], gaps.min(axis=1).sum(), rtol=1e-12)
    for c in range(CLASSES):
        assert_allclose(mine["centroids"][c], x[label == c].mean(axis=0), rtol=1e-6)
    batches = found(one, derivations.minibatch_kmeans("feature", CLASSES, batch_rows=16, seed=3))
    assert batches["counts"].sum() == 90
    assert batches["inertia"] < 2 * mine["inertia"]


def test_an_empty_cluster_moves_to_the_row_that_is_served_worst(
    one: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    kmeans = import_module("stillroom.stages.deriving.methods.kmeans")
    x = features(90).astype(float)
    lost = np.stack([x.mean(axis=0), np.full(WIDTH, 1e6)])
    monkeypatch.setattr(kmeans, "_seeds", lambda table, clusters, seed: lost)
    mine = found(one, derivations.kmeans("feature", 2, rounds=1, name="lost"))
    far = x[((x - x.mean(axis=0)) ** 2).sum(axis=1).argmax()]
    assert_allclose(mine["centroids"][1], far)
    assert (mine["counts"] > 0).all()


EVERY: dict[str, Callable[[], Summary]] = {
    "moments": lambda: derivations.moments("feature"),
    "class_moments": lambda: derivations.class_moments("feature", "label"),
    "pca": lambda: derivations.pca("feature", 3),
    "subspace": lambda: derivations.pca("feature", 3, solver="subspace", name="subspace"),
    "kmeans": lambda: derivations.kmeans("feature", 5),
    "minibatch": lambda: derivations.minibatch_kmeans("feature", 5, batch_rows=16),
    "quantiles": lambda: derivations.quantiles("feature", [0.1, 0.9], label="label"),
    "temperature": lambda: derivations.temperature("logits", "label"),
}


QUICK = ("class_moments", "kmeans", "temperature")


@pytest.mark.parametrize(
    "summary",
    [
        pytest.param(summary, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, summary in EVERY.items()
    ],
)
def test_layout_order_and_blocks_do_not_count(
    one: Snapshot, other_layout: Snapshot, summary: Callable[[], Summary]
) -> None:
    mine = derive(Cache(one.cache), one, summary(), rows=source(), **SMALL)  # type: ignore[arg-type]
    cache = Cache(other_layout.cache)
    theirs = derive(cache, other_layout, summary(), rows=source(), block_bytes=2000, workers=1)
    # Another cache with another layout, and the same thing by identity.
    assert mine.digest == theirs.digest
    for name, array in mine.arrays.items():
        assert_allclose(theirs[name], array, rtol=1e-9, atol=1e-9, err_msg=name)


def test_what_a_function_does_not_take_is_said(one: Snapshot) -> None:
    cache = Cache(one.cache)
    with pytest.raises(SignalError, match=r"'one/tokens' is ragged.*pooled"):
        derive(cache, one, derivations.moments("tokens"))
    with pytest.raises(UnknownSignalError, match="did you mean 'feature'"):
        derive(cache, one, derivations.moments("featur"))
    with pytest.raises(RowsError, match="no data set was given"):
        derive(cache, one, derivations.class_means("feature", "label"))
    with pytest.raises(SignalError, match="run from 0 to 3; expected whole numbers from 0 below 3"):
        found(one, derivations.class_means("feature", "label", classes=3))
    with pytest.raises(SignalError, match=r"7 components were asked for; .* has 6 dimensions"):
        derive(cache, one, derivations.pca("feature", 7))
    with pytest.raises(SignalError, match="91 clusters were asked for of 90 rows"):
        derive(cache, one, derivations.kmeans("feature", 91))
    with pytest.raises(UnknownRowError, match="1 of 2 rows are not in snapshot"):
        derive(cache, one, derivations.moments("feature"), keys=[1, 1000])
    with pytest.raises(ValueError, match=r"'ray': expected .*dask_on_ray"):
        derive(cache, one, derivations.moments("feature", name="m"), scheduler="ray")
    derive(cache, one, derivations.moments("feature"))
    with pytest.raises(UnknownSignalError, match=r"no derived result 'moment'.*'moments'"):
        derived(cache, "moment")
