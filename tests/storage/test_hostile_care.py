"""Hostile caches: whatever lies in the folder, only our errors come of it; nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillroom.storage import snapshot as snapshots
from stillroom.storage.cache import Cache
from stillroom.storage.care.pruning import prune
from stillroom.storage.care.verifying import verify
from stillroom.storage.errors import BusyError, CorruptShardError, FormatError, StillroomError
from stillroom.storage.files import json_bytes, parse_json, with_checksum
from stillroom.storage.lease import active_leases
from stillroom.storage.reader import Reader
from stillroom.storage.table import one_batch, read_table
from stillroom.storage.testing import SmallCache, content_hashes
from tests.storage.caches import crc, everything, only
from tests.storage.hostile import Victim
from tests.storage.hostile_run import look, run, victims


def said_of(made: list[Victim]) -> Counter[str]:
    found: Counter[str] = Counter()
    for victim in made:
        found += victim.errors
    return found


def explore(folder: Path, numbers: range) -> None:
    """Show these inputs to what reads caches, and print how that went."""
    with victims(folder) as made:
        for victim in made:
            look(victim)
        assert not said_of(made), "the sound caches are not"
        seconds = run(made, numbers)
        errors = said_of(made)
    assert errors.total() > len(numbers) / 4, "the inputs are too tame"
    print(
        f"{len(numbers):,} hostile caches in {seconds:,.0f} s, {len(numbers) / seconds:.0f} a second: "
        f"{errors.total():,} errors, all ours; nothing outside was opened. {dict(errors)}"
    )


def test_hostile_caches_give_only_our_errors(tmp_path: Path) -> None:
    explore(tmp_path, range(150))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_hundred_thousand_hostile_caches(tmp_path: Path) -> None:
    explore(tmp_path, range(100_000))


@pytest.mark.slow
def test_what_the_inputs_reach_is_what_was_guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of the guards the same inputs do find the way out."""
    monkeypatch.setattr(snapshots, "is_segment", lambda name: True)
    with victims(tmp_path) as made, pytest.raises(AssertionError, match=r"^input \d+ \("):
        run(made, range(20_000))


@pytest.fixture
def path(everything_in_it: Path, tmp_path: Path) -> Path:
    """A sound cache with everything in it."""
    return Path(shutil.copytree(everything_in_it, tmp_path / "c"))


SMALL_FILES = (
    *("cache.json", "segments/0001-*/plan.json", "segments/0001-*/rows.arrow"),
    *("segments/0001-*/segment.json", "segments/0001-*/receipts/00000.json"),
    *("segments/0001-*/signals/zarr.json", "segments/0001-*/signals/x/c/0/0"),
    *("segments/0001-*/records/rag/00000.arrow", "segments/0001-*/made/begun.json"),
    *("segments/0004-*/receipts/00001.json", "snapshots/000003.json", "snapshots/000003-*.arrow"),
    "snapshots/made/000003.json",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", SMALL_FILES)
def test_a_pipe_in_the_place_of_a_file_is_never_waited_for(path: Path, pattern: str) -> None:
    place = only(path, pattern)
    place.unlink()
    os.mkfifo(place)
    actions: list[Callable[[], object]] = [
        lambda: verify(path),
        lambda: prune(Cache(path), keep_last=1, dry_run=True),
        lambda: Cache(path).segments(),
        lambda: [d.receipts() for d in Cache(path).drafts()],
        lambda: Reader(Cache(path).snapshot()).gather(["k1"]),
    ]
    for action in actions:
        try:
            action()
        except StillroomError as error:
            assert str(error)  # noqa: PT017


def test_nesting_has_an_end(tmp_path: Path) -> None:
    for depth, fine in ((99, True), (101, False), (900, False), (100_000, False)):
        content = b'{"x":' * depth + b"1" + b"}" * depth
        if fine:
            assert parse_json(content, tmp_path)
        else:
            with pytest.raises(FormatError, match=r"nests deeper than 100|not JSON"):
                parse_json(content, tmp_path)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_tables_are_refused_before_memory_is_taken(
    tmp_path: Path, compression: str
) -> None:
    """A few kilobytes would become a hundred megabytes."""
    batch = pa.record_batch({"x": pa.array(np.zeros(10_000_000, np.int64))})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(tmp_path / "t"), batch.schema, options=options) as writer:
        writer.write_batch(batch)
    del batch
    before = pa.total_allocated_bytes()
    with pytest.raises(CorruptShardError, match="its batch is compressed"):
        read_table(tmp_path / "t", None)
    with pytest.raises(ValueError, match="compressed"):
        one_batch(pa.py_buffer((tmp_path / "t").read_bytes()))
    assert pa.total_allocated_bytes() == before


def test_tables_are_read_without_a_copy(tmp_path: Path) -> None:
    for rows in (0, 1, 1000):
        batch = pa.record_batch({"a": pa.array(range(rows), pa.int64()), "b": ["é"] * rows})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = sink.getvalue()
        found = one_batch(content)
        assert found.equals(batch)
        for column in found.columns:
            for buffer in column.buffers() if rows else ():
                start = 0 if buffer is None else buffer.address - content.address
                assert 0 <= start < content.size


def _resealed(place: Path, **changes: Any) -> None:
    value = {**json.loads(place.read_bytes()), **changes}
    place.write_bytes(json_bytes(with_checksum(value)))


def test_rows_without_end_take_no_memory(path: Path) -> None:
    """A snapshot that says it has 2**61 rows, and that each of many runs serves all of a segment."""
    described = path / "snapshots/000001.json"
    value = json.loads(described.read_bytes())
    runs = path / "snapshots" / value["runs"]
    batch = read_table(runs, None)
    row = batch.to_pylist()[0]
    for rows, copies in ((2**61, 1), (11 * 50_000, 50_000)):
        many = [{**row, "start": i * 11, "rows": 11 if copies > 1 else rows} for i in range(copies)]
        edited = pa.RecordBatch.from_pylist(many, batch.schema)
        with pa.ipc.new_file(str(runs), edited.schema) as writer:
            writer.write_batch(edited)
        _resealed(described, rows=rows, crc32c=crc(runs.read_bytes()))
        snapshot = Cache(path).snapshot(1)
        reads: list[Callable[[], object]] = [
            lambda: snapshot.keys,  # noqa: B023
            lambda: snapshot.hashes("x"),  # noqa: B023
            lambda: snapshot.positions(["k1"]),  # noqa: B023
        ]
        for read in reads:
            with pytest.raises(CorruptShardError, match="has no slots up to"):
                read()


def test_a_name_in_a_snapshot_cannot_leave_the_cache(path: Path) -> None:
    described = path / "snapshots/000003.json"
    runs = only(path, "snapshots/000003-*.arrow")
    batch = read_table(runs, None)
    for name in ("../../outside-ed1f2369e4a4", "/etc", "", ".", "0001-a/../../../x", "0001-\0"):
        rows = [{**row, "segment": name} for row in batch.to_pylist()]
        edited = pa.RecordBatch.from_pylist(rows, batch.schema)
        with pa.ipc.new_file(str(runs), edited.schema) as writer:
            writer.write_batch(edited)
        _resealed(described, crc32c=crc(runs.read_bytes()))
        (problem,) = verify(path).problems
        assert "outside the cache" in problem.what
        for call in (lambda: prune(Cache(path)), lambda: Reader(Cache(path).snapshot())):
            with pytest.raises(FormatError, match="outside the cache"):
                call()


def test_numbers_that_are_used_up_end_in_words_and_not_in_a_loop(path: Path) -> None:
    small = SmallCache(path)
    keys = ["k0"]
    values = {"x": np.zeros((1, 2), "f4")}
    aside = path / "quarantine"
    (aside / "segments/999999999-t-0123456789ab").mkdir(parents=True)
    with pytest.raises(FormatError, match="used up its numbers"):
        small.teach(keys, values)
    (aside / "segments/999999999-t-0123456789ab").rmdir()
    segment = small.teach(keys, values)
    (aside / "snapshots").mkdir()
    (aside / "snapshots/999999999.json").write_text("{}")
    with pytest.raises(FormatError, match="used up its numbers"):
        small.commit(keys, [segment])


ODD_LEASES: tuple[Any, ...] = (
    *(b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"until": 1e400}', b'{"until": NaN}'),
    *(b'{"until": 1' + b"0" * 400 + b"}", b'{"until": 9e99, "pid": []}', b'{"until": "soon"}'),
    *(b'{"until": 9e99, "machine": {}, "token": []}', b'{"released": 1, "until": 9e99}'),
)


@pytest.mark.parametrize("record", ODD_LEASES)
def test_a_made_up_lease_is_held_or_not_but_no_crash(path: Path, record: bytes) -> None:
    for name in ("care", "teach-0123456789abcdef", "teach-other"):
        (path / "leases").mkdir(exist_ok=True)
        (path / "leases" / f"{name}.json").write_bytes(record)
    said = [str(holder) for _, holder in active_leases(path / "leases")]
    assert said == sorted(said)
    for hold in (Cache(path).writing("0123456789abcdef"), Cache(path).maintaining("pruning")):
        try:
            with hold:
                pass
        except BusyError as error:
            assert "busy" in str(error)  # noqa: PT017


def test_links_lead_nowhere(path: Path, tmp_path: Path) -> None:
    """Links to folders are neither followed nor emptied."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    links = [path / name for name in (".tmp-x", "segments/0009-t-0123456789ab", "snapshots/link")]
    links.append(only(path, "segments/0001-*") / "link")
    for link in links:
        link.symlink_to(tmp_path / "mine", target_is_directory=True)
    verify(path)
    before = everything(tmp_path / "mine")
    prune(Cache(path), keep_last=1, draft_days=0, quarantine=True)
    with Cache(path).writing("0123456789abcdef"):
        pass
    assert everything(tmp_path / "mine") == before


def test_a_damaged_receipt_of_a_draft_costs_its_shard_alone(path: Path) -> None:
    (draft,) = Cache(path).drafts()
    assert set(draft.receipts()) == {1}
    place = only(path, "segments/0004-*/receipts/00001.json")
    sound = place.read_bytes()
    damages: list[bytes] = [b"", b"{", b"[]", sound.replace(b'"stop": 8', b'"stop": 9')]
    damages.append(sound.replace(b"signals/x", b"/etc/asswd"))
    for damaged in damages:
        assert damaged != sound
        place.write_bytes(damaged)
        assert draft.receipts() == {}
    place.write_bytes(sound)
    assert set(draft.receipts()) == {1}


def test_two_slots_cannot_serve_one_row_twice(path: Path) -> None:
    """What bounds memory does not refuse what is sound."""
    small = SmallCache(path.parent / "d")
    keys = [f"k{i}" for i in range(30)]
    one = small.teach(keys, {"x": np.ones((30, 2), "f4")}, shard_rows=7)
    two = small.teach(
        keys[::3], {"x": np.zeros((10, 2), "f4")}, hashes=content_hashes(keys[::3], version=1)
    )
    hashes = content_hashes(keys).copy()
    hashes[::3] = content_hashes(keys[::3], version=1)
    served = small.serve(keys, [one, two], hashes)
    snapshot = small.cache.commit(lambda: [served], "many runs")
    assert len(snapshot.stretches()) == 11
    found = Reader(snapshot).gather(keys)["x"]
    assert np.asarray(found)[:, 0].tolist() == [0.0, 1.0, 1.0] * 10


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 2**40), (-1, 3), (5, 3), (0, -(2**63)), (2**62, -(2**62) - 5), (2**63 - 1, -(2**63))],
)
def test_offsets_of_a_ragged_row_cannot_leave_their_file(path: Path, start: int, stop: int) -> None:
    """Nor overflow: the difference of two offsets may be a length that looks possible."""
    segment = only(path, "segments/0001-*")
    receipt = json.loads((segment / "receipts/00000.json").read_bytes())
    (file,) = receipt["signals"]["text"]["files"]
    place = segment / file["path"]
    at = file["layout"]["columns"]["text"]["offsets"] + 8
    content = bytearray(place.read_bytes())
    for offset, value in ((at, start), (at + 8, stop)):
        content[offset : offset + 8] = value.to_bytes(8, "little", signed=True)
    place.write_bytes(content)
    reader = Reader(Cache(path).snapshot(), ["text"], check=False)
    with pytest.raises(CorruptShardError, match="offsets point outside"):
        reader.gather(["k1"])
