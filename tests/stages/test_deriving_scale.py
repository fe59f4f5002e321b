"""Deriving on threads, on Ray, in little memory, and beside scikit-learn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from stillroom.pipeline import RayRunner, dask_on_ray
from stillroom.stages import Summary, derivations, derive, derive_signals
from stillroom.storage import Cache, SignalError, Snapshot
from tests.stages.deriving_builders import by_key, cached, source

SUMMARIES = (
    derivations.class_moments("feature", "label"),
    derivations.pca("feature", 3),
    derivations.kmeans("feature", 4, rounds=3),
    derivations.quantiles("feature", [0.1, 0.5]),
    derivations.temperature("logits", "label"),
)


def renamed(summary: Summary, name: str) -> Summary:
    return Summary(name, summary.function, summary.signals, summary.columns)


def test_threads_and_one_after_another_give_the_same_bits(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    cache = Cache(tmp_path / "c")
    for summary in SUMMARIES[:2]:
        how: dict[str, Any] = {"rows": source(), "block_bytes": 600}
        one = derive(cache, snapshot, renamed(summary, "a"), scheduler="synchronous", **how)
        two = derive(cache, snapshot, renamed(summary, "b"), workers=3, **how)
        for name, array in one.arrays.items():
            assert_array_equal(two[name], array)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return cached(tmp_path_factory.mktemp("ray") / "c")


@pytest.mark.slow
def test_ray_agrees_with_threads(taught: Snapshot, ray_runner: RayRunner) -> None:
    cache = Cache(taught.cache)
    how: dict[str, Any] = {"block_bytes": 600}
    with dask_on_ray(ray_runner) as get:
        for summary in SUMMARIES:
            ray = derive(
                cache, taught, renamed(summary, "on-ray"), rows=source(), scheduler=get, **how
            )
            here = derive(cache, taught, summary, rows=source(), **how)
            for name, array in here.arrays.items():
                assert_allclose(ray[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
        with pytest.raises(SignalError, match="is ragged"):
            derive(cache, taught, derivations.moments("tokens"), scheduler=get)
    near = derivations.neighbours("feature", 3)
    other = Cache.at(Path(str(taught.cache)).parent / "d")
    shared = derive_signals(cache, taught, near, runner=ray_runner, shard_rows=20)
    alone = derive_signals(other, cached(Path(str(other.path))), near, shard_rows=20)
    assert_array_equal(by_key(shared, "neighbours"), by_key(alone, "neighbours"))


LITTLE = """
import resource, sys
import numpy as np
from stillroom.stages import ArrayRows, FunctionTeacher, derivations, derive, teach
from stillroom.storage import Cache, Reader
from stillroom.pipeline import LocalRunner

ROWS, WIDTH, LIMIT = 62_000, 1024, 24 * 2**20

def wide(x):
    return {"feature": np.sin(x[:, None] * np.arange(1, WIDTH + 1, dtype="f4")).astype("f4")}

def data_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024

def limited(more):
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + more, resource.RLIM_INFINITY))

def everything(cache, snapshot, rows):
    how = dict(rows=rows, workers=2, block_bytes=2**18)
    derive(cache, snapshot, derivations.class_means("feature", "label"), **how)
    batches = derivations.minibatch_kmeans("feature", 4, epochs=1, batch_rows=128)
    derive(cache, snapshot, batches, **how)
    derive(cache, snapshot, derivations.kmeans("feature", 4, rounds=1), **how)

folder = sys.argv[1]
for name, rows in (("small", 2_000), ("large", ROWS)):
    x = np.random.default_rng(0).random(rows).astype("f4") * 9
    data = ArrayRows(range(rows), x=x, label=(x > 4).astype("i8"))
    teacher = FunctionTeacher("wide", wide, ("x",), ("feature",))
    cache = Cache.at(f"{folder}/{name}")
    snapshot = teach(cache, data, teacher, runner=LocalRunner(), batch_size=1024, shard_rows=4096)
    if name == "small":
        everything(cache, snapshot, data)  # threads and libraries take what they take
limited(LIMIT)
everything(cache, snapshot, data)
print("derived", sum(segment.bytes for segment in cache.segments()) // LIMIT)
limited(LIMIT)
try:
    Reader(snapshot, ["feature"]).take(np.arange(ROWS))
except MemoryError:
    print("not in memory")
"""


@pytest.mark.slow
def test_a_cache_ten_times_larger_than_memory_is_derived_from(tmp_path: Path) -> None:
    script = tmp_path / "little.py"
    script.write_text(LITTLE)
    # One arena for all threads: how much of several lies idle hangs on how they take turns.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert ran.stdout.splitlines() == ["derived 10", "not in memory"], ran.stderr[-3000:]


@pytest.mark.slow
def test_scikit_learn_finds_the_same(taught: Snapshot) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    near = pytest.importorskip("sklearn.neighbors")
    decomposition = pytest.importorskip("sklearn.decomposition")
    cache, x = Cache(taught.cache), by_key(taught, "feature").astype(float)
    mine = derive(cache, taught, derivations.pca("feature", 3, name="p"))
    theirs = decomposition.PCA(3).fit(x)
    assert_allclose(mine["variances"], theirs.explained_variance_, rtol=1e-9)
    assert_allclose(np.abs(mine["components"]), np.abs(theirs.components_), atol=1e-7)
    mine = derive(cache, taught, derivations.kmeans("feature", 4, name="k"))
    lloyd = cluster.KMeans(4, init=np.array(mine["centroids"]), n_init=1).fit(x)
    assert_allclose(mine["inertia"], lloyd.inertia_, rtol=1e-9)
    best = cluster.KMeans(4, n_init=20, random_state=0).fit(x).inertia_
    assert mine["inertia"] <= 1.05 * best
    batches = derive(cache, taught, derivations.minibatch_kmeans("feature", 4, batch_rows=32))
    assert batches["inertia"] <= 1.2 * best
    after = derive_signals(cache, cache.snapshot(), derivations.neighbours("feature", 5, name="n"))
    index = near.NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(x)
    distances, found = index.kneighbors(x)
    assert_array_equal(by_key(after, "n"), found[:, 1:])
    assert_allclose(by_key(after, "n_distance"), distances[:, 1:], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_many_dimensions_are_taken_apart_without_their_covariance(tmp_path: Path) -> None:
    from stillroom.pipeline import LocalRunner
    from stillroom.stages import ArrayRows, FunctionTeacher, teach

    random = np.random.default_rng(0)
    x = (random.standard_normal((400, 30)) * 1.2 ** -np.arange(30)) @ random.standard_normal(
        (30, 1500)
    )
    rows = ArrayRows(range(400), x=x.astype("f4"))
    teacher = FunctionTeacher("same", same, ("x",), ("feature",))
    cache = Cache.at(tmp_path / "c")
    snapshot = teach(cache, rows, teacher, runner=LocalRunner(), shard_rows=100)
    auto = derive(cache, snapshot, derivations.pca("feature", 4))
    exact = derive(cache, snapshot, derivations.pca("feature", 4, solver="covariance", name="e"))
    assert_allclose(auto["variances"], exact["variances"], rtol=1e-9)
    assert_allclose(auto["components"], exact["components"], atol=1e-5)
    assert auto["residuals"].max() < 1e-4 * auto["variances"][0]


def same(x: Any) -> dict[str, Any]:
    return {"feature": x}
