"""Students begin on what is there while teaching goes on: snapshots in between, and what they say."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import ArrayRows, Assignment, Evaluation, classification, teach_all
from stillroom.stages.events import RowsAwaited, SnapshotTaken
from stillroom.storage import Cache
from stillroom.storage.care.compacting import compact
from stillroom.storage.care.verifying import verify
from stillroom.storage.errors import RowsError, UnknownRowError
from tests.stages.builders import (
    SPLITS,
    Heard,
    Shuffled,
    Watched,
    answers,
    chosen,
    data,
    images,
    network,
    plain,
    student,
    taught,
    trained,
    tree,
)

EARLY: dict[str, Any] = {"snapshot_every": 20}
TEACHING = """
import sys, time
from pathlib import Path
import numpy as np
from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache

cache, images, go = sys.argv[1], sys.argv[2], Path(sys.argv[3])

def waiting(image):
    while len(list(Path(cache).glob("segments/*/receipts/0*.json"))) >= 4 and not go.exists():
        time.sleep(0.02)
    return {"logits": image[:, :4] * 2}

rows = ArrayRows([f"r{i}" for i in range(60)], image=np.load(images))
teacher = FunctionTeacher("waiting", waiting, ("image",), ("logits",))
teach(Cache.at(cache), rows, teacher, runner=LocalRunner(), batch_size=4, shard_rows=10,
      snapshot_every=20, band=float("inf"))
"""


def test_a_snapshot_follows_every_segment_and_the_last_serves_all(tmp_path: Path) -> None:
    heard = Heard()
    last = taught(tmp_path / "c", listen=heard, **EARLY)
    taken = [e for e in heard.events if isinstance(e, SnapshotTaken)]
    assert [(e.rows, e.asked, e.snapshot) for e in taken] == [(20, 60, 1), (40, 60, 2)]
    cache = Cache(tmp_path / "c")
    assert [cache.snapshot(n).rows for n in (1, 2, 3)] == [20, 40, 60]
    assert [cache.snapshot(n).parent for n in (1, 2, 3)] == [None, 1, 2]
    assert (last.number, len(cache.segments())) == (3, 3)
    np.testing.assert_array_equal(answers(last, data()), images(60)[:, :4] * 2)
    some = chosen(data(), range(20, 40))
    np.testing.assert_array_equal(answers(cache.snapshot(2), some), images(60)[20:40, :4] * 2)
    assert verify(cache.path).problems == ()


@pytest.mark.parametrize("seed", [0, 1])
def test_shards_in_any_order_give_the_same_bytes(tmp_path: Path, seed: int) -> None:
    taught(tmp_path / "a", **EARLY)
    taught(tmp_path / "b", runner=Shuffled(seed), **EARLY)
    segments = {name for name in tree(tmp_path / "a") if name.startswith("segments/")}
    same = {n: c for n, c in tree(tmp_path / "b").items() if n in segments}
    assert same == {n: c for n, c in tree(tmp_path / "a").items() if n in segments}


def test_the_teacher_is_loaded_once_for_all_segments(tmp_path: Path) -> None:
    loads = []

    class Counted(Watched):
        def load(self) -> Any:
            loads.append(1)
            return super().load()

    taught(tmp_path / "c", teacher=Counted(plain(), tmp_path / "shown"), **EARLY)
    assert len(loads) == 1


@pytest.mark.slow
def test_on_ray_segments_are_those_of_one_process(tmp_path: Path, ray_runner: RayRunner) -> None:
    taught(tmp_path / "local", teacher=network(), **EARLY)
    taught(tmp_path / "ray", teacher=network(), runner=ray_runner, **EARLY)
    cache = Cache(tmp_path / "ray")
    assert cache.snapshot().rows == 60
    mine, theirs = (
        {n: c for n, c in tree(tmp_path / which).items() if n.startswith("segments/")}
        for which in ("ray", "local")
    )
    assert mine == theirs


def test_compacted_it_is_the_cache_that_was_taught_in_one_go(tmp_path: Path) -> None:
    """Rows and answers byte for byte; only what names the history differs."""
    taught(tmp_path / "early", **EARLY)
    compact(Cache(tmp_path / "early"), shard_rows=10)
    taught(tmp_path / "whole")
    (whole,) = Cache(tmp_path / "whole").segments()
    joined = Cache(tmp_path / "early").segments()[-1]
    mine, theirs = tree(Path(str(joined.path))), tree(Path(str(whole.path)))
    assert mine.keys() == theirs.keys()
    differ = {name for name in mine if mine[name] != theirs[name]}
    assert differ <= {"plan.json", "segment.json"}


def test_a_run_that_was_cut_off_between_goes_on_where_it_was(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, SnapshotTaken):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "c", listen=stop, **EARLY)
    assert Cache(tmp_path / "c").snapshot().rows == 20
    heard = Heard()
    last = taught(tmp_path / "c", listen=heard, **EARLY)
    assert (heard.taught, last.rows, last.number) == (40, 60, 3)
    taught(tmp_path / "quiet", **EARLY)
    assert set(tree(tmp_path / "c")) == set(tree(tmp_path / "quiet"))
    # Without early snapshots what they left is kept as well.
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "d", listen=stop, **EARLY)
    again = Heard()
    assert taught(tmp_path / "d", listen=again).rows == 60
    assert again.taught == 40
    assert Cache(tmp_path / "d").drafts() == []


def test_several_teachers_take_early_snapshots_into_one_lineage(tmp_path: Path) -> None:
    given = [
        Assignment(plain(), LocalRunner(), 4, 10, snapshot_every=20),
        Assignment(network(), LocalRunner(), 4, 10),
    ]
    last = teach_all(Cache.at(tmp_path / "c"), data(), given)
    cache = Cache(tmp_path / "c")
    assert {s.teacher for s in last.sources} == {"plain", "net"}
    assert [cache.snapshot(n).parent for n in cache.snapshots()] == [None, 1, 2, 3]
    assert verify(cache.path).problems == ()


def test_a_student_trains_on_what_is_there_only_when_asked_and_says_so(tmp_path: Path) -> None:
    taught(tmp_path / "c", **EARLY)
    early = Cache(tmp_path / "c").snapshot(1)
    with pytest.raises(UnknownRowError, match="20 of 40 rows are not in snapshot 1"):
        trained(tmp_path / "s", [student()], early)
    heard = Heard()
    (record,) = trained(tmp_path / "s", [student()], early, available=True, listen=heard)
    assert RowsAwaited("train", 20, 40, 1) in heard.events
    content = record.content
    assert (content["rows"], content["asked_rows"], content["snapshot"]) == (20, 40, 1)
    there = {**SPLITS, "train": SPLITS["train"][:20]}
    (same,) = trained(tmp_path / "t", [student()], early, splits=there)
    assert same.content["digest"] == content["digest"]
    assert same.weights.read_bytes() == record.weights.read_bytes()
    # Later it is stale, and then it trains on all rows and no longer says anything.
    whole = Cache(tmp_path / "c").snapshot()
    (late,) = trained(tmp_path / "s", [student()], whole, available=True)
    assert (late.content["rows"], "asked_rows" in late.content) == (40, False)
    assert late.folder != record.folder


def test_all_students_of_a_split_train_on_the_same_rows(tmp_path: Path) -> None:
    taught(tmp_path / "c", **EARLY)
    early = Cache(tmp_path / "c").snapshot(1)
    both = [student("labels", "labels"), student()]
    records = trained(tmp_path / "s", both, early, available=True)
    assert [r.content["rows"] for r in records] == [20, 20]
    (alone,) = trained(tmp_path / "s", both[:1], early, available=True)
    assert alone.content["rows"] == 40  # nothing that it reads is missing


def test_a_split_of_which_nothing_is_there_yet_is_named(tmp_path: Path) -> None:
    taught(tmp_path / "c", **EARLY)
    reads = Evaluation("test", classification, signals=("logits",))
    with pytest.raises(RowsError, match="serves none of the 20 rows of split 'test' yet"):
        trained(
            *(tmp_path / "s", [student()], Cache(tmp_path / "c").snapshot(1)),
            evaluation=reads,
            available=True,
        )


@pytest.mark.parametrize("every", [0, -5])
def test_a_snapshot_every_no_rows_is_refused(tmp_path: Path, every: int) -> None:
    with pytest.raises(ValueError, match="snapshot_every must be positive"):
        taught(tmp_path / "c", snapshot_every=every)


def test_a_student_trains_while_another_process_still_teaches(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images(60))
    go = tmp_path / "go"
    (tmp_path / "teaching.py").write_text(TEACHING)
    arguments = [sys.executable, "teaching.py", str(tmp_path / "c"), "images.npy", str(go)]
    process = subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 100
        while not list(tmp_path.glob("c/snapshots/000002.json")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        early = Cache(tmp_path / "c").snapshot()
        (record,) = trained(tmp_path / "s", [student()], early, available=True)
        # Nothing is missing of the 40 rows of the split, but the data set is not whole yet.
        assert (record.content["rows"], early.rows) == (40, 40)
        assert process.poll() is None
        go.touch()
        assert process.wait(timeout=100) == 0, process.communicate()[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
    rows = ArrayRows([f"r{i}" for i in range(60)], image=images(60))
    whole = Cache(tmp_path / "c").snapshot()
    np.testing.assert_array_equal(answers(whole, rows), images(60)[:, :4] * 2)
    (again,) = trained(tmp_path / "s", [student()], whole)
    assert again.folder == record.folder  # the cache only grew: the student is as fresh as before
