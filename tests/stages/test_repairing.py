"""Repair: the cache is right again, and no row was computed that need not be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import Repaired, audit, repair
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.storage import BusyError, Cache, FormatError, Ragged, verify
from stillroom.storage.care.mending import restore_marker
from stillroom.storage.care.problems import Problem
from stillroom.storage.testing import between
from tests.stages.damaged import (
    EDITED,
    FIRST,
    ROWS,
    SEGMENT,
    asked,
    assert_right,
    both,
    data,
    lose,
    mended,
    said,
    spoil,
)
from tests.storage.caches import content, everything, flip, only, random_flips

AS_BEFORE: dict[str, tuple[Callable[[Path], None], int]] = {
    "a chunk": (spoil(f"{SEGMENT}/signals/x/c/1/0"), 5),
    "a part of topk": (spoil(f"{SEGMENT}/signals/top.values/c/2/0", 33), 5),
    "a ragged shard": (spoil(f"{SEGMENT}/records/tok/00000.arrow", 4000), 5),
    "a text shard": (spoil(f"{SEGMENT}/records/text/00003.arrow", 2000), 5),
    "two of one shard": (
        both(spoil(f"{SEGMENT}/signals/x/c/1/0"), spoil(f"{SEGMENT}/records/tok/00001.arrow")),
        5,
    ),
    "two shards": (
        both(spoil(f"{SEGMENT}/signals/x/c/0/0"), spoil(f"{SEGMENT}/signals/x/c/3/0")),
        10,
    ),
    "a chunk is gone": (lose(f"{SEGMENT}/signals/x/c/1/0"), 5),
    "a ragged shard is gone": (lose(f"{SEGMENT}/records/tok/00001.arrow"), 5),
    "a receipt": (spoil(f"{SEGMENT}/receipts/00001.json"), 5),
    "a receipt is gone": (lose(f"{SEGMENT}/receipts/00002.json"), 5),
    "a receipt and its chunk": (
        both(spoil(f"{SEGMENT}/receipts/00001.json"), spoil(f"{SEGMENT}/signals/x/c/1/0")),
        5,
    ),
    "a receipt, and the chunk of another": (
        both(spoil(f"{SEGMENT}/receipts/00001.json"), spoil(f"{SEGMENT}/signals/x/c/2/0")),
        10,
    ),
    "the rows": (spoil(f"{SEGMENT}/rows.arrow"), 0),
    "the rows are gone": (lose(f"{SEGMENT}/rows.arrow"), 0),
    "the plan": (spoil(f"{SEGMENT}/plan.json"), 0),
    "the plan is gone": (lose(f"{SEGMENT}/plan.json"), 0),
    "plan and rows are gone": (lose(f"{SEGMENT}/plan.json", f"{SEGMENT}/rows.arrow"), 0),
    "plan, rows and a chunk": (
        both(
            lose(f"{SEGMENT}/plan.json", f"{SEGMENT}/rows.arrow"),
            spoil(f"{SEGMENT}/signals/x/c/1/0"),
        ),
        5,
    ),
    "the seal": (spoil(f"{SEGMENT}/segment.json"), 0),
    "the seal is gone": (lose(f"{SEGMENT}/segment.json"), 0),
    "the seal and a chunk": (
        both(lose(f"{SEGMENT}/segment.json"), spoil(f"{SEGMENT}/signals/x/c/1/0")),
        5,
    ),
    "Zarr's metadata": (spoil(f"{SEGMENT}/signals/x/zarr.json"), 0),
    "Zarr's metadata are gone": (
        lose(f"{SEGMENT}/signals/x/zarr.json", f"{SEGMENT}/signals/zarr.json"),
        0,
    ),
    "the marker": (spoil("cache.json", 300), 0),
    "the marker is gone": (lose("cache.json"), 0),
}


@pytest.mark.parametrize("damage", AS_BEFORE)
def test_what_can_be_put_back_is_byte_for_byte_as_it_was(one_teacher: Path, damage: str) -> None:
    before = content(one_teacher)
    spoilt, rows = AS_BEFORE[damage]
    spoilt(one_teacher)
    assert content(one_teacher) != before
    done = mended(one_teacher)
    assert done.rows == rows
    assert content(one_teacher) == before
    assert done.put_back or damage.startswith("the marker")
    assert (done.retaught, done.quarantined, done.unrepairable, done.snapshot) == ((), (), (), None)
    assert_right(one_teacher)


def test_each_sum_in_the_seal_is_put_right_without_the_teacher(one_teacher: Path) -> None:
    before = content(one_teacher)
    (name,) = (n for n in before if n.endswith("segment.json"))
    for stated in sorted(json.loads(before[name])["files"]):
        value = json.loads(before[name])
        value["files"][stated] = "0123abcd"
        (one_teacher / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
        assert mended(one_teacher).rows == 0
        assert content(one_teacher) == before


def test_any_flipped_bit_is_mended(one_teacher: Path) -> None:

    before = content(one_teacher)
    for name, bit in random_flips(one_teacher, 6, seed=3):
        done = mended(one_teacher)
        assert done.rows <= 5, (name, bit)
        assert verify(one_teacher).problems == (), (name, bit)
        if not name.startswith("snapshots/"):
            assert content(one_teacher) == before, (name, bit)
        shutil.rmtree(one_teacher)
        for path, given in before.items():
            (one_teacher / path).parent.mkdir(parents=True, exist_ok=True)
            (one_teacher / path).write_bytes(given)


@pytest.mark.parametrize("ending", ["json", "arrow"])
@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("number", [2, 3])
def test_a_damaged_snapshot_is_put_aside_and_a_new_one_taken(
    two_teachers: Path, ending: str, gone: bool, number: int
) -> None:
    before = content(two_teachers)
    place = only(two_teachers, f"snapshots/{number:06d}*.{ending}")
    if gone and ending == "json":
        return  # as if it had never been: see test_verifying
    place.unlink() if gone else flip(place, 1000)
    done = mended(two_teachers, EDITED)
    assert (done.rows, done.unrepairable) == (0, ())
    assert {name[:16] for name in done.quarantined} == {f"snapshots/{number:06d}"}
    assert done.snapshot == (4 if number == 3 else None)
    assert_right(two_teachers, EDITED)
    assert "minus" in Cache(two_teachers).snapshot().signals
    kept = {n: c for n, c in before.items() if f"snapshots/{number:06d}" not in n}
    assert kept.items() <= content(two_teachers).items()
    assert Cache(two_teachers).snapshot().number != number


def plant(path: Path, change: Callable[[Any], Any]) -> None:
    """Teach, and store wrong values of `x` in the second shard with right checksums."""
    rows, cache = data(), Cache.at(path)
    state = TeachState(cache, rows, FIRST)
    with cache.writing(state.digest):
        draft = cache.draft("first", state.identity, state.asked, rows.keys, state.own.hashes, 5)
        image: Any = rows.read(np.arange(ROWS), ["image"])["image"]
        for shard in draft.shards():
            values = {
                name: between(Ragged.of(v) if name == "tok" else v, shard.start, shard.stop)
                for name, v in said(image).items()
            }
            if shard.index == 1:
                values["x"] = change(values["x"])
            draft.write(shard, values, {})
        draft.seal()
        cache.commit(lambda: state.served(cache.segments()), "planted")


@pytest.mark.parametrize("change", [partial(np.roll, shift=1, axis=0), lambda x: x * 1.01])
def test_wrong_values_that_audit_finds_are_replaced(
    tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    plant(tmp_path / "c", change)
    assert verify(tmp_path / "c").problems == ()
    before = content(tmp_path / "c")
    problems = audit(Cache(tmp_path / "c"), data(), FIRST, runner=LocalRunner()).problems()
    assert {(p.shard, p.signal) for p in problems} == {(1, "x")}
    asked.clear()
    done = repair(Cache(tmp_path / "c"), data(), FIRST, problems, runner=LocalRunner())
    assert sum(asked) == done.rows == 5
    assert (len(done.retaught), done.put_back, done.snapshot) == (1, (), 2)
    assert_right(tmp_path / "c")
    # Nothing that was sealed changed: who trained from the old snapshot can still see what it read.
    assert before.items() <= content(tmp_path / "c").items()
    assert Cache(tmp_path / "c").segments()[-1].rows == 5


def test_nobody_repairs_while_somebody_writes(one_teacher: Path) -> None:
    spoil(f"{SEGMENT}/signals/x/c/1/0")(one_teacher)
    with Cache(one_teacher).writing("0123456789abcdef"):
        before = everything(one_teacher)
        with pytest.raises(BusyError, match="teaching 0123456789ab"):
            mended(one_teacher)
        assert everything(one_teacher) == before
    assert mended(one_teacher).rows == 5


def test_nothing_to_mend_is_nothing_done(one_teacher: Path) -> None:
    before = everything(one_teacher)
    done = repair(Cache(one_teacher), data(), FIRST, (), runner=LocalRunner())
    assert done == Repaired((), (), (), (), 0, None)
    assert everything(one_teacher) == before


def test_a_newer_format_is_no_damage(one_teacher: Path) -> None:
    (one_teacher / "cache.json").write_text('{"format": 9}')
    with pytest.raises(FormatError, match="format 9; upgrade stillroom"):
        restore_marker(one_teacher)


@pytest.mark.parametrize("noted", ["-5", "0", "1e400", '"many"', "garbled"])
def test_what_is_noted_of_costs_may_be_garbled(one_teacher: Path, noted: str) -> None:
    spoil(f"{SEGMENT}/signals/x/c/1/0")(one_teacher)
    before = only(one_teacher, SEGMENT) / "made/00001.json"
    before.write_text(f'{{"batch_size": {noted}}}' if noted != "garbled" else "garbled")
    assert mended(one_teacher).rows == 5
    assert_right(one_teacher)


def test_no_name_in_a_problem_leads_outside(one_teacher: Path, tmp_path: Path) -> None:
    """A made-up snapshot cannot make repair move or write what is not the cache's."""
    digest = only(one_teacher, SEGMENT).name[-12:]
    outside = tmp_path / f"outside-{digest}"
    outside.mkdir()
    (outside / "plan.json").write_text("mine")
    name = f"../../outside-{digest}"
    problem = Problem(name, 0, "x", f"segments/{name}/segment.json", "is missing")
    with pytest.raises(FormatError, match="no segment"):
        repair(Cache(one_teacher), data(), FIRST, [problem], runner=LocalRunner())
    assert (outside / "plan.json").read_text() == "mine"
