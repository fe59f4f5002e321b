"""Plans of derived results and of snapshots on the way: what they say is what then happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    derivations,
    derive,
    derive_signals,
    plan_derive,
    plan_derive_signals,
    plan_teach,
    teach,
)
from stillroom.stages.events import SnapshotTaken
from stillroom.storage import Cache, SignalError
from stillroom.storage.errors import UnknownRowError, UnknownSignalError
from stillroom.workflows.plan_words import preview_of, preview_of_derived
from tests.stages.builders import Heard, data, plain, stamps, taught
from tests.stages.deriving_builders import cached, first_teacher, second_teacher, source
from tests.stages.test_planning import predicted, written

MEANS = derivations.class_means("feature", "label")
ENSEMBLE = derivations.ensemble(["one/logits", "two/scores"])


def grown(path: Path, rows: int) -> Any:
    how: dict[str, Any] = {"runner": LocalRunner(), "shard_rows": 20, "batch_size": 16}
    teach(Cache(path), source(rows), first_teacher(), **how)
    return teach(Cache(path), source(rows), second_teacher(), **how)


def derived_bytes(path: Path) -> int:
    files = [p for top in ("derived", "books") for p in (path / top).rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def test_a_summary_is_planned_as_new_fresh_or_stale_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "c"
    snapshot, cache = cached(path), Cache(path)
    before = stamps(path)
    plan = plan_derive(cache, snapshot, MEANS, rows=source())
    assert (plan.fresh, plan.rows, plan.bytes) == (False, 90, None)
    assert plan.words() == "class_means over 90 rows: it was never derived; bytes unknown"
    assert stamps(path) == before
    made = derive(cache, snapshot, MEANS, rows=source())
    plan = plan_derive(cache, snapshot, MEANS, rows=source())
    assert plan.fresh
    assert plan.words() == f"class_means over 90 rows: fresh, as {made.record} has it"
    assert preview_of_derived(plan).why == ""
    some = plan_derive(cache, snapshot, MEANS, rows=source(), keys=range(30))
    assert (some.fresh, some.rows) == (False, 30)
    assert "reads.rows" in some.why
    snapshot = grown(path, 100)
    plan, size = plan_derive(cache, snapshot, MEANS, rows=source(100)), derived_bytes(path)
    assert (plan.fresh, plan.rows) == (False, 100)
    assert "reads.rows" in plan.why
    shown = preview_of_derived(plan)
    assert shown.lines[0].startswith("over 100 rows; ")
    assert json.loads(json.dumps(plan.to_json()))["fresh"] is False
    derive(cache, snapshot, MEANS, rows=source(100))
    assert plan.bytes == pytest.approx(derived_bytes(path) - size, rel=0.05)


def test_a_lost_book_makes_a_summary_stale(tmp_path: Path) -> None:
    path = tmp_path / "c"
    snapshot, cache = cached(path), Cache(path)
    derive(cache, snapshot, MEANS, rows=source())
    for book in (path / "books").iterdir():
        book.unlink()
    plan = plan_derive(cache, snapshot, MEANS, rows=source())
    assert (plan.why, plan.bytes) == ("its arrays were lost or damaged", None)


def test_errors_of_a_plan_are_those_of_deriving(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "c")
    cache = Cache(tmp_path / "c")
    with pytest.raises(UnknownSignalError):
        plan_derive(cache, snapshot, derivations.class_means("none", "label"), rows=source())
    with pytest.raises(UnknownSignalError):
        plan_derive_signals(cache, derivations.ensemble(["one/logits", "two/none"]))
    other = cached(tmp_path / "d")
    with pytest.raises(SignalError, match="is not of"):
        plan_derive(cache, other, MEANS, rows=source())


def test_derived_signals_are_planned_as_a_teachers_are(tmp_path: Path) -> None:
    path = tmp_path / "c"
    cached(path)
    cache, how = Cache(path), dict[str, Any](shard_rows=20, batch_size=16)
    plan = plan_derive_signals(cache, ENSEMBLE, probe=True, **how)
    assert (plan.to_compute, plan.rows) == (90, 90)
    size = written(path)
    derive_signals(cache, cache.snapshot(), ENSEMBLE, **how)
    assert predicted(plan) == pytest.approx(written(path) - size, rel=0.05)
    assert plan_derive_signals(cache, ENSEMBLE, **how).why == ""
    grown(path, 120)
    plan = plan_derive_signals(cache, ENSEMBLE, **how)
    assert (plan.to_compute, plan.rows) == (30, 120)
    assert plan.estimate is not None
    assert plan.estimate.source == "earlier shards"
    size = written(path)
    derive_signals(cache, cache.snapshot(), ENSEMBLE, **how)
    assert predicted(plan) == pytest.approx(written(path) - size, rel=0.05)


def test_rows_that_lack_a_signal_are_named_by_the_plan_too(tmp_path: Path) -> None:
    path = tmp_path / "c"
    cached(path)
    how: dict[str, Any] = {"runner": LocalRunner(), "shard_rows": 20}
    teach(Cache(path), source(100), first_teacher(), **how)
    with pytest.raises(UnknownRowError, match="'two/scores' was never taught for 10"):
        derive_signals(Cache(path), Cache(path).snapshot(), ENSEMBLE)
    with pytest.raises(UnknownRowError, match="'two/scores' was never taught for 10"):
        plan_derive_signals(Cache(path), ENSEMBLE)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(2, 90), st.sampled_from([7, 20, 200]), st.sampled_from([5, 10]))
def test_bytes_and_snapshots_on_the_way_are_those_that_are_written(
    tmp_path_factory: pytest.TempPathFactory, rows: int, every: int, shard_rows: int
) -> None:
    path = tmp_path_factory.mktemp("early") / "c"
    how: dict[str, Any] = {"shard_rows": shard_rows, "snapshot_every": every}
    plan = plan_teach(path, data(rows), plain(), probe=True, **how)
    heard = Heard()
    taught(path, data(rows), listen=heard, **how)
    early = [event for event in heard.events if isinstance(event, SnapshotTaken)]
    assert plan.early == len(early) == -(-rows // every) - 1
    assert len(plan.work) == len(list((path / "segments").iterdir()))
    assert predicted(plan) == pytest.approx(written(path), rel=0.05)
    files = [p for p in path.glob("s*/**/*") if p.is_file() and "made" not in p.parts]
    assert plan.estimate is not None
    assert plan.estimate.files == len(files)


def test_a_plan_says_in_words_that_students_can_begin(tmp_path: Path) -> None:
    path = tmp_path / "c"
    plan = plan_teach(path, data(), plain(), snapshot_every=25)
    words = "3 segments of up to 25 rows, a snapshot after each: students can begin with the first"
    assert words in preview_of(plan, path).lines
    assert plan.to_json()["early"] == 2
    without = plan_teach(path, data(), plain())
    assert not [line for line in preview_of(without, path).lines if "segments" in line]
    assert (without.early, without.to_json()["snapshot_every"]) == (0, None)


def test_what_is_left_of_an_early_run_is_planned_in_its_pieces(tmp_path: Path) -> None:
    path = tmp_path / "c"

    class Cut(Exception):
        pass

    def stop(event: Any) -> None:
        if isinstance(event, SnapshotTaken):
            raise Cut

    with pytest.raises(Cut):
        taught(path, data(), plain(), snapshot_every=20, listen=stop)
    plan = plan_teach(path, data(), plain(), snapshot_every=20, shard_rows=10)
    assert (plan.to_compute, plan.kept, plan.early) == (40, 0, 1)
    size = written(path)
    taught(path, data(), plain(), snapshot_every=20)
    assert predicted(plan) == pytest.approx(written(path) - size, rel=0.05)


@pytest.mark.parametrize("bad", [0, -5])
def test_no_rows_between_snapshots_are_refused(tmp_path: Path, bad: int) -> None:
    with pytest.raises(ValueError, match="snapshot_every and epochs must be positive"):
        plan_teach(tmp_path / "c", data(), plain(), snapshot_every=bad)
    with pytest.raises(ValueError, match="must be positive"):
        plan_teach(tmp_path / "c", data(), plain(), epochs=float(np.minimum(bad, 0)))
