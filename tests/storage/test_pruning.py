"""Prune: what nobody needs goes, nothing else does, and a dry run says beforehand what that is."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.storage.cache import Cache
from stillroom.storage.care.pruning import Pruned, prune
from stillroom.storage.care.verifying import verify
from stillroom.storage.errors import BusyError, CorruptShardError, FormatError
from stillroom.storage.files import TEMPORARY, write_json
from stillroom.storage.reader import Reader
from stillroom.storage.testing import SmallCache, on_disk
from tests.storage.caches import everything, flip, only, root

KEYS = [f"k{i}" for i in range(6)]
DAY = 86400


def values(factor: float) -> dict[str, Any]:
    return {"x": np.outer(np.arange(6), [factor, -factor]).astype("f4")}


@pytest.fixture(scope="module")
def four_snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 reads segment 1, 2 reads 2, 3 reads 2 and 3, 4 reads 3."""
    small = SmallCache(tmp_path_factory.mktemp("prune") / "c")
    one = small.teach(KEYS, values(1), weights=1)
    small.commit(KEYS, [one])
    two = small.teach(KEYS, values(2), weights=2)
    small.commit(KEYS, [two])
    three = small.teach(KEYS, values(3), weights=3, teacher="other")
    small.commit(KEYS, [two], [three])
    small.commit(KEYS, [three])
    return root(small)


@pytest.fixture
def small(four_snapshots: Path, tmp_path: Path) -> SmallCache:
    """A copy of it."""
    return SmallCache(Path(shutil.copytree(four_snapshots, tmp_path / "c")))


def aged(small: SmallCache, **days: float) -> None:
    """Let snapshots (s1, s2, ...) and segments (g1, g2, ...) have been made that many days ago."""
    for name, ago in days.items():
        if name[0] == "s":
            place = root(small) / f"snapshots/made/{int(name[1:]):06d}.json"
        else:
            place = only(root(small), f"segments/{int(name[1:]):04d}-*") / "made/begun.json"
        write_json(place, {"at": time.time() - ago * DAY})


def numbers(small: SmallCache) -> list[int]:
    """Of the segments and drafts that are there."""
    return sorted(int(p.name[:4]) for p in (root(small) / "segments").iterdir())


def pruned(small: SmallCache, **policy: Any) -> Pruned:
    """Prune; what a dry run of the same call said, and nothing else, must be gone."""
    path = root(small)
    before = everything(path)
    said = prune(small.cache, **policy, dry_run=True)
    assert everything(path) == before
    done = prune(small.cache, **policy)
    assert done == said
    gone = {name: content for name, content in before.items() if name not in everything(path)}
    assert everything(path).items() <= before.items()
    named = [*done.leftovers, *done.quarantined]
    named += [f"segments/{name}" for name in (*done.segments, *done.drafts)]
    named += [f"snapshots/{n:06d}" for n in done.snapshots]
    named += [f"snapshots/made/{n:06d}" for n in done.snapshots]
    named += [f"books/{digest}" for digest in done.books]
    for name in gone:
        assert any(name.startswith(each) for each in named), name
    for each in named:
        assert any(name.startswith(each) for name in before), each
        assert not any(name.startswith(each) for name in everything(path)), each
    assert done.bytes == sum(map(len, gone.values()))
    assert verify(path).problems == ()
    return done


def test_without_a_policy_nothing_goes(small: SmallCache) -> None:
    assert pruned(small) == Pruned((), (), (), (), (), (), 0)
    assert small.cache.snapshots() == [1, 2, 3, 4]


def test_the_last_snapshots_stay_and_what_they_read(small: SmallCache) -> None:
    done = pruned(small, keep_last=3)
    assert (done.snapshots, [name[:4] for name in done.segments]) == ((1,), ["0001"])
    assert pruned(small, keep_last=2).snapshots == (2,)
    assert numbers(small) == [2, 3]
    assert [name[:4] for name in pruned(small, keep_last=1).segments] == ["0002"]
    assert small.cache.snapshots() == [4]
    np.testing.assert_array_equal(
        Reader(small.cache.snapshot()).gather(KEYS)["x"], values(3)["x"], strict=True
    )
    assert pruned(small, keep_last=1) == Pruned((), (), (), (), (), (), 0)


def test_young_snapshots_stay(small: SmallCache) -> None:
    aged(small, s1=30, s2=10, s3=3, s4=1)
    assert pruned(small, keep_days=40).snapshots == ()
    assert pruned(small, keep_days=11).snapshots == (1,)
    assert pruned(small, keep_days=2).snapshots == (2, 3)
    assert pruned(small, keep_days=0).snapshots == ()  # the newest always stays
    assert small.cache.snapshots() == [4]


def test_a_snapshot_that_either_rule_keeps_stays(small: SmallCache) -> None:
    aged(small, s1=30, s2=1, s3=30, s4=30)
    assert pruned(small, keep_last=2, keep_days=7).snapshots == (1,)
    assert small.cache.snapshots() == [2, 3, 4]


@pytest.mark.parametrize("note", ["gone", "{}", '{"at": "soon"}', '{"at": 1e999}', "garbled"])
def test_a_snapshot_of_unknown_age_is_young(small: SmallCache, note: str) -> None:
    aged(small, s2=30, s3=30, s4=30)
    place = root(small) / "snapshots/made/000001.json"
    place.unlink() if note == "gone" else place.write_text(note)
    assert pruned(small, keep_days=7).snapshots == (2, 3)


def test_the_number_of_the_newest_is_never_given_again(small: SmallCache) -> None:
    pruned(small, keep_last=1, draft_days=0)
    segment = small.teach(KEYS, values(4), weights=4)
    assert segment.path.name.startswith("0004-")
    assert small.commit(KEYS, [segment]).number == 5
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="the newest always stays"):
            prune(small.cache, keep_last=wrong)


def test_drafts_and_sealed_work_without_a_snapshot_stay_while_they_are_young(
    small: SmallCache,
) -> None:
    small.draft(KEYS, {"x": "raw"}, weights=8)
    small.teach(KEYS, values(5), weights=9)
    assert pruned(small, keep_last=1).drafts == ()
    assert numbers(small) == [3, 4, 5]
    aged(small, g4=8, g5=6)
    done = pruned(small)
    assert ([n[:4] for n in done.drafts], done.segments) == (["0004"], ())
    done = pruned(small, draft_days=0)
    assert (done.drafts, [n[:4] for n in done.segments]) == ((), ["0005"])


def test_a_draft_of_unknown_age_goes_only_with_all(small: SmallCache) -> None:
    draft = small.draft(KEYS, {"x": "raw"}, weights=8)
    (on_disk(draft.path) / "made/begun.json").unlink()
    assert pruned(small, draft_days=0.001).drafts == ()
    assert len(pruned(small, draft_days=0).drafts) == 1


def test_what_a_killed_run_left_goes(small: SmallCache) -> None:
    path = root(small)
    left = [
        f"{TEMPORARY}0123abcd-1-1-0123456789ab-cache.json",
        f"segments/{only(path, 'segments/0003-*').name}/receipts/{TEMPORARY}x-00000.json",
        f"snapshots/{TEMPORARY}x-000005.json",
        "snapshots/000005-0123abcd.arrow",
        f"segments/{TEMPORARY}x-repair",
        "segments/0007-t-0123456789ab",
    ]
    for name in left[:4]:
        (path / name).write_bytes(b"half")
    for name in left[4:]:
        (path / name / "receipts").mkdir(parents=True)
        (path / name / "receipts/00000.json").write_bytes(b"half")
    done = pruned(small)
    assert set(done.leftovers) == set(left)


def test_what_somebody_else_put_there_stays(small: SmallCache) -> None:
    path = root(small)
    mine = ("notes.txt", "snapshots/mine.arrow", "segments/notes.txt", "segments/odd/file")
    for name in mine:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("mine")
    prune(small.cache, keep_last=1, draft_days=0, quarantine=True)
    assert all((path / name).read_text() == "mine" for name in mine)


def test_quarantine_goes_when_it_is_asked_for(small: SmallCache) -> None:
    path = root(small)
    aside = ("segments/0009-t-0123456789ab/plan.json", "snapshots/000009.json", "files/notes.txt")
    for name in aside:
        (path / "quarantine" / name).parent.mkdir(parents=True)
        (path / "quarantine" / name).write_text("{}")
    assert pruned(small).quarantined == ()
    done = pruned(small, quarantine=True)
    assert set(done.quarantined) == {
        "quarantine/files/notes.txt",
        "quarantine/segments/0009-t-0123456789ab",
        "quarantine/snapshots/000009.json",
    }


@pytest.mark.parametrize("ending", ["json", "arrow"])
def test_nothing_goes_when_a_kept_snapshot_cannot_be_read(small: SmallCache, ending: str) -> None:
    path = root(small)
    flip(only(path, f"snapshots/000003*.{ending}"), 8 * 1 if ending == "json" else 8 * 200)
    before = everything(path)
    for dry_run in (True, False):
        with pytest.raises((CorruptShardError, FormatError)):
            prune(small.cache, keep_last=2, draft_days=0, dry_run=dry_run)
    assert everything(path) == before


def test_a_damaged_snapshot_that_is_dropped_is_no_hindrance(small: SmallCache) -> None:
    path = root(small)
    only(path, "snapshots/000001-*.arrow").write_bytes(b"")
    (path / "snapshots/000002.json").write_bytes(b"{")
    prune(small.cache, keep_last=2)
    assert small.cache.snapshots() == [3, 4]
    assert verify(path).problems == ()


@pytest.mark.parametrize("file", ["plan.json", "segment.json", "rows.arrow"])
def test_damage_in_what_nobody_needs_is_no_hindrance(small: SmallCache, file: str) -> None:
    small.draft(KEYS, {"x": "raw"}, weights=8)
    for number in (1, 4):
        place = only(root(small), f"segments/{number:04d}-*") / file
        if place.exists():
            place.write_bytes(b"{")
    prune(small.cache, keep_last=3, draft_days=0)
    assert numbers(small) == [2, 3]
    assert verify(root(small)).problems == ()


@pytest.mark.parametrize("file", ["plan.json", "segment.json"])
def test_a_damaged_segment_that_is_needed_stays(small: SmallCache, file: str) -> None:
    """Without its plan it looks like a leftover, and without its seal like a draft."""
    (only(root(small), "segments/0003-*") / file).unlink()
    before = everything(root(small))
    done = prune(small.cache, draft_days=0)
    assert done == Pruned((), (), (), (), (), (), 0)
    assert everything(root(small)) == before


def test_open_readers_keep_reading(small: SmallCache) -> None:
    readers = {n: Reader(small.cache.snapshot(n)) for n in (1, 2)}
    readers[1].gather(["k1"])
    done = pruned(small, keep_last=1)
    assert done.snapshots == (1, 2, 3)
    for number, reader in readers.items():
        found = reader.gather(["k5", "k0", "k3"])["x"]
        np.testing.assert_array_equal(found, values(number)["x"][[5, 0, 3]], strict=True)


def test_nobody_prunes_while_somebody_writes(small: SmallCache) -> None:
    before = everything(root(small))
    with small.cache.writing("0123456789abcdef"):
        with pytest.raises(BusyError, match=r"busy: teaching 0123456789ab by process"):
            prune(small.cache, keep_last=1)
        assert everything(root(small)) == before
        assert prune(small.cache, keep_last=1, dry_run=True).snapshots == (1, 2, 3)
    with small.cache.maintaining("compacting"), pytest.raises(BusyError, match="compacting"):
        prune(small.cache, keep_last=1)
    assert pruned(small, keep_last=1).snapshots == (1, 2, 3)


def test_what_was_pruned_is_said_in_plain_json(small: SmallCache) -> None:
    said = json.loads(json.dumps(prune(small.cache, keep_last=1, dry_run=True).to_json()))
    assert said["snapshots"] == [1, 2, 3]
    assert [name[:4] for name in said["segments"]] == ["0001", "0002"]


def test_a_cache_without_snapshots_can_be_pruned(tmp_path: Path) -> None:
    small = SmallCache(tmp_path / "c")
    small.teach(KEYS, values(1))
    assert pruned(small, keep_last=1) == Pruned((), (), (), (), (), (), 0)
    assert len(pruned(small, keep_last=1, draft_days=0).segments) == 1
    assert Cache(tmp_path / "c").snapshots() == []
