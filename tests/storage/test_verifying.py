"""Verify: nothing is said of a sound cache, and every kind of damage is named where it lies."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from stillroom.storage import files
from stillroom.storage.cache import Cache
from stillroom.storage.care import file_checks, segment_checks
from stillroom.storage.care.problems import EXTRA, Verified
from stillroom.storage.care.segment_checks import shard_of
from stillroom.storage.care.verifying import verify
from stillroom.storage.errors import (
    CorruptShardError,
    NotACacheError,
    StorePermissionError,
    StoreUnreachableError,
)
from stillroom.storage.files import json_bytes, with_checksum
from stillroom.storage.mirror import Mirror
from stillroom.storage.objects import ObjectPlace
from stillroom.storage.receipt import receipt_path
from stillroom.storage.segment import Segment
from stillroom.storage.shards import StoredFile
from stillroom.storage.signal import Signal
from stillroom.storage.testing import SmallCache
from tests.storage.caches import (
    FIRST,
    content,
    crc,
    flip,
    only,
    random_flips,
    root,
    values_of,
)
from tests.storage.damage import DAMAGES, Victim, found, inside, the_problem
from tests.storage.s3_server import s3_server


def test_a_sound_cache_has_no_problems_and_all_of_it_is_read(victim: Victim) -> None:
    said = verify(victim.path)
    assert said.problems == ()
    assert said.leftovers == ()
    assert (said.segments, said.drafts, said.snapshots, said.unfinished) == (3, 1, 3, 2)
    assert said.files == len(victim.before)
    assert said.bytes == sum(map(len, victim.before.values()))
    assert json.loads(json.dumps(said.to_json()))["files"] == said.files


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(victim: Victim, threads: int) -> None:
    whole = verify(victim.path)
    assert verify(victim.path, threads=threads) == whole
    for chunk in sorted(victim.path.glob("segments/*/signals/x/c/*/0")):
        flip(chunk, 9)
    damaged = verify(victim.path, threads=threads)
    assert damaged == verify(victim.path)
    assert len(damaged.problems) == 6


def test_what_is_no_cache_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotACacheError, match=r"no cache\.json"):
            verify(path)


def test_a_cache_that_was_never_taught_is_sound(tmp_path: Path) -> None:
    Cache.at(tmp_path / "c")
    assert verify(tmp_path / "c") == Verified((), (), 0, 0, 0, 0, 1, 50)


def each_flip_is_found(path: Path, count: int) -> None:
    """Every flip is found, and the file that holds it is named first."""
    made = hits = 0
    for name, bit in random_flips(path, count, seed=5):
        problems = verify(path).problems
        made, hits = made + 1, hits + bool(problems)
        assert problems, f"bit {bit} of {name} was flipped, and nothing was found"
        assert name in {problem.path for problem in problems}, (name, bit, list(map(str, problems)))
    print(f"{hits} flips found of {made} made in {len(content(path))} files")


def test_flipped_bits_are_found_in_every_file(victim: Victim) -> None:
    each_flip_is_found(victim.path, 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_flipped_bits_are_found(victim: Victim) -> None:
    each_flip_is_found(victim.path, 1000)


SHARDS = {
    "fixed": ("signals/x/c/1/0", 1, "x"),
    "topk": ("signals/top.values/c/2/0", 2, "top"),
    "ragged": ("records/rag/00001.arrow", 1, "rag"),
    "text": ("records/text/00000.arrow", 0, "text"),
}


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_with_its_signal(victim: Victim, kind: str, damage: str) -> None:
    file, shard, signal = SHARDS[kind]
    place = victim.segment(1) / file
    change, words = DAMAGES[damage]
    try:
        change(place)
        problem = the_problem(victim.path)
    finally:
        if damage in ("a folder", "a pipe"):
            place.rmdir() if place.is_dir() else place.unlink()
    assert problem.segment == victim.segment(1).name
    assert (problem.shard, problem.signal, problem.path) == (shard, signal, inside(victim, place))
    assert words in problem.what


def test_a_shard_of_a_draft_is_looked_at_as_well(victim: Victim) -> None:
    place = victim.segment(4) / "records/rag/00001.arrow"
    flip(place, 1000)
    problem = the_problem(victim.path)
    assert (problem.segment, problem.shard) == (victim.segment(4).name, 1)


def test_chunks_in_each_others_place_are_found(victim: Victim) -> None:
    one, other = (victim.segment(1) / f"signals/x/c/{i}/0" for i in (0, 1))
    first = one.read_bytes()
    assert len(first) == other.stat().st_size
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    assert {(p.shard, p.signal) for p in found(victim.path)} == {(0, "x"), (1, "x")}


@pytest.mark.parametrize(
    "file",
    [
        *("cache.json", "notes.txt", "segments/notes.txt", "segments/odd/plan.json"),
        *(
            "segments/{}/notes.txt",
            "segments/{}/signals/x/c/7/1",
            "segments/{}/signals/y/zarr.json",
        ),
        *("segments/{}/records/y/00000.arrow", "snapshots/notes.json", "snapshots/mine.arrow"),
        *(
            "snapshots/000007 (copy).json",
            "segments/{}/signals/x/c/1/9",
            "segments/²²²²-x/plan.json",
        ),
        *("snapshots/²²²²²².json", "snapshots/0000001.json"),
    ],
)
def test_a_file_that_does_not_belong_there_is_named(victim: Victim, file: str) -> None:
    place = victim.path / file.format(victim.segment(1).name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("{}")
    problem = the_problem(victim.path)
    if file == "cache.json":
        assert "does not say" in problem.what
    else:
        assert problem.what == EXTRA
        assert inside(victim, place).startswith(problem.path)
    place.unlink()
    for folder in (victim.path / "segments/odd", victim.path / "segments/²²²²-x"):
        shutil.rmtree(folder, ignore_errors=True)


def test_links_are_not_followed_round_in_circles(victim: Victim) -> None:
    links = [victim.segment(1) / name for name in ("one", "two")]
    for link in links:
        link.symlink_to(victim.segment(1), target_is_directory=True)
    try:
        assert {p.path for p in found(victim.path)} == {inside(victim, link) for link in links}
    finally:
        for link in links:
            link.unlink()


def _reseal(segment: Path, file: str) -> None:
    """Make every checksum over one file of shard 1 right again, as its own writer would have."""
    place, receipt = segment / file, receipt_path(segment, 1)
    written = json.loads(receipt.read_bytes())
    for signal in written["signals"].values():
        for entry in signal["files"]:
            if entry["path"] == file:
                body = place.read_bytes()[: entry["bytes"] - entry["trailer"]]
                entry["crc32c"] = crc(body)
                if entry["trailer"]:
                    place.write_bytes(body + int(crc(body), 16).to_bytes(4, "little"))
    receipt.write_bytes(json_bytes(with_checksum(written)))
    if (segment / "segment.json").exists():
        seal = json.loads((segment / "segment.json").read_bytes())
        seal["files"]["receipts/00001.json"] = crc(receipt.read_bytes())
        (segment / "segment.json").write_bytes(json_bytes(seal))


def a_file(victim: Victim, path: str) -> tuple[Path, StoredFile, Signal]:
    """A file of shard 1 of the first segment, as verify is asked about it."""
    receipt = json.loads(receipt_path(victim.segment(1), 1).read_bytes())
    for name, described in receipt["signals"].items():
        for entry in described["files"]:
            if entry["path"] == path:
                return (
                    victim.segment(1),
                    StoredFile.from_json(entry),
                    Signal.from_json(name, described),
                )
    raise AssertionError(path)


def _overwritten(place: Path, at: int, value: Any) -> None:
    changed = bytearray(place.read_bytes())
    changed[at : at + value.nbytes] = value.tobytes()
    place.write_bytes(changed)


IMPOSSIBLE: dict[str, Any] = {
    "signals/x/c/1/0": np.float32("nan"),
    "signals/brain/c/1/0": np.uint16(0xFF80),
    "signals/top.values/c/1/0": np.float16("inf"),
    "signals/top.logsumexp/c/1": np.float32("-inf"),
    "signals/top.tail/c/1": np.float32("nan"),
    "signals/top.indices/c/1/0": np.uint8(5),
    "records/rag/00001.arrow": np.float16("nan"),
    "records/tok/00001.arrow": np.uint8(200),
}


@pytest.mark.parametrize("piece_bytes", [4 << 20, 64])
@pytest.mark.parametrize("file", IMPOSSIBLE)
def test_values_that_cannot_be_are_found_under_right_checksums(
    victim: Victim, file: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", piece_bytes)
    segment, value = victim.segment(1), IMPOSSIBLE[file]
    place = segment / file
    at = 3 * value.nbytes
    if file.endswith(".arrow"):
        receipt = json.loads(receipt_path(segment, 1).read_bytes())
        entry = receipt["signals"][Path(file).parent.name]["files"][0]
        name = next(n for n in entry["layout"]["columns"] if "values" not in n and "." not in n[4:])
        name = "tok.indices" if "tok" in file else name
        at = entry["layout"]["columns"][name]["values"] + 2 * value.nbytes
    _overwritten(place, at, value)
    _reseal(segment, file)
    problem = the_problem(victim.path)
    assert (problem.path, problem.shard) == (inside(victim, place), 1)
    assert "NaN, infinity or a class that cannot be" in problem.what


def test_integers_may_hold_any_bits(tmp_path: Path) -> None:
    small = SmallCache(tmp_path / "c")
    values = np.array([0x7F800000, 0x7FC00000, -1], "i4").reshape(3, 1)
    small.teach(["a", "b", "c"], {"x": values})
    assert verify(root(small)).problems == ()


def test_a_file_of_many_pieces_is_read_a_piece_at_a_time(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = google_crc32c.extend

    def watched(value: int, piece: Any) -> int:
        sizes.append(len(piece))
        return int(real(value, piece))

    monkeypatch.setattr(files, "PIECE_BYTES", 64)
    monkeypatch.setattr(google_crc32c, "extend", watched)
    for problem in file_checks.file_problems(*a_file(victim, "records/tok/00001.arrow")):
        raise AssertionError(problem)
    assert max(sizes) == 64
    assert len(sizes) > 10
    assert verify(victim.path).problems == ()
    flip(victim.segment(1) / "signals/x/c/0/0", 200)
    assert the_problem(victim.path).shard == 0


@pytest.mark.parametrize("file", ["signals/x/c/1/0", "rows.arrow"])
def test_what_cannot_be_read_is_not_known_to_be_damaged(
    victim: Victim, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, real, code = victim.segment(1) / file, files.pieces_of, [errno.EIO]

    def failing(place: Any, *bounds: Any) -> Any:
        if place == bad:
            raise OSError(code[0], os.strerror(code[0]), str(place))
        return real(place, *bounds)

    monkeypatch.setattr(file_checks, "pieces_of", failing)
    monkeypatch.setattr(segment_checks, "pieces_of", failing)
    with pytest.raises(CorruptShardError, match=rf"cannot read .*{file}: Input/output error\. If"):
        verify(victim.path)
    code[0] = errno.EACCES
    with pytest.raises(StorePermissionError, match=rf"cannot read .*{file}"):
        verify(victim.path)
    code[0] = errno.ENOENT  # pruned meanwhile
    assert the_problem(victim.path).path == inside(victim, bad)


def test_a_segment_is_asked_only_once_what_it_serves(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set that changed often has thousands of runs over a few segments."""
    calls: list[Any] = []
    real = Segment.served

    def counted(segment: Segment) -> Any:
        calls.append(segment)
        return real(segment)

    monkeypatch.setattr(Segment, "served", counted)
    verify(victim.path)
    assert len(calls) == 3


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


def test_a_store_is_verified_like_a_folder(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}
    options["endpoint"] = f"http://127.0.0.1:{server}"
    mirror = Mirror(tmp_path / "mirror", 2**20)
    place = ObjectPlace.at("s3://caches/verify/c", mirror=mirror, options=options)
    small = SmallCache(tmp_path / "c")
    keys = FIRST[:3]
    small.commit(keys, [small.teach(keys, {n: values_of(keys)[n] for n in ("x", "text")})])
    before = content(tmp_path / "c")
    for name, given in before.items():
        (place / name).put(given)
    assert verify(place) == verify(tmp_path / "c")
    chunk, text, described = (
        str(only(tmp_path / "c", pattern).relative_to(tmp_path / "c"))
        for pattern in ("segments/*/signals/x/c/0/0", "segments/*/records/*/*", "snapshots/*.json")
    )
    (place / chunk).put(b"\1" + before[chunk][1:])
    (place / text).remove()
    (place / described).put(before[described].replace(b"a test", b"a jest"))
    assert {p.path for p in verify(place).problems} == {chunk, text, described}

    def down(*given: Any) -> Any:
        raise StoreUnreachableError("the store is down")

    # A store that gives no answer is not damaged.
    monkeypatch.setattr(ObjectPlace, "read_tagged", down)
    with pytest.raises(StoreUnreachableError):
        verify(place)


def test_a_shards_number_is_read_from_no_name_without_end() -> None:
    assert shard_of("receipts/00012.json") == 12
    assert shard_of("receipts/" + "1" * 5000 + ".json") is None
