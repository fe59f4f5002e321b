"""Compact: many segments become one, and not a byte of any row changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.storage.cache import Cache
from stillroom.storage.care.compacting import Compacted, compact
from stillroom.storage.care.pruning import prune
from stillroom.storage.care.verifying import verify
from stillroom.storage.draft import Draft
from stillroom.storage.errors import BusyError, CorruptShardError, NotACacheError
from stillroom.storage.folder import Shard
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.receipt import receipt_name
from stillroom.storage.segment import Segment
from stillroom.storage.snapshot import Snapshot
from stillroom.storage.testing import SmallCache, bits, content_hashes, on_disk
from tests.storage.caches import ENCODINGS, content, everything, flip, only, root, values_of


def keys(*letters: str) -> list[str]:
    return [f"{letter}{i}" for letter in letters for i in range(7)]


def taught(small: SmallCache, *letters: str, **how: Any) -> list[Segment]:
    """A segment in shards of up to 3 for each letter's seven rows."""
    given = {"encodings": ENCODINGS, "shard_rows": 3, **how}
    return [small.teach(keys(letter), values_of(keys(letter)), **given) for letter in letters]


def stored(snapshot: Snapshot, wanted: list[str]) -> dict[str, Any]:
    """Every stored part of these rows, byte by byte."""
    positions = snapshot.positions(wanted)
    found: dict[str, Any] = {}
    for name, parts in Reader(snapshot).stored(positions).items():
        for part, value in parts.items():
            array = value.values if isinstance(value, Ragged) else value
            found[f"{name}.{part}"] = (array.dtype.str, array.shape, bits(array).tobytes())
            if isinstance(value, Ragged):
                found[f"{name}.{part} lengths"] = value.lengths.tolist()
    return found


@pytest.fixture(scope="module")
def three_segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one teacher, each in a snapshot of its own and all before it."""
    small = SmallCache(tmp_path_factory.mktemp("compact") / "c")
    segments: list[Segment] = []
    for letter in "abc":
        segments += taught(small, letter)
        small.commit(keys(*"abc"[: len(segments)]), segments)
    return root(small)


@pytest.fixture
def small(three_segments: Path, tmp_path: Path) -> SmallCache:
    """A copy of it."""
    return SmallCache(Path(shutil.copytree(three_segments, tmp_path / "c")))


def test_segments_become_one_and_every_stored_byte_of_every_row_is_the_same(
    small: SmallCache,
) -> None:
    old = small.cache.snapshot()
    before, files = stored(old, keys(*"cab")), content(root(small))
    done = compact(small.cache, shard_rows=5)
    assert done.snapshot == 4
    (merged,) = done.merged
    assert (merged.teacher, merged.rows, len(merged.segments)) == ("teacher", 21, 3)
    new = small.cache.snapshot()
    assert len({name for *_, name, _ in new.stretches()}) == 1
    assert stored(new, keys(*"cab")) == before
    assert new.keys.to_pylist() == old.keys.to_pylist()
    assert (new.hashes("x") == old.hashes("x")).all()
    assert new.sources == old.sources
    assert files.items() <= content(root(small)).items()
    assert verify(root(small)).problems == ()
    assert small.cache.segments()[-1].shard_rows == 5


def test_what_is_joined_can_be_pruned_away_and_the_rows_stay(small: SmallCache) -> None:
    before = stored(small.cache.snapshot(), keys(*"abc"))
    readers = {n: Reader(small.cache.snapshot(n)) for n in (1, 2, 3)}
    compact(small.cache)
    for number in (1, 2, 3):
        stored(small.cache.snapshot(number), keys(*"abc"[:number]))
    assert prune(small.cache).segments == ()
    gone = prune(small.cache, keep_last=1)
    assert [name[:4] for name in gone.segments] == ["0001", "0002", "0003"]
    assert stored(small.cache.snapshot(), keys(*"abc")) == before
    assert readers[1].gather(["a3"])["text"] == ["é a3"]
    said = verify(root(small))
    assert (said.problems, said.segments, said.snapshots) == ((), 1, 1)


def test_it_is_done_once(small: SmallCache) -> None:
    compact(small.cache)
    before = everything(root(small))
    assert compact(small.cache) == Compacted((), None)
    assert everything(root(small)) == before


def test_a_dry_run_says_the_same_and_writes_nothing(small: SmallCache) -> None:
    before = everything(root(small))
    said = compact(small.cache, dry_run=True)
    assert everything(root(small)) == before
    done = compact(small.cache)
    assert (said.merged, said.snapshot) == (done.merged, None)
    assert json.loads(json.dumps(said.to_json()))["merged"][0]["rows"] == 21


def test_only_small_segments_are_joined(tmp_path: Path) -> None:
    small = SmallCache(tmp_path / "c")
    large = small.teach(keys(*"de"), values_of(keys(*"de")), encodings=ENCODINGS)
    segments = [large, *taught(small, "a", "b")]
    small.commit(keys(*"abde"), segments)
    before = stored(small.cache.snapshot(), keys(*"abde"))
    assert compact(small.cache, small_rows=7) == Compacted((), None)
    done = compact(small.cache, small_rows=8)
    assert [name[:4] for name in done.merged[0].segments] == ["0002", "0003"]
    assert done.merged[0].rows == 14
    assert stored(small.cache.snapshot(), keys(*"abde")) == before
    assert [s[3][:4] for s in small.cache.snapshot().stretches()] == ["0001", "0004"]
    assert len(compact(small.cache).merged[0].segments) == 2


def test_rows_that_were_deleted_or_edited_are_not_copied(small: SmallCache) -> None:
    left = [key for key in keys(*"abc") if key[1] not in "25"]
    hashes = content_hashes(left).copy()
    edited = small.teach(
        ["a1"], values_of(["zz"]), encodings=ENCODINGS, hashes=content_hashes(["a1"], version=1)
    )
    hashes[left.index("a1")] = content_hashes(["a1"], version=1)[0]
    served = small.serve(left, small.cache.segments(), hashes)
    small.cache.commit(lambda: [served], "rows went")
    before = stored(small.cache.snapshot(), left)
    done = compact(small.cache)
    assert done.merged[0].rows == len(left) == 15
    new = small.cache.segments()[-1]
    assert new.rows == 15
    assert sorted(new.keys.to_pylist()) == sorted(left)
    assert stored(small.cache.snapshot(), left) == before
    assert Reader(small.cache.snapshot(), ["text"]).gather(["a1"])["text"] == ["é zz"]
    assert edited.path.name in done.merged[0].segments


def test_each_teacher_is_joined_apart(small: SmallCache) -> None:
    ids = [
        small.teach(keys(letter), {"id": np.arange(7)}, teacher="other", weights=7)
        for letter in "ac"
    ]
    mine = [s for s in small.cache.segments() if s.teacher == "teacher"]
    small.commit(keys(*"abc"), mine, ids)
    snapshot = small.cache.snapshot()
    before = stored(snapshot, keys(*"ca"))
    missing = Reader(snapshot, ["id"])._sources["id"].missing(snapshot.positions(keys("b")))
    done = compact(small.cache)
    assert {m.teacher: (m.rows, m.signals) for m in done.merged} == {
        "teacher": (21, tuple(mine[0].signals)),
        "other": (14, ("id",)),
    }
    snapshot = small.cache.snapshot()
    assert stored(snapshot, keys(*"ca")) == before
    again = Reader(snapshot, ["id"])._sources["id"].missing(snapshot.positions(keys("b")))
    assert len(again) == len(missing) == 7
    assert verify(root(small)).problems == ()


def test_a_teacher_of_one_segment_is_left_alone(small: SmallCache) -> None:
    whole = small.teach(keys(*"abc"), {"id": np.arange(21)}, teacher="other", weights=7)
    small.commit(keys(*"abc"), small.cache.segments()[:3], [whole])
    assert [m.teacher for m in compact(small.cache).merged] == ["teacher"]
    assert whole.path.name in {name for *_, name, _ in small.cache.snapshot().stretches()}


class Cut(Exception):
    """The process ends here."""


def test_a_compaction_that_was_cut_off_goes_on_where_it_stopped(
    small: SmallCache, three_segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left, copied = Draft.finish, [3], list[str]()

    def cut(draft: Draft, shard: Shard, described: Any) -> Any:
        if left[0] == 0:
            raise Cut
        left[0] -= 1
        copied.append(receipt_name(shard.index).rpartition("/")[2])
        return real(draft, shard, described)

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "finish", cut)
        with pytest.raises(Cut):
            compact(small.cache, shard_rows=4)
        assert verify(root(small)).problems == ()
        assert small.cache.snapshots() == [1, 2, 3]
        assert len(small.cache.drafts()) == 1
        left[0] = 100
        done = compact(small.cache, shard_rows=4)
    assert sorted(copied) == [f"{i:05d}.json" for i in range(6)]  # each shard once
    assert done.snapshot == 4
    whole = SmallCache(Path(shutil.copytree(three_segments, tmp_path / "whole")))
    compact(whole.cache, shard_rows=4)
    assert content(root(small)) == content(root(whole))


@pytest.mark.parametrize("where", ["seal", "commit"])
def test_what_was_sealed_before_the_snapshot_is_used(
    small: SmallCache, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(small.cache.snapshot(), keys(*"abc"))

    def cut(*given: Any) -> Any:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(*((Draft, "seal", cut) if where == "seal" else (Cache, "commit", cut)))
        with pytest.raises(Cut):
            compact(small.cache)
    assert verify(root(small)).problems == ()
    segments = len(small.cache.segments())
    done = compact(small.cache)
    assert done.snapshot == 4
    assert len(small.cache.segments()) == 4
    assert segments == (3 if where == "seal" else 4)
    assert stored(small.cache.snapshot(), keys(*"abc")) == before
    assert compact(small.cache) == Compacted((), None)


def test_damage_is_not_copied(small: SmallCache) -> None:
    flip(only(root(small), "segments/0002-*/records/text/00001.arrow"), 8 * 300)
    before = content(root(small))
    with pytest.raises(CorruptShardError, match=r"records/text/00001\.arrow"):
        compact(small.cache)
    assert small.cache.snapshots() == [1, 2, 3]
    assert before.items() <= content(root(small)).items()
    (problem,) = verify(root(small)).problems
    assert problem.path.endswith("records/text/00001.arrow")


def test_errors_of_the_encoding_are_kept(tmp_path: Path) -> None:
    small = SmallCache(tmp_path / "c")
    segments = []
    for letter, error in (("a", 0.25), ("b", 0.75)):
        draft = small.draft(keys(letter), {"x": "float16"}, shard_rows=7)
        draft.write(draft.shards()[0], {"x": np.ones((7, 2), "f4")}, {"x": {"max_abs": error}})
        segments.append(draft.seal())
    small.commit(keys("a", "b"), segments)
    compact(small.cache)
    assert small.cache.segments()[-1].errors == {"x": {"max_abs": 0.75}}


def test_numbers_as_keys_stay_numbers(tmp_path: Path) -> None:
    small = SmallCache(tmp_path / "c")
    parts = [small.teach(k, {"x": np.array(k, "f4")}) for k in ([5, 3, 9], [1], [2, 8])]
    small.commit([1, 2, 3, 5, 8, 9], parts)
    compact(small.cache)
    snapshot = small.cache.snapshot()
    assert sorted(snapshot.keys.to_pylist()) == [1, 2, 3, 5, 8, 9]
    assert np.asarray(Reader(snapshot).gather([8, 5, 1])["x"]).tolist() == [8, 5, 1]


def test_nobody_compacts_while_somebody_writes(small: SmallCache) -> None:
    with small.cache.writing("0123456789abcdef"):
        with pytest.raises(BusyError, match="teaching 0123456789ab"):
            compact(small.cache)
        assert len(compact(small.cache, dry_run=True).merged) == 1
    assert small.cache.snapshots() == [1, 2, 3]


def test_a_cache_without_snapshots_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotACacheError, match="no snapshot yet"):
        compact(Cache.at(tmp_path / "c"))


def test_a_cut_off_copy_is_not_taken_for_other_rows(small: SmallCache) -> None:
    """A draft of the same keys with other content is not continued."""
    order = small.cache.snapshot().keys.to_pylist()
    asked = {n: ENCODINGS.get(n, "raw") for n in values_of(["a0"])}
    other = content_hashes(order, version=3)
    draft = small.draft(order, asked, hashes=other, shard_rows=30)
    draft.write(draft.shards()[0], values_of(["zz"] * 21), {})
    compact(small.cache)
    assert Reader(small.cache.snapshot(), ["text"]).gather(["b4"])["text"] == ["é b4"]
    assert on_disk(draft.path).is_dir()
