"""Signals derived row by row: exact, incremental, served and cared for like a teacher's."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    ArrayRows,
    Evaluation,
    Fit,
    RowWise,
    Student,
    classification,
    derivations,
    derive,
    derive_signals,
    derived,
    recipes,
    repair,
    teach,
    train,
)
from stillroom.stages.deriving.signal_rows import SignalRows
from stillroom.stages.deriving.teacher import DerivedTeacher
from stillroom.storage import (
    Cache,
    Reader,
    RowsError,
    SignalError,
    Snapshot,
    StaleError,
    UnknownRowError,
    UnknownSignalError,
    compact,
    prune,
    verify,
)
from tests.stages.builders import Heard, tree
from tests.stages.deriving_builders import (
    CLASSES,
    by_key,
    cached,
    features,
    first_teacher,
    in_pieces,
    labels,
    second_teacher,
    source,
)

BOTH = ["one/logits", "two/scores"]


def softmax(z: Any) -> Any:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def made(snapshot: Snapshot, derivation: RowWise, **more: Any) -> Snapshot:
    return derive_signals(
        Cache(snapshot.cache), snapshot, derivation, **{"shard_rows": 20, "batch_size": 16, **more}
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Everything is derived from it by the tests, one after another."""
    return cached(tmp_path_factory.mktemp("one") / "c")


def newest(snapshot: Snapshot) -> Snapshot:
    return Cache(snapshot.cache).snapshot()


def test_ensembles_are_means_of_what_they_say(one: Snapshot) -> None:
    a, b = (by_key(one, name).astype(float) for name in BOTH)
    for mean in ("logits", "probabilities", "log-probabilities"):
        name = f"mean-{mean}"
        after = made(newest(one), derivations.ensemble(BOTH, mean=mean, weights=(3, 1), name=name))
        mine = by_key(after, name)
        if mean == "logits":
            assert_allclose(mine, 0.75 * a + 0.25 * b, rtol=1e-6, atol=1e-6)
        elif mean == "probabilities":
            assert_allclose(softmax(mine), 0.75 * softmax(a) + 0.25 * softmax(b), rtol=1e-5)
        else:
            expected = 0.75 * np.log(softmax(a)) + 0.25 * np.log(softmax(b))
            assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    # Every signal that was served is served still.
    assert {"feature", "logits", "tokens", "scores"} <= set(newest(one).signals)
    assert_array_equal(by_key(newest(one), "logits"), by_key(one, "logits"))
    assert not verify(one.cache).problems


def test_what_stored_results_decide_follows_them(one: Snapshot) -> None:
    cache, x = Cache(one.cache), by_key(one, "feature").astype(float)
    groups = derive(cache, newest(one), derivations.kmeans("feature", 3))
    after = made(newest(one), derivations.assigned("feature", groups))
    gaps = ((x[:, None] - groups["centroids"]) ** 2).sum(axis=2)
    assert_array_equal(by_key(after, "cluster"), gaps.argmin(axis=1))
    assert_allclose(by_key(after, "cluster_distance"), gaps.min(axis=1), rtol=1e-5)
    basis = derive(cache, newest(one), derivations.pca("feature", 2))
    after = made(newest(one), derivations.projected("feature", basis))
    expected = (x - x.mean(axis=0)) @ basis["components"].T
    assert_allclose(by_key(after, "pc"), expected, rtol=1e-4, atol=1e-4)
    fitted = derive(cache, newest(one), derivations.temperature("logits", "label"), rows=source())
    after = made(newest(one), derivations.calibrated("logits", fitted))
    expected = by_key(one, "logits") / float(fitted["temperature"])
    assert_allclose(by_key(after, "calibrated"), expected, rtol=1e-6)
    # Labels may be cached signals as well.
    means = derive(cache, newest(one), derivations.class_means("feature", "cluster", name="of"))
    assert_allclose(means["means"], groups["centroids"], rtol=1e-6)


def test_agreement_and_pooling(one: Snapshot) -> None:
    after = made(newest(one), derivations.agreement(BOTH, label="label"), rows=source())
    a, b = (by_key(one, name).argmax(axis=1) for name in BOTH)
    assert_array_equal(by_key(after, "agree"), a == b)
    right = np.stack([a == labels(90), b == labels(90)], axis=1)
    assert_array_equal(by_key(after, "agree_right"), right)
    after = made(newest(one), derivations.pooled("tokens"))
    x = features(90)
    expected = [row[: 1 + int(row[0]) % 3].astype(float).mean() for row in x]
    assert_allclose(by_key(after, "pooled"), expected, rtol=1e-6)


def nearest_by_hand(x: Any, count: int, metric: str) -> tuple[Any, Any]:
    if metric == "cosine":
        x = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
    gaps = ((x[:, None] - x) ** 2).sum(axis=2)
    np.fill_diagonal(gaps, np.inf)
    order = np.argsort(gaps, axis=1, kind="stable")[:, :count]
    found = np.take_along_axis(gaps, order, axis=1)
    return order, found / 2 if metric == "cosine" else np.sqrt(found)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_neighbours_are_exact_and_ties_go_by_key(tmp_path: Path, metric: str) -> None:
    rows = source()
    x = features(90)
    x[[50, 7, 31, 88, 12]] = x[50]  # five alike, so that the fourth neighbour is a tie among many
    rows = ArrayRows(range(90), x=x, label=labels(90))
    snapshot = cached(tmp_path / "c", rows)
    after = made(snapshot, derivations.neighbours("feature", 3, metric=metric))
    order, gaps = nearest_by_hand(x.astype(float), 3, metric)
    assert_array_equal(by_key(after, "neighbours"), order)
    assert_allclose(by_key(after, "neighbours_distance"), gaps, rtol=1e-6, atol=1e-9)
    assert by_key(after, "neighbours")[50].tolist() == [7, 12, 31]


@pytest.mark.slow
def test_neighbours_do_not_hang_on_the_layout_and_name_keys_that_are_texts(tmp_path: Path) -> None:
    one = made(cached(tmp_path / "a"), derivations.neighbours("feature", 4))
    two = made(in_pieces(tmp_path / "b", 2), derivations.neighbours("feature", 4), shard_rows=33)
    assert_array_equal(by_key(one, "neighbours"), by_key(two, "neighbours"))
    rows = source(12)
    named = ArrayRows([f"k{i:02}" for i in range(12)], x=features(12), label=labels(12))
    numbers = made(cached(tmp_path / "n", rows), derivations.neighbours("feature", 2))
    texts = made(cached(tmp_path / "t", named), derivations.neighbours("feature", 2))
    expected = [[f"k{i:02}" for i in row] for row in by_key(numbers, "neighbours").tolist()]
    assert [json.loads(text) for text in by_key(texts, "neighbours")] == expected


def test_new_rows_alone_are_computed_and_all_where_each_hangs_on_all(tmp_path: Path) -> None:
    cache = Cache.at(tmp_path / "c")
    ensemble, near = derivations.ensemble(BOTH), derivations.neighbours("feature", 2)
    snapshot = cached(tmp_path / "c", source(80))

    def rows_of(snapshot: Snapshot, derivation: RowWise) -> tuple[int, Snapshot]:
        heard = Heard()
        after = made(snapshot, derivation, listen=heard)
        return heard.taught, after

    taught, snapshot = rows_of(snapshot, ensemble)
    assert taught == 80
    taught, snapshot = rows_of(snapshot, near)
    assert taught == 80
    before = tree(tmp_path / "c")
    assert rows_of(snapshot, ensemble)[0] == rows_of(snapshot, near)[0] == 0
    assert tree(tmp_path / "c") == before
    # Ten rows more, and one that another teacher than theirs sees otherwise.
    snapshot = cached(tmp_path / "c", source(90, edited=(5,)))
    assert "ensemble" not in snapshot.signals
    taught, snapshot = rows_of(snapshot, ensemble)
    assert taught == 11
    taught, snapshot = rows_of(snapshot, near)
    assert taught == 90
    segment = cache.segments()[-1]
    assert "the teacher changed (whole" in segment.why
    # A new version of one teacher makes all of the ensemble stale, and nothing of what it does not read.
    how: dict[str, Any] = {"runner": LocalRunner(), "shard_rows": 20}
    teach(cache, source(90, edited=(5,)), second_teacher(version="2"), **how)
    taught, snapshot = rows_of(cache.snapshot(), near)
    assert taught == 0
    taught, snapshot = rows_of(snapshot, ensemble)
    assert taught == 90
    assert {"ensemble", "neighbours", "scores", "logits"} <= set(snapshot.signals)
    assert not verify(tmp_path / "c").problems


def test_stale_centroids_are_refused_and_new_ones_assign_anew(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    cache = Cache(tmp_path / "c")
    groups = derive(cache, snapshot, derivations.kmeans("feature", 3))
    made(snapshot, derivations.assigned("feature", groups))
    snapshot = cached(tmp_path / "c", source(edited=(5,)))
    old = derived(cache, "kmeans", stale=True)
    with pytest.raises(StaleError, match=r"'cluster' is given centroids from 'kmeans'.*stale"):
        made(snapshot, derivations.assigned("feature", old))
    now = derive(cache, snapshot, derivations.kmeans("feature", 3))
    heard = Heard()
    made(snapshot, derivations.assigned("feature", now), listen=heard)
    assert heard.taught == 90
    assert "given.centroids" in cache.segments()[-1].why


def breaks(*, logits: Any, counter: str) -> dict[str, Any]:
    with open(counter, "a") as file:
        file.write("x" * len(logits))
    if Path(counter).stat().st_size > 60 and not Path(f"{counter}.go").exists():
        raise KeyboardInterrupt
    return {"same": logits}


def test_a_derivation_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    counter = tmp_path / "count"
    function = partial(breaks, counter=str(counter))
    derivation = RowWise("same", function, {"logits": "logits"}, ("same",))
    snapshot = cached(tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        made(snapshot, derivation, batch_size=20)
    assert not verify(tmp_path / "c").problems
    assert "same" not in Cache(tmp_path / "c").snapshot().signals
    Path(f"{counter}.go").touch()
    heard = Heard()
    after = made(snapshot, derivation, batch_size=20, listen=heard)
    assert 0 < heard.taught < 90
    assert_array_equal(by_key(after, "same"), by_key(snapshot, "logits"))
    whole = made(cached(tmp_path / "whole"), derivation, batch_size=20)
    assert whole.number == after.number
    assert tree(tmp_path / "whole") == tree(tmp_path / "c")


def test_derived_signals_are_pruned_compacted_and_repaired_like_any(tmp_path: Path) -> None:
    cache, ensemble = Cache.at(tmp_path / "c"), derivations.ensemble(BOTH)
    made(cached(tmp_path / "c", source(80)), ensemble)
    after = made(cached(tmp_path / "c"), ensemble)
    expected = by_key(after, "ensemble")
    assert compact(cache).snapshot is not None
    assert_array_equal(by_key(cache.snapshot(), "ensemble"), expected)
    heard = Heard()
    made(cache.snapshot(), ensemble, listen=heard)
    assert heard.taught == 0
    prune(cache, keep_last=1)
    assert_array_equal(by_key(cache.snapshot(), "ensemble"), expected)
    assert not verify(tmp_path / "c").problems
    (chunk, *_) = sorted((tmp_path / "c").glob("segments/*-ensemble-*/signals/ensemble/c/0/0"))
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    problems, snapshot = verify(tmp_path / "c").problems, cache.snapshot()
    assert len(problems) == 1
    teacher = DerivedTeacher(ensemble, snapshot)
    rows = SignalRows(snapshot, teacher.inputs)
    repair(cache, rows, teacher, problems, runner=LocalRunner())
    assert not verify(tmp_path / "c").problems
    assert_array_equal(by_key(cache.snapshot(), "ensemble"), expected)
    assert {"logits", "scores"} <= set(cache.snapshot().signals)


def build() -> Any:
    from torch import nn

    return nn.Linear(6, CLASSES)


@pytest.mark.slow
def test_a_student_learns_from_a_derived_signal_and_never_from_a_stale_one(tmp_path: Path) -> None:
    snapshot = made(cached(tmp_path / "c"), derivations.ensemble(BOTH, name="mixed"))
    snapshot = made(snapshot, derivations.agreement(BOTH, label="label"), rows=source())
    snapshot = made(snapshot, derivations.calibrated("mixed", _fitted(snapshot), name="soft"))
    kd = recipes.find("kd", alpha=1.0)
    terms = [
        replace(t, inputs=tuple(n.replace("teacher.logits", "teacher.soft") for n in t.inputs))
        for t in kd.terms
    ]
    recipe = replace(kd, terms=tuple(terms))
    assert recipe.reads == ("soft",)
    student = Student("s", build, recipe, inputs=("x",), split="all", fit=Fit(epochs=1))
    how: dict[str, Any] = {
        "splits": {"all": list(range(90))},
        "evaluation": Evaluation("all", classification),
        "runner": LocalRunner(),
    }
    (record,) = train([student], source(), snapshot, folder=tmp_path / "s", **how)
    assert record.weights.exists()
    with pytest.raises(RowsError, match=r"1 rows of split 'all' changed since teacher 'one'.*: 5"):
        train([student], source(edited=(5,)), snapshot, folder=tmp_path / "t", **how)


def _fitted(snapshot: Snapshot) -> Any:
    cache = Cache(snapshot.cache)
    return derive(cache, snapshot, derivations.temperature("logits", "label"), rows=source())


def test_bad_requests_are_named(tmp_path: Path) -> None:
    first = cached(tmp_path / "c")
    cache = Cache(tmp_path / "c")
    with pytest.raises(UnknownSignalError, match="no signal 'one/logit'"):
        made(first, derivations.ensemble(["one/logit", "two/scores"]))
    with pytest.raises(SignalError, match=r"'one' is a teacher.*name="):
        made(first, derivations.ensemble(BOTH, name="one"))
    with pytest.raises(SignalError, match="logits of one shape"):
        made(first, derivations.ensemble(["one/logits", "one/feature"]))
    with pytest.raises(SignalError, match=r"ragged.*pooled"):
        made(first, derivations.ensemble(["one/logits", "one/tokens"]))
    with pytest.raises(SignalError, match="takes a ragged signal"):
        made(first, derivations.pooled("feature"))
    with pytest.raises(RowsError, match="reads column 'label', which the data set lacks"):
        made(first, derivations.agreement(BOTH, label="label"))
    with pytest.raises(SignalError, match="90 neighbours were asked for; each row has 89 others"):
        made(first, derivations.neighbours("feature", 90))
    with pytest.raises(ValueError, match="at least two signals"):
        derivations.ensemble(["one/logits"])
    after = made(first, derivations.ensemble(BOTH))
    with pytest.raises(SignalError, match="derived from the newest snapshot"):
        made(first, derivations.ensemble(BOTH))
    with pytest.raises(SignalError, match="derived from itself"):
        made(after, derivations.ensemble(["ensemble", "two/scores"]))
    assert cache.snapshots()[-1] == after.number
    # Not all rows have both signals: nothing is begun.
    teach(cache, source(100), first_teacher(), runner=LocalRunner())
    with pytest.raises(UnknownRowError, match="'two/scores' was never taught for 10 of all rows"):
        made(cache.snapshot(), derivations.ensemble(BOTH))


def test_another_commit_in_between_is_built_upon(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    cache = Cache(tmp_path / "c")

    class Meanwhile(LocalRunner):
        def map(self, build: Any, items: Any) -> Any:
            teach(cache, source(), second_teacher(version="new"), runner=LocalRunner())
            return super().map(build, items)

    after = made(snapshot, derivations.pooled("tokens"), runner=Meanwhile())
    assert {"pooled", "scores", "logits"} <= set(after.signals)
    identity = after.identity("scores")
    assert identity["version"] == "new"
    assert len(Reader(after, ["pooled", "scores"]).gather([3, 5])["pooled"]) == 2
