"""Derived results as they are kept: fresh, stale, damaged, pruned; never half true."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, Summary, derivations, derive, derived, repair
from stillroom.storage import (
    BusyError,
    Cache,
    CorruptShardError,
    Snapshot,
    StaleError,
    UnknownSignalError,
    compact,
    prune,
    verify,
)
from tests.stages.deriving_builders import (
    CLASSES,
    cached,
    features,
    in_pieces,
    labels,
    second_teacher,
    source,
)


def test_compacting_changes_nothing_and_derives_nothing(tmp_path: Path) -> None:
    snapshot = in_pieces(tmp_path / "c", 2)
    cache = Cache(tmp_path / "c")
    before = derive(cache, snapshot, derivations.class_means("feature", "label"), rows=source())
    assert compact(cache).snapshot is not None
    after = derive(
        cache, cache.snapshot(), derivations.class_means("feature", "label"), rows=source()
    )
    assert after.record == before.record
    assert not derived(cache, "class_means").stale


def calls(table: Any, log: str) -> dict[str, Any]:
    with open(log, "a") as file:
        file.write("called\n")
    return {"rows": np.int64(len(table)), "scale": np.float32(2)}


def test_what_is_fresh_is_not_computed_and_what_changed_is_named(tmp_path: Path) -> None:
    snapshot, log = cached(tmp_path / "c"), tmp_path / "log"
    cache = Cache(tmp_path / "c")
    summary = Summary("n", partial(calls, log=str(log)), {"f": "feature"}, {"y": "label"})

    def run(snapshot: Snapshot, **more: Any) -> Any:
        return derive(cache, snapshot, summary, **{"rows": source(), **more})

    def stored() -> dict[Path, int]:
        every = (p for p in (tmp_path / "c").rglob("*") if "leases" not in p.parts)
        return {path: path.stat().st_mtime_ns for path in every}

    assert run(snapshot)["rows"] == 90
    before = stored()
    assert run(snapshot)["scale"].shape == ()
    assert stored() == before
    assert log.read_text().count("called") == 1
    edited = source(edited=(7,))
    relabelled = ArrayRows(range(90), x=features(90), label=(labels(90) + 1) % CLASSES)
    with pytest.raises(StaleError, match=r"columns\.y\.content changed"):
        derived(cache, "n", rows=relabelled)
    assert derived(cache, "n", rows=source()).unchecked == ()
    assert derived(cache, "n").unchecked == ("y",)
    assert run(snapshot, rows=relabelled).why == "reads.columns.y.content changed"
    now = cached(tmp_path / "c", edited)
    with pytest.raises(StaleError, match=r"signals\.f\.rows changed.*stale=True"):
        derived(cache, "n")
    assert derived(cache, "n", stale=True).stale == ("signals.f.rows changed",)
    assert "signals.f.rows changed" in run(now, rows=edited).why
    assert derived(cache, "n", rows=edited).stale == ()
    # The older snapshot is still served by what was derived from it.
    assert derived(cache, "n", snapshot=snapshot, rows=source())["rows"] == 90
    other = cached(tmp_path / "c", edited, version="2")
    with pytest.raises(StaleError, match=r"signals\.f\.teacher changed"):
        derived(cache, "n", snapshot=other)


def test_a_result_of_fewer_rows_does_not_stand_in_for_one_of_all(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    cache, moments = Cache(tmp_path / "c"), derivations.moments("feature")
    derive(cache, snapshot, moments, keys=[5, 1, 3])
    derive(cache, snapshot, moments)
    cached(tmp_path / "c", source(edited=(7,)))
    with pytest.raises(StaleError):
        derived(cache, "moments")
    assert derive(cache, cache.snapshot(), moments, keys=[1, 3, 5]).snapshot == snapshot.number


def test_a_result_is_read_without_dask_torch_or_a_teacher(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    derive(Cache(tmp_path / "c"), snapshot, derivations.moments("feature"))
    code = f"""
import sys
from stillroom.stages import derived
from stillroom.storage import Cache
found = derived(Cache({str(tmp_path / "c")!r}), "moments")
print(int(found["count"]), found["covariance"].shape, sorted({{"dask", "torch", "ray"}} & {{*sys.modules}}))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "90 (6, 6) []"


def fails(table: Any) -> dict[str, Any]:
    table.fold(lambda batch: 1, lambda parts: 1)
    raise RuntimeError("in the middle")


def test_a_failure_leaves_nothing_and_frees_the_lease(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    cache = Cache(tmp_path / "c")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="in the middle"):
            derive(cache, snapshot, Summary("fails", fails, {"f": "feature"}))
    assert not (tmp_path / "c" / "derived").exists()
    assert not verify(tmp_path / "c").problems


def test_a_kill_between_arrays_and_record_leaves_what_prune_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached(tmp_path / "c")
    cache = Cache(tmp_path / "c")

    def killed(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stillroom.storage.derived.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            derive(cache, snapshot, derivations.moments("feature"), keys=[1, 2, 3])
    report = verify(tmp_path / "c")
    assert not report.problems
    assert len(report.leftovers) == 2  # the arrays, and which rows
    with pytest.raises(UnknownSignalError):
        derived(cache, "moments")
    pruned = prune(cache)
    assert len(pruned.books) == 1
    assert len(pruned.derived) == 1
    assert not verify(tmp_path / "c").leftovers
    assert derive(cache, snapshot, derivations.moments("feature"), keys=[1, 2, 3])["count"] == 3


def test_results_are_pruned_with_the_last_snapshot_that_they_follow_from(tmp_path: Path) -> None:
    first = cached(tmp_path / "c")
    cache, moments = Cache(tmp_path / "c"), derivations.moments("feature")
    some = derivations.moments("feature", name="some")
    old = derive(cache, first, moments)
    kept = derive(cache, first, some, keys=[1, 2, 3])
    now = cached(tmp_path / "c", source(edited=(7,)))
    new = derive(cache, now, moments)
    assert prune(cache, dry_run=True).derived == ()
    assert not verify(tmp_path / "c").problems
    pruned = prune(cache, keep_last=1)
    assert pruned.derived == (f"derived/{old.record}",)
    assert derived(cache, "moments").digest == new.digest
    assert derived(cache, "some").digest == kept.digest  # none of its rows changed
    report = verify(tmp_path / "c")
    assert not report.problems
    assert not report.leftovers


@pytest.mark.slow
def test_every_flipped_byte_is_found_and_made_good(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    cache, moments = Cache(tmp_path / "c"), derivations.moments("feature")
    derive(cache, snapshot, moments, keys=[1, 2, 3])
    for pattern in ("derived/*.json", "derived/*.arrow", "books/*.arrow"):
        (place,) = (tmp_path / "c").glob(pattern)
        content = bytearray(place.read_bytes())
        content[len(content) // 2] ^= 4
        place.write_bytes(content)
        problems = verify(tmp_path / "c").problems
        assert [p.path for p in problems] == [str(place.relative_to(tmp_path / "c"))]
        with pytest.raises(CorruptShardError):
            derived(cache, "moments")
        if pattern == "derived/*.json":  # deriving again works as it is, too
            assert derive(cache, snapshot, moments, keys=[1, 2, 3])["count"] == 3
        repair(cache, source(), second_teacher(), problems, runner=LocalRunner())
        assert not verify(tmp_path / "c").problems
        prune(cache)
        assert derive(cache, snapshot, moments, keys=[1, 2, 3])["count"] == 3


def test_two_processes_do_not_derive_the_same_at_once(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    cache = Cache(tmp_path / "c")
    inner = derivations.moments("feature")

    def nested(table: Any) -> dict[str, Any]:
        other = Cache(tmp_path / "c")
        with pytest.raises(BusyError):
            derive(other, snapshot, summary)
        derive(other, snapshot, inner)  # another one may
        return {"a": np.ones(1)}

    summary = Summary("nested", nested, {"f": "feature"})
    assert derive(cache, snapshot, summary)["a"] == 1
    assert derived(cache, "moments")["count"] == 90
