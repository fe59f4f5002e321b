"""A teaching process that is killed costs only the shards in work; the finished cache is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stillroom.stages import ArrayRows, FunctionTeacher
from stillroom.stages.events import TeachStarted
from stillroom.storage import Cache
from tests.stages.builders import Heard, Watched, answers, data, images, taught, tree

MODULE = '''
import time
from pathlib import Path

PAUSE = Path(__file__).parent / "pause"

def slow(image):
    """Answers at once, unless a file beside it says otherwise."""
    time.sleep(0.1 if PAUSE.exists() else 0)
    return {"logits": image * 2}
'''
SCRIPT = """
import sys
import numpy as np
import slow_teacher
from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache

rows = ArrayRows([f"r{i}" for i in range(60)], image=np.load(sys.argv[2]))
teacher = FunctionTeacher("slow", slow_teacher.slow, ("image",), ("logits",))
runner = LocalRunner() if sys.argv[3] == "local" else RayRunner(workers=2)
teach(Cache.at(sys.argv[1]), rows, teacher, runner=runner, batch_size=2, shard_rows=6)
"""
HOW = {"batch_size": 2, "shard_rows": 6}


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FunctionTeacher:
    """A teacher that dawdles in other processes, and never here."""
    (tmp_path / "slow_teacher.py").write_text(MODULE)
    (tmp_path / "run.py").write_text(SCRIPT)
    np.save(tmp_path / "images.npy", images(60))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow_teacher", raising=False)
    import importlib

    answer = importlib.import_module("slow_teacher").slow
    return FunctionTeacher("slow", answer, ("image",), ("logits",))


def kill_after(folder: Path, receipts: int, how: str) -> int:
    """Teach in a process of its own and kill it, with all its children; finished shards."""
    (folder / "pause").touch()
    arguments = [sys.executable, "run.py", "c", "images.npy", how]
    process = subprocess.Popen(arguments, cwd=folder, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while len(done := list(folder.glob("c/segments/*/receipts/[0-9]*.json"))) < receipts:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Ray's workers see that their parent is gone, and go; until then they finish what they were
    # given, at most two shards each.
    before: list[Path] = []
    while len(done) != len(before):
        time.sleep(1 if how == "ray" else 0)
        before, done = done, list(folder.glob("c/segments/*/receipts/[0-9]*.json"))
    (folder / "pause").unlink()
    assert len(done) < 10
    return len(done)


@pytest.mark.parametrize("how", ["local", "ray"])
def test_a_killed_run_is_continued_and_ends_like_one_that_was_not(
    tmp_path: Path, teacher: FunctionTeacher, how: str
) -> None:
    finished = kill_after(tmp_path, 3, how)
    assert Cache(tmp_path / "c").snapshots() == []
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("c/segments/*/receipts/[0-9]*.json")}
    heard = Heard()
    snapshot = taught(tmp_path / "c", data(), teacher, listen=heard, **HOW)
    (started,) = [event for event in heard.events if isinstance(event, TeachStarted)]
    assert started.resumed >= 6 * finished
    assert heard.taught <= 60 - started.resumed
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    np.testing.assert_array_equal(answers(snapshot, data()), images(60) * 2)
    taught(tmp_path / "whole", data(), teacher, **HOW)
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


def test_shards_finished_before_the_data_changed_are_salvaged(
    tmp_path: Path, teacher: FunctionTeacher
) -> None:
    finished = kill_after(tmp_path, 4, "local")
    image = images(60)
    image[59] += 1  # in the last shard, which was not reached
    changed = ArrayRows(data().keys, image=image)
    watched = Watched(teacher, tmp_path / "shown")
    snapshot = taught(tmp_path / "c", changed, watched, **HOW)
    assert watched.shown(changed) == sorted(f"r{i}" for i in range(6 * finished, 60))
    np.testing.assert_array_equal(answers(snapshot, changed), image * 2)
    assert Cache(tmp_path / "c").drafts() == []


def test_a_draft_without_a_finished_shard_is_removed_when_the_data_changed(
    tmp_path: Path, teacher: FunctionTeacher
) -> None:
    def stop(event: object) -> None:
        if isinstance(event, TeachStarted):  # the draft is there
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "c", data(), teacher, listen=stop)
    assert len(Cache(tmp_path / "c").drafts()) == 1
    snapshot = taught(tmp_path / "c", data(30), teacher)
    assert snapshot.rows == 30
    assert Cache(tmp_path / "c").drafts() == []
    assert len(Cache(tmp_path / "c").segments()) == 1


def test_a_draft_whose_removal_was_cut_off_does_not_end_later_runs(
    tmp_path: Path, teacher: FunctionTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: object) -> None:
        if isinstance(event, TeachStarted):  # the draft is there
            raise KeyboardInterrupt

    def cut_off(path: Path, first: list[str]) -> None:
        (path / "plan.json").unlink()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "c", data(), teacher, listen=stop)
    with monkeypatch.context() as patched:
        patched.setattr("stillroom.stages.teaching.remove_tree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            taught(tmp_path / "c", data(30), teacher)
    assert taught(tmp_path / "c", data(30), teacher).rows == 30
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_a_run_that_ended_between_seal_and_snapshot_needs_no_teacher(
    tmp_path: Path, teacher: FunctionTeacher
) -> None:
    taught(tmp_path / "c", data(), teacher)
    for path in (tmp_path / "c" / "snapshots").glob("0*"):
        path.unlink()
    snapshot = taught(tmp_path / "c", data(), Watched(teacher, tmp_path / "x", forbidden=True))
    np.testing.assert_array_equal(answers(snapshot, data()), images(60) * 2)
