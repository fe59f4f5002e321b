"""Repair and audit of signals that were derived, and of those of routed teachers; compaction of these."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    Repaired,
    RowWise,
    audit,
    derivations,
    derive,
    derive_signals,
    derived_as_taught,
    repair,
    teach,
)
from stillroom.storage import Cache, CorruptShardError, compact, prune, verify
from stillroom.storage.errors import StaleError
from tests.stages import routed_builders as routing
from tests.stages.builders import answers, images, taught, tree
from tests.stages.deriving_builders import by_key, cached, first_teacher, labels, source
from tests.stages.routed_builders import Noted, expert, routed, same
from tests.storage.caches import flip, only

ENSEMBLE = derivations.ensemble(["one/logits", "two/scores"])
NEAR = derivations.neighbours("feature", 3)
RIGHT = derivations.agreement(["one/logits", "two/scores"], label="label")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers, an ensemble, whether it is right, and neighbours; 90 rows."""
    path = tmp_path_factory.mktemp("derived") / "c"
    snapshot, cache = cached(path), Cache(path)
    for each in (ENSEMBLE, RIGHT, NEAR):
        snapshot = derive_signals(
            cache, snapshot, each, rows=source(), shard_rows=20, batch_size=16
        )
    return path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "c"))


def mended(path: Path, derivation: RowWise) -> Repaired:
    problems = verify(path).problems
    assert problems, "the damage was not found"
    cache = Cache(path)
    given = derived_as_taught(cache, derivation, source())
    return repair(cache, *given, problems, runner=LocalRunner())


DAMAGE = {
    "a chunk": (ENSEMBLE, "0003-ensemble-*/signals/ensemble/c/1/0", 18),
    "columns are read": (RIGHT, "0004-agree-*/signals/agree_right/c/4/0", 18),
    "every row is read": (NEAR, "0005-neighbours-*/signals/neighbours_distance/c/0/0", 18),
    "a receipt": (ENSEMBLE, "0003-ensemble-*/receipts/00002.json", 18),
    "the plan": (ENSEMBLE, "0003-ensemble-*/plan.json", 0),
    "the table of rows": (ENSEMBLE, "0003-ensemble-*/rows.arrow", 0),
    "the newest's table of rows": (NEAR, "0005-neighbours-*/rows.arrow", 0),
    "the seal": (NEAR, "0005-neighbours-*/segment.json", 0),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_derived_signals_are_put_back_byte_for_byte(path: Path, what: str) -> None:
    derivation, pattern, rows = DAMAGE[what]
    before = tree(path)
    flip(only(path, f"segments/{pattern}"), 77)
    done = mended(path, derivation)
    assert (done.rows, done.unrepairable, done.snapshot) == (rows, (), None)
    assert tree(path) == before


def test_a_derived_segment_that_is_gone_is_derived_again(path: Path) -> None:
    before = {
        name: by_key(Cache(path).snapshot(), name) for name in ("ensemble", "agree", "logits")
    }
    shutil.rmtree(only(path, "segments/0003-ensemble-*"))
    done = mended(path, ENSEMBLE)
    assert (done.rows, done.unrepairable) == (90, ())
    assert verify(path).problems == ()
    snapshot = Cache(path).snapshot()
    assert done.snapshot == snapshot.number
    for name, values in before.items():
        np.testing.assert_array_equal(by_key(snapshot, name), values)


def test_damage_of_a_teacher_and_of_what_was_derived_from_it_is_mended_in_that_order(
    path: Path,
) -> None:
    before = tree(path)
    flip(only(path, "segments/0001-one-*/signals/logits/c/2/0"), 77)
    flip(only(path, "segments/0003-ensemble-*/signals/ensemble/c/2/0"), 78)
    done = repair(
        Cache(path), source(), first_teacher(), verify(path).problems, runner=LocalRunner()
    )
    (left,) = done.unrepairable
    assert "it belongs to another teacher: repair with that one" in left.what
    assert mended(path, ENSEMBLE).unrepairable == ()
    assert tree(path) == before


def test_an_audit_finds_wrong_values_and_repair_serves_right_ones(path: Path) -> None:
    cache = Cache(path)
    report = audit(cache, *derived_as_taught(cache, ENSEMBLE), runner=LocalRunner())
    assert report.faithful
    assert report.rows >= 2 * 5  # two rows at least of each shard
    with_columns = derived_as_taught(cache, RIGHT, source())
    assert audit(cache, *with_columns, runner=LocalRunner()).faithful
    moved = replace(ENSEMBLE, function=shifted)
    report = audit(cache, *posing(cache, moved), runner=LocalRunner())
    assert not report.faithful


def shifted(**_: Any) -> Any:
    raise AssertionError("never called by its own name")


def posing(cache: Cache, derivation: RowWise) -> Any:
    """The ensemble's identity with other answers."""
    rows, teacher = derived_as_taught(cache, ENSEMBLE)

    class Posing:
        name, inputs = teacher.name, teacher.inputs
        asks, identity = teacher.asks, teacher.identity

        def load(self) -> Any:
            answer = teacher.load()
            return lambda batch: {
                n: np.roll(np.asarray(v), 1, -1) for n, v in answer(batch).items()
            }

    return rows, Posing()


def test_rows_that_no_snapshot_can_name_are_an_error_with_the_way_out(path: Path) -> None:
    prune(Cache(path), keep_last=1, draft_days=0)
    flip(only(path, "segments/0005-neighbours-*/rows.arrow"), 601)
    with pytest.raises(
        CorruptShardError, match=r"cannot say which rows it has.*derive the signals"
    ):
        derived_as_taught(Cache(path), NEAR)


def test_stale_results_are_refused_before_anything_is_repaired(path: Path) -> None:
    cache = Cache(path)
    groups = derive(cache, cache.snapshot(), derivations.kmeans("feature", 3))
    assigned = derivations.assigned("feature", replace(groups, stale=("rows",)))
    with pytest.raises(StaleError, match="is given centroids from 'kmeans', which is stale"):
        derived_as_taught(cache, assigned)


def test_compacted_derived_signals_are_repaired_too(path: Path) -> None:
    cache = Cache(path)
    more = source(120)
    how: dict[str, Any] = {"runner": LocalRunner(), "shard_rows": 20, "batch_size": 16}
    teach(cache, more, first_teacher(), **how)
    from tests.stages.deriving_builders import second_teacher

    snapshot = teach(cache, more, second_teacher(), **how)
    derive_signals(cache, snapshot, ENSEMBLE, shard_rows=20, batch_size=16)
    assert {m.teacher for m in compact(cache).merged} == {"one", "two", "ensemble"}
    prune(cache, keep_last=1, draft_days=0)
    before, values = tree(path), by_key(cache.snapshot(), "ensemble")
    flip(only(path, "segments/*-ensemble-*/signals/ensemble/c/0/0"), 99)
    assert mended(path, ENSEMBLE).unrepairable == ()
    np.testing.assert_array_equal(by_key(cache.snapshot(), "ensemble"), values)
    assert {n: b for n, b in tree(path).items() if "quarantine" not in n}.keys() >= before.keys()
    assert len(labels(120)) == snapshot.rows


def test_a_routed_teachers_shards_are_put_back_and_no_other_row_is_asked(tmp_path: Path) -> None:
    rows, teacher = routing.data(), routed()
    given, path = teacher.rows(rows), tmp_path / "c"
    taught(path, given, teacher)
    before = tree(path)
    flip(only(path, "segments/0001-*/signals/logits/c/1/0"), 77)
    flip(only(path, "segments/0001-*/records/tokens/00002.arrow"), 4000)
    done = repair(Cache(path), given, teacher, verify(path).problems, runner=LocalRunner())
    assert (done.rows, done.unrepairable) == (20, ())
    assert tree(path) == before


def test_an_expert_that_changed_cannot_mend_its_former_rows_and_the_others_are_fine(
    tmp_path: Path,
) -> None:
    rows, teacher = routing.data(), routed()
    path = tmp_path / "c"
    taught(path, teacher.rows(rows), teacher)
    flip(only(path, "segments/0001-*/signals/logits/c/1/0"), 77)
    changed = replace(teacher, teachers={**teacher.teachers, "fr": expert(9)})
    given = changed.rows(rows)
    done = repair(Cache(path), given, changed, verify(path).problems, runner=LocalRunner())
    (problem,) = done.unrepairable
    assert "of its rows are no more in the data set as they were taught" in problem.what
    snapshot = Cache(path).snapshot()
    assert snapshot.rows == 30  # those of the changed expert were answered anew with it
    found = answers(snapshot, rows)
    for place, route in enumerate(routing.languages(rows)):
        expected = routing.alone(changed.teachers[route], rows, [place])["logits"][0]
        assert same(found[place], expected)
    left = routed()
    again = repair(Cache(path), left.rows(rows), left, verify(path).problems, runner=LocalRunner())
    assert again.unrepairable == ()
    assert verify(path).problems == ()


def test_a_lost_segment_of_a_routed_teacher_is_taught_again_by_each_rows_expert(
    tmp_path: Path,
) -> None:
    rows, path = routing.data(), tmp_path / "c"
    log = tmp_path / "log"
    teacher = routed(**{r: Noted(expert(1 + i), log) for i, r in enumerate(routing.ROUTES)})
    taught(path, teacher.rows(rows), teacher)
    more = routing.data(36)
    taught(path, teacher.rows(more), teacher)
    shutil.rmtree(only(path, "segments/0002-*"))
    log.unlink()
    done = repair(
        Cache(path), teacher.rows(more), teacher, verify(path).problems, runner=LocalRunner()
    )
    assert (done.rows, done.unrepairable) == (6, ())
    routes = {routing.languages(more)[i] for i in range(30, 36)}
    assert len(log.read_text().split()) == len(routes)  # only experts of the lost rows were loaded
    assert audit(Cache(path), teacher.rows(more), teacher, runner=LocalRunner()).faithful


def test_a_routed_teachers_segments_are_compacted_and_serve_each_rows_expert(
    tmp_path: Path,
) -> None:
    rows, teacher, path = routing.data(), routed(), tmp_path / "c"
    taught(path, teacher.rows(rows), teacher)
    image = images(36)
    image[[3, 8]] += 1
    newer = routing.data(36, image=image)
    taught(path, teacher.rows(newer), teacher)
    cache = Cache(path)
    (merged,) = compact(cache, shard_rows=7).merged
    assert (merged.teacher, merged.rows) == ("experts", 36)
    prune(cache, keep_last=1, draft_days=0)
    assert len(list((path / "segments").iterdir())) == 1
    assert verify(path).problems == ()
    for name in ("logits", "tokens", "said"):
        found = answers(cache.snapshot(), newer, name)
        for place, route in enumerate(routing.languages(newer)):
            expected = routing.alone(teacher.teachers[route], newer, [place])[name][0]
            assert same(found[place], expected)
    assert audit(cache, teacher.rows(newer), teacher, runner=LocalRunner()).faithful
    flip(only(path, "segments/*/signals/logits/c/2/0"), 77)
    problems = verify(path).problems
    done = repair(cache, teacher.rows(newer), teacher, problems, runner=LocalRunner())
    assert (done.rows, done.unrepairable) == (6, ())
    assert verify(path).problems == ()
    log = tmp_path / "none"
    quiet = routed(**{r: Noted(t, log) for r, t in teacher.teachers.items()})  # type: ignore[arg-type]
    assert quiet.experts().keys() == teacher.experts().keys()
    taught(path, teacher.rows(newer), teacher)
    assert cache.snapshots() == [cache.snapshot().number]
