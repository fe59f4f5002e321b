"""Derived results in an object store: the same records and bytes as in a folder, and as well cared for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    RowWise,
    Summary,
    derivations,
    derive,
    derive_signals,
    derived,
    derived_as_taught,
    plan_derive,
    repair,
    teach,
)
from stillroom.storage import Cache, Snapshot, StaleError, prune, verify
from stillroom.storage.derived import records
from stillroom.storage.errors import BusyError
from stillroom.storage.mirror import Mirror
from stillroom.storage.objects import ObjectPlace
from stillroom.storage.place import Place
from tests.stages.builders import tree as local_tree
from tests.stages.deriving_builders import by_key, first_teacher, second_teacher, source
from tests.storage.s3_server import s3_server

MEANS = derivations.class_means("feature", "label")
ENSEMBLE = derivations.ensemble(["one/logits", "two/scores"])
pytestmark = pytest.mark.slow
CREDENTIALS = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of an S3 server."""
    with s3_server() as port:
        yield port


@pytest.fixture
def store(server: int, tmp_path: Path) -> ObjectPlace:
    """A prefix of its own for each test, with a mirror of its own."""
    given = {**CREDENTIALS, "endpoint": f"http://127.0.0.1:{server}"}
    mirror = Mirror(tmp_path / "mirror", 2**30)
    return ObjectPlace.at(f"s3://caches/{tmp_path.name}/c", mirror=mirror, options=given)


def tree(place: ObjectPlace) -> dict[str, bytes]:
    """Every object that is content, by its path in the cache."""
    found = {str(p).removeprefix(f"{place}/"): p for p in place.below()}
    skipped = {"made", "leases"}
    return {n: p.read_bytes() for n, p in found.items() if not skipped & set(n.split("/"))}


def cached(place: Place | Path, rows: int = 90) -> Snapshot:
    how: dict[str, Any] = {"runner": LocalRunner(), "batch_size": 16, "shard_rows": 30}
    cache = Cache.at(place)
    teach(cache, source(rows), first_teacher(), **how)
    return teach(cache, source(rows), second_teacher(), **how)


def all_of(cache: Cache, snapshot: Snapshot, rows: int = 90) -> dict[str, Any]:
    """Summaries over all rows and over some, and signals that one of them decides."""
    means = derive(cache, snapshot, MEANS, rows=source(rows))
    some = derivations.class_means("feature", "label", name="of-some")
    few = derive(cache, snapshot, some, rows=source(rows), keys=range(40))
    groups = derive(cache, snapshot, derivations.kmeans("feature", 3))
    snapshot = derive_signals(cache, snapshot, derivations.assigned("feature", groups))
    snapshot = derive_signals(cache, snapshot, ENSEMBLE, shard_rows=30)
    found = {"means": means["means"], "few": few["means"], "centroids": groups["centroids"]}
    signals = {name: by_key(snapshot, name) for name in ("cluster", "ensemble")}
    return {**found, **signals}


def test_a_store_holds_the_records_books_and_signals_that_a_folder_would(
    store: ObjectPlace, tmp_path: Path
) -> None:
    mine = all_of(Cache.at(store), cached(store))
    theirs = all_of(Cache.at(tmp_path / "c"), cached(tmp_path / "c"))
    for name, values in theirs.items():
        np.testing.assert_array_equal(mine[name], values)
    stored = tree(store)
    assert stored == local_tree(tmp_path / "c")
    assert len([name for name in stored if name.startswith("derived/")]) == 4  # one names its keys
    assert verify(store).problems == ()


def test_nothing_is_computed_or_put_again_and_another_process_reads_it(
    store: ObjectPlace, server: int, tmp_path: Path
) -> None:
    snapshot, cache = cached(store), Cache.at(store)
    all_of(cache, snapshot)
    before = tree(store)
    newest = cache.snapshot()
    assert plan_derive(cache, newest, MEANS, rows=source()).fresh
    forbidden = Summary(MEANS.name, MEANS.function, MEANS.signals, MEANS.columns)
    np.testing.assert_array_equal(
        derive(cache, newest, forbidden, rows=source())["means"],
        derived(cache, "class_means", rows=source())["means"],
    )
    assert tree(store) == before
    # A mirror that is empty: everything comes from the store.
    given = {**CREDENTIALS, "endpoint": f"http://127.0.0.1:{server}"}
    elsewhere = Mirror(tmp_path / "elsewhere", 2**30)
    other = ObjectPlace.at(str(store), mirror=elsewhere, options=given)
    found = derived(Cache(other), "class_means", rows=source())
    np.testing.assert_array_equal(found["means"], derived(cache, "class_means")["means"])
    assert found.unchecked == ()


def test_what_is_stale_in_a_store_is_refused_and_only_new_rows_are_derived(
    store: ObjectPlace,
) -> None:
    all_of(Cache.at(store), cached(store))
    cache, snapshot = Cache(store), cached(store, 100)
    with pytest.raises(StaleError, match="derived from something else than snapshot"):
        derived(cache, "class_means", rows=source(100))
    again = derive(cache, snapshot, MEANS, rows=source(100))
    assert again["counts"].sum() == 100
    assert [record.number for record in records(cache, "class_means")] == [1, 4]
    from tests.stages.builders import Heard

    heard = Heard()
    derive_signals(cache, snapshot, ENSEMBLE, listen=heard)
    assert heard.taught == 10
    prune(cache, keep_last=1, draft_days=0)
    assert [record.number for record in records(cache, "class_means")] == [4]
    assert verify(store).problems == ()


def test_damage_in_a_store_is_found_put_aside_and_derived_again(store: ObjectPlace) -> None:
    cache = Cache.at(store)
    all_of(cache, cached(store))
    (record,) = records(cache, "class_means")
    book = f"books/{record.book}.arrow"
    (store / book).put(b"spoilt")
    shard = next(
        n for n in tree(store) if "-ensemble-" in n and n.endswith("signals/ensemble/c/1/0")
    )
    whole = (store / shard).read_bytes()
    (store / shard).put(b"spoilt")
    problems = verify(store).problems
    assert {problem.path for problem in problems} == {book, shard}
    given = derived_as_taught(cache, ENSEMBLE)
    done = repair(cache, *given, problems, runner=LocalRunner())
    assert (done.rows, done.unrepairable) == (30, ())
    assert set(done.quarantined) == {f"derived/{record.path.name}", book}
    assert (store / shard).read_bytes() == whole
    assert verify(store).problems == ()
    again = derive(cache, cache.snapshot(), MEANS, rows=source())
    assert again["means"].shape == (4, 6)
    assert verify(store).problems == ()


def test_two_that_derive_the_same_into_a_store_do_not_both_compute(store: ObjectPlace) -> None:
    cache, snapshot = Cache.at(store), cached(store)

    def derive_inside(table: Any) -> Any:
        with pytest.raises(BusyError):
            derive(Cache(store), snapshot, asked)
        return {"rows": np.array(len(table))}

    asked = Summary("counted", derive_inside, {"x": "feature"})
    assert derive(cache, snapshot, asked)["rows"] == 90


def test_a_put_that_was_cut_off_leaves_no_record_without_its_arrays(
    store: ObjectPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, snapshot = Cache.at(store), cached(store)

    class Cut(Exception):
        pass

    def cut(*_: Any, **__: Any) -> Any:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr("stillroom.storage.derived.write_json", cut)
        with pytest.raises(Cut):
            derive(cache, snapshot, MEANS, rows=source())
    assert records(cache) == []
    assert [n for n in tree(store) if n.startswith("books/")]  # there, and named by nothing
    assert verify(store).problems == ()
    made = derive(cache, snapshot, MEANS, rows=source())
    assert made.why == "it was never derived"
    assert isinstance(ENSEMBLE, RowWise)
