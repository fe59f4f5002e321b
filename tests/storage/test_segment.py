"""A segment is written shard by shard, sealed once, and serves exactly what was finished."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillroom.storage.draft import Draft
from stillroom.storage.errors import (
    CorruptShardError,
    FormatError,
    RowsError,
    SignalError,
    StoreFullError,
)
from stillroom.storage.files import TEMPORARY
from stillroom.storage.folder import Ask, Shard
from stillroom.storage.reader import Reader
from stillroom.storage.segment import Segment
from stillroom.storage.testing import SmallCache, content_hashes, on_disk

KEYS = [f"k{i}" for i in range(11)]
VALUES = {"x": np.arange(22, dtype="f4").reshape(11, 2)}


def test_sealing_serves_only_finished_shards(small: SmallCache) -> None:
    segment = small.teach(KEYS, VALUES, finish=[0, 2])
    assert segment.finished == (0, 2)
    assert segment.served().tolist() == [True] * 4 + [False] * 4 + [True] * 3
    snapshot = small.commit(KEYS, [segment])
    assert snapshot.keys.to_pylist() == KEYS[:4] + KEYS[8:]
    rows = Reader(snapshot).gather(["k9", "k0"])["x"]
    np.testing.assert_array_equal(rows, VALUES["x"][[9, 0]])
    with pytest.raises(CorruptShardError, match="no finished shard 1"):
        segment.runs("x", 0, 0, 11)


def test_shards_cover_all_rows_and_are_of_nearly_one_size(small: SmallCache) -> None:
    draft = small.draft(KEYS, {"x": "raw"}, shard_rows=10)
    assert draft.shards() == [Shard(0, 0, 6), Shard(1, 6, 11)]
    one = small.draft(KEYS, {"x": "raw"}, shard_rows=1000)
    assert one.shards() == [Shard(0, 0, 11)]


def test_a_draft_found_again_has_everything_it_was_made_with(small: SmallCache) -> None:
    made = small.draft(KEYS, {"x": "float16"}, weights=7)
    (draft,) = small.cache.drafts()
    assert draft.path == made.path
    assert (draft.teacher, draft.identity, draft.rows) == ("teacher", {"weights": 7}, 11)
    assert draft.asked == {"x": Ask("float16", "")}
    assert draft.keys.to_pylist() == KEYS
    assert draft.hashes.tobytes() == content_hashes(KEYS).tobytes()
    assert small.cache.segments() == []


def test_sealed_again_after_a_crash_the_bytes_are_the_same(small: SmallCache) -> None:
    segment = small.teach(KEYS, VALUES)
    files = {p: p.read_bytes() for p in on_disk(segment.path).rglob("*") if p.is_file()}
    (on_disk(segment.path) / "segment.json").unlink()
    (draft,) = small.cache.drafts()
    draft.seal()
    assert {p: p.read_bytes() for p in on_disk(segment.path).rglob("*") if p.is_file()} == files


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "a folder"])
def test_a_receipt_whose_file_changed_size_is_not_valid(small: SmallCache, damage: str) -> None:
    draft = small.draft(KEYS, {"x": "raw"})
    shard = draft.shards()[0]
    receipt = draft.write(shard, {"x": VALUES["x"][:4]}, {})
    assert draft.receipt(0) == receipt
    assert draft.receipt(1) is None
    path = draft.path / receipt["signals"]["x"]["files"][0]["path"]
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(content[:-1] if damage == "truncated" else content + b"\0")
    assert draft.receipt(0) is None
    with pytest.raises(CorruptShardError, match="no finished shard"):
        draft.seal()


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (np.zeros((4, 3), "f4"), "row shape (2,) became (3,)"),
        (np.zeros((4, 2), "f8"), "dtype 'float32' became 'float64'"),
    ],
)
def test_shards_that_disagree_cannot_be_sealed(small: SmallCache, second: Any, words: str) -> None:
    draft = small.draft(KEYS, {"x": "raw"})
    draft.write(draft.shards()[0], {"x": VALUES["x"][:4]}, {})
    draft.write(draft.shards()[1], {"x": second}, {})
    with pytest.raises(SignalError) as caught:
        draft.seal()
    assert words in str(caught.value)
    assert "signal 'x'" in str(caught.value)
    assert "shard 1" in str(caught.value)
    assert small.cache.segments() == []


def test_a_shard_takes_exactly_its_rows(small: SmallCache) -> None:
    draft = small.draft(KEYS, {"x": "raw"})
    for rows in (0, 3, 5):
        with pytest.raises(SignalError, match="signal 'x', shard 0"):
            draft.write(draft.shards()[0], {"x": VALUES["x"][:rows]}, {})
    assert draft.receipt(0) is None


def test_a_value_that_cannot_be_encoded_names_signal_and_shard(small: SmallCache) -> None:
    draft = small.draft(KEYS, {"x": "float16"})
    with pytest.raises(SignalError, match=r"signal 'x', shard 1: value 70000 .* use bfloat16"):
        draft.write(draft.shards()[1], {"x": np.full((4, 2), 7e4)}, {})


@pytest.mark.parametrize(
    ("keys", "hashes", "shard_rows"),
    [([], content_hashes([]), 4), (KEYS, content_hashes(KEYS[1:]), 4), (KEYS, None, 0)],
)
def test_a_segment_without_proper_rows_is_refused(
    small: SmallCache, keys: Any, hashes: Any, shard_rows: int
) -> None:
    with pytest.raises(RowsError):
        small.draft(keys, {"x": "raw"}, hashes=hashes, shard_rows=shard_rows)
    assert not list((on_disk(small.cache.path) / "segments").glob("*"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x"])
def test_names_that_leave_the_folder_are_refused(small: SmallCache, name: str) -> None:
    with pytest.raises(SignalError):
        small.draft(KEYS, {name: "raw"})
    with pytest.raises(SignalError):
        small.draft(KEYS, {"x": "raw"}, teacher=name)


def test_a_draft_that_cannot_be_made_leaves_nothing(
    small: SmallCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(StoreFullError):
                small.draft(KEYS, {"x": "raw"})
        assert small.cache.drafts() == []
        assert not list(on_disk(small.cache.path).rglob("*.*"))[1:]  # cache.json alone


def test_errors_and_bytes_of_shards_are_summed_up(small: SmallCache) -> None:
    draft = small.draft(KEYS, {"x": "float16"})
    for shard, error in zip(draft.shards(), (1.0, 5.0, 3.0), strict=True):
        measured = {"x": {"max_abs": error, "kl": error}}
        draft.write(shard, {"x": VALUES["x"][shard.start : shard.stop]}, measured)
    segment = draft.seal()
    assert segment.errors == {"x": {"max_abs": 5.0, "kl": 3.0}}
    assert segment.bytes == segment.signal_bytes["x"] == 3 * (4 * 2 * 2 + 4)
    assert segment.bytes == sum(
        p.stat().st_size for p in on_disk(segment.path).glob("signals/x/c/*/0")
    )


def test_segments_are_ordered_by_number_beyond_four_digits(small: SmallCache) -> None:
    first = small.teach(["a"], {"x": np.zeros((1, 2), "f4")})
    os.rename(
        on_disk(first.path),
        on_disk(first.path).parent / on_disk(first.path).name.replace("0001-", "9999-"),
    )
    second = small.teach(["a"], {"x": np.ones((1, 2), "f4")})
    third = small.teach(["a"], {"x": np.ones((1, 2), "f4")})
    assert second.path.name.startswith("10000-")
    assert third.path.name.startswith("10001-")
    (on_disk(small.cache.path) / "segments" / "notes.txt").write_text("not a segment")
    (on_disk(small.cache.path) / "segments" / ".DS_Store").write_text("")
    assert [s.path.name[:5] for s in small.cache.segments()] == ["9999-", "10000", "10001"]


def _file(segment: Segment, pattern: str) -> Path:
    return next(iter(sorted(on_disk(segment.path).glob(pattern))))


@pytest.mark.parametrize("pattern", ["signals/x/c/1/0", "receipts/*0.json", "rows.arrow"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_problems_names_every_damaged_file(small: SmallCache, pattern: str, damage: str) -> None:
    segment = small.teach(KEYS, VALUES)
    assert segment.problems() == []
    path = _file(segment, pattern)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flipped":
        path.write_bytes(content)
    else:
        path.unlink()
    (problem,) = segment.problems()
    assert str(path) in problem


@pytest.mark.parametrize("pattern", ["receipts/*0.json", "rows.arrow", "plan.json"])
def test_a_changed_small_file_is_never_believed(small: SmallCache, pattern: str) -> None:
    snapshot = small.commit(KEYS, [small.teach(KEYS, VALUES)])
    (segment,) = small.cache.segments()
    path = _file(segment, pattern)
    content = path.read_bytes()
    # Still valid JSON or Arrow: only the checksum can tell.
    changed = content.replace(b'"rows": 4', b'"rows": 3').replace(b"k5", b"k4")
    if pattern == "plan.json":
        changed = content.replace(b'"weights": 1', b'"weights": 2')
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(CorruptShardError, match=path.name):
        Reader(snapshot).gather(["k1"])


def test_a_seal_must_fit_its_plan(small: SmallCache) -> None:
    segment = small.teach(KEYS, VALUES)
    path = on_disk(segment.path) / "segment.json"
    sealed = json.loads(path.read_bytes())
    changes: list[dict[str, Any]] = [
        {"rows": 12},
        {"digest": "x"},
        {"format": 3},
        {"shards": [3]},
        {"shards": [-1]},
        {"files": {}},
        {"files": {**sealed["files"], "../../cache.json": "0"}},
        {"files": {**sealed["files"], "/etc/passwd": "0"}},
    ]
    for changed in changes:
        path.write_text(json.dumps({**sealed, **changed}))
        with pytest.raises(FormatError, match=r"segment\.json"):
            Segment(segment.path)


def test_rows_of_another_shape_than_their_table_are_refused(small: SmallCache) -> None:
    draft = small.draft(KEYS, {"x": "raw"})
    columns = {
        "key": pa.array(KEYS, pa.large_string()),
        "hash": pa.array([b"0" * 16] * 11, pa.binary(16)),
        "view": pa.array(range(11), pa.int32()),
    }
    wrong: list[dict[str, Any]] = [
        {"key": pa.array(range(11), pa.float64())},
        {"key": pa.array([*KEYS[:10], None], pa.large_string())},
        {"hash": pa.array([b"0" * 8] * 11, pa.binary(8))},
        {"view": pa.array([None] * 11, pa.int32())},
        {"more": pa.array(range(11))},
    ]
    for change in wrong:
        batch = pa.record_batch({**columns, **change})
        with pa.ipc.new_file(str(draft.path / "rows.arrow"), batch.schema) as writer:
            writer.write_batch(batch)
        with pytest.raises(CorruptShardError, match=r"rows\.arrow"):
            _ = Draft(draft.path).keys


def test_no_temporary_file_is_left_after_teaching(small: SmallCache) -> None:
    small.commit(KEYS, [small.teach(KEYS, VALUES)])
    assert not list(on_disk(small.cache.path).rglob(f"{TEMPORARY}*"))
