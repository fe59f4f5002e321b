"""Verify, of small files: plans, rows, receipts, seals, snapshots, and what a killed run left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillroom.storage.care.verifying import verify
from stillroom.storage.files import TEMPORARY, json_bytes, with_checksum
from stillroom.storage.testing import SmallCache, on_disk
from tests.storage.caches import (
    FIRST,
    crc,
    edit_json,
    flip,
    only,
    restored,
    root,
    values_of,
)
from tests.storage.damage import DAMAGES, Victim, found, inside, the_problem

SMALL = ("plan.json", "rows.arrow", "receipts/00001.json", "segment.json", "signals/x/zarr.json")


@pytest.mark.parametrize("file", SMALL)
@pytest.mark.parametrize("damage", ["deleted", "cut", "empty"])
def test_a_damaged_small_file_is_named(victim: Victim, file: str, damage: str) -> None:
    place = victim.segment(1) / file
    DAMAGES[damage][0](place)
    problems = found(victim.path)
    assert {p.path for p in problems} == {inside(victim, place)}
    assert problems[0].segment == victim.segment(1).name


def test_receipts_in_each_others_place_are_found(victim: Victim) -> None:
    for number in (1, 4):
        one = victim.segment(number) / "receipts/00000.json"
        other = victim.segment(number) / "receipts/00001.json"
        first = one.read_bytes() if one.exists() else None
        one.write_bytes(other.read_bytes())
        if first is not None:
            other.write_bytes(first)
        problems = found(victim.path)
        assert {p.shard for p in problems} == ({0, 1} if first else {0})
        assert {p.segment for p in problems} == {victim.segment(number).name}
        with restored(victim.path, victim.before):
            pass


def test_a_receipt_of_another_segment_is_found(victim: Victim) -> None:
    place = victim.segment(1) / "receipts/00000.json"
    place.write_bytes((victim.segment(2) / "receipts/00000.json").read_bytes())
    assert {p.path for p in found(victim.path)} == {inside(victim, place)}


def test_plan_and_rows_of_another_segment_are_found(victim: Victim) -> None:
    for name in ("plan.json", "rows.arrow"):
        shutil.copy(victim.segment(2) / name, victim.segment(1) / name)
    expected = {inside(victim, victim.segment(1) / n) for n in ("plan.json", "rows.arrow")}
    assert expected <= {p.path for p in found(victim.path)}
    assert not [p for p in found(victim.path) if "segment.json" in p.path]


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plan.json": lambda v: v.update(why="something else"),
    "receipts/00000.json": lambda v: v["signals"]["rag"].update(error={"max_abs": 0.0}),
    "segment.json": lambda v: v["signals"]["rag"]["error"].update(max_abs=9.0),
    "signals/x/zarr.json": lambda v: v["attributes"].update(mine=1),
    "signals/zarr.json": lambda v: v["attributes"].update(mine=1),
}


@pytest.mark.parametrize("file", EDITS)
@pytest.mark.parametrize("spelling", ["edited", "spelled otherwise"])
def test_json_that_is_still_json_is_found(victim: Victim, file: str, spelling: str) -> None:
    place = victim.segment(1) / file
    value = json.loads(place.read_bytes())
    if spelling == "edited":
        EDITS[file](value)
        place.write_bytes(json_bytes(value))
    else:
        place.write_text(json.dumps(value))
    assert the_problem(victim.path).path == inside(victim, place)


@pytest.mark.parametrize("file", ["plan.json", "receipts/00001.json"])
def test_an_edited_draft_is_found_though_nothing_seals_it(victim: Victim, file: str) -> None:
    place = victim.segment(4) / file
    value = json.loads(place.read_bytes())
    value["why"] = "something else"
    place.write_bytes(json_bytes(value))
    problem = the_problem(victim.path)
    assert problem.path == inside(victim, place)
    assert "own checksum" in problem.what


def test_an_edit_of_which_only_the_seal_knows_is_blamed_on_the_file_or_on_the_seal(
    victim: Victim,
) -> None:
    """Where a file fits its own checksum and all others fit it, the seal is the odd one out."""
    place = victim.segment(1) / "segment.json"
    seal = json.loads(place.read_bytes())
    for path in ("plan.json", "rows.arrow", "receipts/00001.json"):
        edit_json(place, files={**seal["files"], path: "00000000"})
        problem = the_problem(victim.path)
        assert problem.path == inside(victim, place)
        assert path in problem.what


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("column", ["key", "hash", "view"])
def test_an_edited_table_of_rows_is_found(victim: Victim, number: int, column: str) -> None:
    place = victim.segment(number) / "rows.arrow"
    with pa.memory_map(str(place)) as mapped:
        batch = pa.ipc.open_file(mapped.read_buffer()).get_batch(0)
        rows = batch.to_pylist()
        value = {"key": "k9 edited", "hash": b"0" * 16, "view": 3}[column]
        edited = pa.RecordBatch.from_pylist([*rows[:-1], {**rows[-1], column: value}], batch.schema)
    with pa.ipc.new_file(str(place), edited.schema) as writer:
        writer.write_batch(edited)
    assert {p.path for p in found(victim.path)} == {inside(victim, place)}


def test_doubled_rows_are_found(tmp_path: Path) -> None:
    small = SmallCache(tmp_path / "c")
    small.teach(["a", "b", "a"], {"x": np.zeros((3, 2), "f4")})
    assert "1 keys stand for more than one row: a" in the_problem(root(small)).what


def test_a_snapshot_that_reads_from_nowhere_is_found(victim: Victim) -> None:
    gone = victim.segment(2)
    aside = victim.path.parent / "aside"
    gone.rename(aside)
    try:
        (problem,) = {(p.segment, p.path) for p in found(victim.path)}
        assert problem == (gone.name, f"segments/{gone.name}/segment.json")
        said = {p.what for p in found(victim.path)}
        assert said == {f"is missing, though snapshot {n} reads from it" for n in (2, 3)}
    finally:
        aside.rename(gone)


def test_a_segment_without_its_seal_is_no_draft_to_a_snapshot(victim: Victim) -> None:
    (victim.segment(3) / "segment.json").unlink()
    (problem,) = found(victim.path)
    assert problem.path == inside(victim, victim.segment(3) / "segment.json")
    assert "snapshot 3 reads from it" in problem.what


def test_a_segment_without_plan_is_damaged_where_a_snapshot_reads_it_and_left_elsewhere(
    victim: Victim,
) -> None:
    (victim.segment(1) / "plan.json").unlink()
    assert the_problem(victim.path).path == inside(victim, victim.segment(1) / "plan.json")
    with restored(victim.path, victim.before):
        pass
    (victim.segment(4) / "plan.json").unlink()
    said = verify(victim.path)
    assert said.problems == ()
    assert said.leftovers == (inside(victim, victim.segment(4)),)


@pytest.mark.parametrize("damage", ["deleted", "cut", "empty", "flipped"])
@pytest.mark.parametrize("ending", ["json", "arrow"])
def test_a_damaged_snapshot_is_found(victim: Victim, damage: str, ending: str) -> None:
    place = only(victim.path, f"snapshots/000002*.{ending}")
    DAMAGES[damage][0](place)
    said = verify(victim.path)
    if damage == "deleted" and ending == "json":
        # As of a commit that was killed before its JSON: nothing tells that it was ever there.
        (left,) = said.leftovers
        assert left.startswith("snapshots/000002-")
        assert said.problems == ()
        return
    (problem,) = said.problems
    assert (problem.path, problem.segment) == (inside(victim, place), None)


def _rewritten(path: Path, number: int, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """Change the runs of a snapshot and make its checksums right; its runs' file."""
    described = path / f"snapshots/{number:06d}.json"
    value = json.loads(described.read_bytes())
    place = path / "snapshots" / str(value["runs"])
    with pa.memory_map(str(place)) as mapped:
        batch = pa.ipc.open_file(mapped.read_buffer()).get_batch(0)
        rows = batch.to_pylist()
        change(rows)
        edited = pa.RecordBatch.from_pylist(rows, batch.schema)
    with pa.ipc.new_file(str(place), edited.schema) as writer:
        writer.write_batch(edited)
    value["crc32c"] = crc(place.read_bytes())
    described.write_bytes(json_bytes(with_checksum(value)))
    return place


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slot": 5}, "which it does not serve"),
        ({"rows": 10}, "leaves 1 of 16 rows to no slot"),
        ({"segment": "0009-no-such"}, "is missing, though"),
        ({"segment": "../../outside"}, "outside the cache"),
        ({"segment": "0003-other-"}, "holds another or none"),
        ({"source": 7}, "names source 7"),
        ({"start": 2**40}, "outside its 16 rows"),
    ],
    ids=str,
)
def test_runs_that_cannot_be_are_found_under_right_checksums(
    victim: Victim, change: dict[str, Any], words: str
) -> None:
    if change.get("segment") == "0003-other-":
        change = {"segment": victim.segment(3).name}
    place = _rewritten(victim.path, 2, lambda rows: rows[0].update(change))
    problems = found(victim.path)
    assert words in problems[0].what
    expected = inside(victim, place)
    if change.get("segment") == "0009-no-such":
        expected = "segments/0009-no-such/segment.json"
    assert problems[0].path == expected


def test_rows_without_end_take_no_memory(victim: Victim) -> None:
    def endless(rows: list[dict[str, Any]]) -> None:
        rows[0].update(rows=2**61)

    described = victim.path / "snapshots/000002.json"
    value = json.loads(described.read_bytes())
    described.write_bytes(json_bytes(with_checksum({**value, "rows": 2**61})))
    assert "leaves 2,305,843,009,213,693,936 of" in the_problem(victim.path).what
    _rewritten(victim.path, 2, endless)
    assert "which it does not serve" in the_problem(victim.path).what


@pytest.mark.parametrize("number", [1e308, 7, -1, "2", None, True, 10**300])
def test_a_snapshot_that_states_another_number_is_found(victim: Victim, number: Any) -> None:
    place = victim.path / "snapshots/000002.json"
    value = {**json.loads(place.read_bytes()), "number": number}
    place.write_bytes(json_bytes(with_checksum(value)))
    problem = the_problem(victim.path)
    assert problem.path == "snapshots/000002.json"
    assert f"calls itself snapshot {str(number)[:20]}" in problem.what


def test_a_snapshot_under_another_number_is_found(victim: Victim) -> None:
    shutil.copy(victim.path / "snapshots/000002.json", victim.path / "snapshots/000009.json")
    assert "calls itself snapshot 2" in the_problem(victim.path).what


def test_leftovers_are_no_problems(victim: Victim) -> None:
    left = {
        f"{TEMPORARY}abc-notes",
        f"segments/{victim.segment(1).name}/receipts/{TEMPORARY}abc-00000.json",
        f"segments/{victim.segment(4).name}/records/rag/{TEMPORARY}abc-00000.arrow",
        f"snapshots/{TEMPORARY}abc-000004.json",
        "snapshots/000004-0123abcd.arrow",
    }
    for name in left:
        (victim.path / name).write_bytes(b"half")
    begun = victim.path / "segments/0005-t-0123456789ab"
    begun.mkdir()
    (begun / "rows.arrow").write_bytes(b"half")
    (victim.path / f"segments/{TEMPORARY}repair").mkdir()
    said = verify(victim.path)
    shutil.rmtree(begun)
    (victim.path / f"segments/{TEMPORARY}repair").rmdir()
    assert said.problems == ()
    folders = {inside(victim, begun), f"segments/{TEMPORARY}repair"}
    assert set(said.leftovers) == left | folders


def test_shards_of_a_draft_without_receipt_are_no_problems(victim: Victim) -> None:
    draft = victim.segment(4)
    (draft / "receipts/00001.json").unlink()
    said = verify(victim.path)
    assert said.problems == ()
    assert said.unfinished == 3


def test_a_shard_that_was_never_finished_is_no_problem_of_a_sealed_segment(tmp_path: Path) -> None:
    small = SmallCache(tmp_path / "c")
    segment = small.teach(FIRST, {"x": values_of(FIRST)["x"]}, finish=[0, 2])
    assert verify(root(small)).problems == ()
    late = on_disk(segment.path) / "signals/x/c/1/0"
    late.parent.mkdir(parents=True)
    late.write_bytes(b"written by a worker that was killed before its receipt")
    said = verify(root(small))
    assert said.problems == ()
    assert said.leftovers == (str(late.relative_to(root(small))),)


def test_costs_locks_and_what_was_put_aside_are_not_looked_at(victim: Victim) -> None:
    names = ["leases/lock", "leases/teach-x.json", "snapshots/made/000001.json", "quarantine/x/y"]
    names += [f"segments/{victim.segment(1).name}/made/00000.json", "writer.lock"]
    for name in names:
        (victim.path / name).parent.mkdir(parents=True, exist_ok=True)
        (victim.path / name).write_bytes(b"\0garbled")
    assert verify(victim.path).problems == ()


def test_caches_of_the_first_format_are_sound(victim: Victim) -> None:
    """They have no checksums of their own but those of the seal."""
    segment = victim.segment(1)
    plan = json.loads((segment / "plan.json").read_bytes())
    for name in ("checksum", "rows_crc32c", "after", "why"):
        del plan[name]
    (segment / "plan.json").write_bytes(json_bytes({**plan, "format": 1}))
    for path in sorted((segment / "receipts").iterdir()):
        receipt = json.loads(path.read_bytes())
        del receipt["checksum"], receipt["rows_crc32c"]
        path.write_bytes(json_bytes(receipt))
    seal = json.loads((segment / "segment.json").read_bytes())
    sums = {name: crc((segment / name).read_bytes()) for name in seal["files"]}
    seal.update(files=sums, format=1, why="", after=None)
    (segment / "segment.json").write_bytes(json_bytes(seal))
    described = victim.path / "snapshots/000001.json"
    value = json.loads(described.read_bytes())
    runs = victim.path / "snapshots" / value.pop("runs")
    del value["checksum"]
    described.write_bytes(json_bytes({**value, "format": 1}))
    runs.rename(runs.with_name("000001.arrow"))
    said = verify(victim.path)
    assert [p.path for p in said.problems] == []
    flip(segment / "receipts/00001.json", 900)
    assert the_problem(victim.path).path == inside(victim, segment / "receipts/00001.json")
