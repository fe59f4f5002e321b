"""Repair where something is lost: segments, rows, drafts, other teachers' shards; and strays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import repair
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.storage import Cache, Reader, compact, prune, verify
from stillroom.storage.mirror import Mirror
from stillroom.storage.objects import ObjectPlace
from tests.stages.builders import Heard, taught
from tests.stages.damaged import (
    EDITED,
    FIRST,
    OTHER,
    ROWS,
    SEGMENT,
    asked,
    assert_right,
    data,
    mended,
    spoil,
)
from tests.storage.caches import content, everything, flip, only
from tests.storage.s3_server import s3_server


def test_a_segment_that_is_gone_is_taught_again_and_no_other_row(two_teachers: Path) -> None:
    shutil.rmtree(only(two_teachers, "segments/0002-first-*"))
    done = mended(two_teachers, EDITED)
    assert done.rows == 3
    assert (done.snapshot, done.unrepairable) == (4, ())
    assert {name[:16] for name in done.quarantined} == {"snapshots/000002", "snapshots/000003"}
    assert Cache(two_teachers).snapshots() == [1, 4]
    assert_right(two_teachers, EDITED)


def test_the_rows_of_an_older_state_cannot_be_told_and_those_of_now_are_taught(
    two_teachers: Path,
) -> None:
    """The table of rows is damaged, and the data set no longer is what it was."""
    name = only(two_teachers, SEGMENT).name
    spoil(f"{SEGMENT}/rows.arrow")(two_teachers)
    done = mended(two_teachers, EDITED)
    assert done.rows == ROWS - 3
    assert f"segments/{name}" in done.quarantined
    assert not (two_teachers / "segments" / name).exists()
    assert (two_teachers / "quarantine/segments" / name / "plan.json").exists()
    assert_right(two_teachers, EDITED)
    assert Cache(two_teachers).snapshots() == [4]


def test_rows_that_left_the_data_set_are_named_and_the_others_are_fine(one_teacher: Path) -> None:
    spoil(f"{SEGMENT}/signals/x/c/1/0")(one_teacher)  # rows 5 to 9
    left = data(without=[6])
    done = mended(one_teacher, left)
    (problem,) = done.unrepairable
    assert (problem.shard, problem.signal) == (1, "x")
    assert "1 of its rows are no more in the data set" in problem.what
    assert done.rows == 4
    snapshot = Cache(one_teacher).snapshot()
    assert (done.snapshot, snapshot.rows) == (2, 19)
    image: Any = left.read(np.arange(19), ["image"])["image"]
    np.testing.assert_array_equal(Reader(snapshot, ["x"]).gather(left.keys)["x"], image * 2)
    assert {p.path for p in verify(one_teacher).problems} == {problem.path}
    again = mended(one_teacher, left)
    assert (again.rows, len(again.unrepairable), again.snapshot) == (0, 1, None)
    assert Cache(one_teacher).snapshots() == [1, 2]


def test_damage_in_rows_that_nothing_new_reads_makes_no_snapshot(two_teachers: Path) -> None:
    """Rows 3 and 4 were edited; the shard that held them as they were also holds 0, 1 and 2."""
    spoil(f"{SEGMENT}/signals/x/c/0/0")(two_teachers)
    done = mended(two_teachers, EDITED)
    assert len(done.unrepairable) == 1
    assert done.rows == 3
    assert_read = Reader(Cache(two_teachers).snapshot(), ["x"]).gather(EDITED.keys)["x"]
    image: Any = EDITED.read(np.arange(ROWS), ["image"])["image"]
    np.testing.assert_array_equal(assert_read, image * 2)
    assert mended(two_teachers, EDITED).snapshot is None


def test_another_teachers_damage_is_refused_in_words(two_teachers: Path) -> None:
    pattern = "segments/0003-other-*/signals/minus/c/0/0"
    spoil(pattern)(two_teachers)
    before = everything(two_teachers)
    done = mended(two_teachers, EDITED)
    (problem,) = done.unrepairable
    assert problem.path == str(only(two_teachers, pattern).relative_to(two_teachers))
    assert "it belongs to another teacher: repair with that one" in problem.what
    assert (done.rows, done.snapshot) == (0, None)
    assert everything(two_teachers) == before
    assert mended(two_teachers, EDITED, OTHER).rows == 5
    assert_right(two_teachers, EDITED)


@pytest.mark.parametrize("how", ["gone", "no seal and no rows"])
def test_another_teachers_segment_that_is_lost_is_left_to_it(two_teachers: Path, how: str) -> None:
    folder = only(two_teachers, "segments/0003-other-*")
    if how == "gone":
        shutil.rmtree(folder)
    else:
        (folder / "segment.json").unlink()
        (folder / "rows.arrow").unlink()
    before = everything(two_teachers)
    done = mended(two_teachers, EDITED)
    assert done.unrepairable
    assert "other" in done.unrepairable[0].what
    assert (done.rows, done.quarantined, done.snapshot) == (0, (), None)
    assert everything(two_teachers) == before
    done = mended(two_teachers, EDITED, OTHER)
    assert (done.rows, done.unrepairable) == (ROWS, ())
    assert_right(two_teachers, EDITED)


def test_only_the_damaged_shard_of_a_draft_is_computed_again(one_teacher: Path) -> None:
    class Cut(Exception):
        pass

    heard = Heard()

    def stop(event: Any) -> None:
        heard(event)
        if heard.taught == 20:
            raise Cut

    longer = data(ROWS + 25)
    with pytest.raises(Cut):
        taught(one_teacher, longer, FIRST, shard_rows=5, listen=stop)
    spoil("segments/0002-first-*/signals/x/c/1/0")(one_teacher)
    assert mended(one_teacher, longer).rows == 0
    assert verify(one_teacher).problems == ()
    asked.clear()
    taught(one_teacher, longer, FIRST, shard_rows=5, band=float("inf"))
    assert sum(asked) == 10
    assert_right(one_teacher, longer)


@pytest.mark.parametrize("file", ["plan.json", "rows.arrow"])
def test_a_draft_whose_rows_are_unknown_is_put_aside(one_teacher: Path, file: str) -> None:
    cache, state = Cache(one_teacher), TeachState(Cache(one_teacher), EDITED, FIRST)
    with cache.writing(state.digest):
        draft = cache.draft(
            *("first", state.identity, state.asked, state.rows.keys, state.own.hashes, 5)
        )
    flip(one_teacher / "segments" / draft.path.name / file, 900)
    done = mended(one_teacher)
    assert done.quarantined == (f"segments/{draft.path.name}",)
    assert_right(one_teacher)


def test_a_cache_of_two_teachers_keeps_both_through_a_repair(two_teachers: Path) -> None:
    spoil(f"{SEGMENT}/signals/x/c/2/0")(two_teachers)
    spoil("segments/0003-other-*/signals/minus/c/1/0")(two_teachers)
    assert len(mended(two_teachers, EDITED).unrepairable) == 1
    assert mended(two_teachers, EDITED, OTHER).unrepairable == ()
    assert_right(two_teachers, EDITED)
    assert set(Cache(two_teachers).snapshot().signals) == {"x", "top", "tok", "text", "minus"}


def test_what_does_not_belong_there_is_put_aside(one_teacher: Path) -> None:
    name = only(one_teacher, SEGMENT).name
    strays = {
        "notes.txt": "files/notes.txt",
        "segments/odd": "segments/odd",
        "snapshots/notes.json": "snapshots/notes.json",
        f"segments/{name}/signals/x/c/9/9": f"files/segments--{name}--signals--x--c--9--9",
    }
    for path in strays:
        place = one_teacher / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("odd"):
            place.mkdir()
            place = place / "file"
        place.write_text("mine")
    done = mended(one_teacher)
    assert set(done.quarantined) == set(strays)
    for aside in strays.values():
        place = one_teacher / "quarantine" / aside
        assert (place / "file" if place.is_dir() else place).read_text() == "mine"
    assert_right(one_teacher)
    (one_teacher / "notes.txt").write_text("again")
    mended(one_teacher)
    assert len(list((one_teacher / "quarantine/files").glob("notes.txt*"))) == 2


def test_long_names_can_be_put_aside(one_teacher: Path) -> None:
    place = only(one_teacher, SEGMENT) / "signals" / ("n" * 200) / ("m" * 200)
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    done = mended(one_teacher)
    assert done.quarantined == (str(place.relative_to(one_teacher)),)
    assert verify(one_teacher).problems == ()


@pytest.mark.slow
def test_a_store_is_cared_for_like_a_folder(one_teachers_cache: Path, tmp_path: Path) -> None:
    """Damage, repair, teach, compact and prune in both: they hold the same afterwards."""
    folder = Path(shutil.copytree(one_teachers_cache, tmp_path / "c"))
    given = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}
    with s3_server() as port:
        options = {**given, "endpoint": f"http://127.0.0.1:{port}"}
        mirror = Mirror(tmp_path / "mirror", 2**20)
        store = ObjectPlace.at("s3://caches/care/c", mirror=mirror, options=options)
        for name, data_of in content(folder).items():
            (store / name).put(data_of)
        chunk = str(only(folder, f"{SEGMENT}/signals/x/c/1/0").relative_to(folder))
        lost = str(only(folder, f"{SEGMENT}/plan.json").relative_to(folder))
        (store / chunk).put(b"spoilt")
        (store / lost).remove()
        (store / "notes.txt").put(b"mine")
        problems = verify(store).problems
        assert {p.path for p in problems} == {chunk, lost, "notes.txt"}
        done = repair(Cache(store), data(), FIRST, problems, runner=LocalRunner())
        assert (done.rows, done.unrepairable, done.quarantined) == (5, (), ("notes.txt",))
        assert (store / "quarantine/files/notes.txt").read_bytes() == b"mine"
        for place in (folder, store):
            taught(place, EDITED, FIRST, shard_rows=5)
            assert compact(Cache(place), shard_rows=6).snapshot == 3
            said_of = prune(Cache(place), keep_last=1, draft_days=0, dry_run=True)
            done_to = prune(Cache(place), keep_last=1, draft_days=0, quarantine=place is store)
            assert done_to.segments == said_of.segments
            assert [name[:4] for name in done_to.segments] == ["0001", "0002"]
        stored = {str(p).removeprefix(f"{store}/"): p.read_bytes() for p in store.below()}
        own = {n: c for n, c in stored.items() if not {"made", "leases"} & set(n.split("/"))}
        assert own == content(folder)
        assert verify(store).problems == ()
