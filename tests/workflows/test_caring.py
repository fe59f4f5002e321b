"""Verify, audit, repair, prune and compact, as a user runs them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stillroom.storage import Cache
from stillroom.storage.testing import SmallCache
from stillroom.workflows.cli import main
from tests.storage.caches import content, flip, full_cache, only, root
from tests.workflows.conftest import Command

FLOW = """
import numpy as np
from stillroom.pipeline import Step
from stillroom.stages import ArrayRows, FunctionTeacher, audit, teach
from stillroom.storage import Cache
from stillroom.workflows.caring import mend

def double(image):
    return {"logits": image * 2}

def negate(image):
    return {"minus": -image}

TEACHERS = {
    "double": FunctionTeacher("double", double, ("image",), ("logits",), {"logits": "float16"}),
    "negate": FunctionTeacher("negate", negate, ("image",), ("minus",)),
}

def given(rows):
    image = np.random.default_rng(0).standard_normal((rows, 4)).astype("f4")
    return ArrayRows([f"r{i}" for i in range(rows)], image=image)

def run_teach(run, inputs, *, teacher, rows):
    cache, how = Cache.at(run.folder / "c"), {"runner": run.runner, "shard_rows": 5}
    return {"snapshot": teach(cache, given(rows), TEACHERS[teacher], **how).number}

def run_audit(run, inputs, *, teacher, rows):
    cache = Cache(run.folder / "c")
    return audit(cache, given(rows), TEACHERS[teacher], runner=run.runner).to_json()

def run_repair(run, inputs, *, teacher, rows):
    return mend(run.folder / "c", given(rows), TEACHERS[teacher], run.runner)

def workflow(*, rows: int = 20, teachers: tuple[str, ...] = ("double", "negate"), care: bool = True):
    actions = {"audit": run_audit, "repair": run_repair} if care else {}
    settings = [{"teacher": name, "rows": rows} for name in teachers]
    return [Step(each["teacher"], run_teach, each, actions=actions) for each in settings]
"""


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which must be one JSON value and nothing else."""
        assert self.err == ""
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line's own entry point, in this process."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def ran(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return ran


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a workflow that ran."""
    folder = tmp_path_factory.mktemp("care")
    (folder / "flow.py").write_text(FLOW)
    flow = str(folder / "flow.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        arguments = ["run", flow, "--out", str(folder / "out"), "--workers", "0"]
        patch.setattr(sys, "argv", ["stillroom", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of it: `flow.py`, and `out` with the cache `c`."""
    return Path(shutil.copytree(sound, tmp_path / "w"))


@pytest.fixture
def flow(folder: Path) -> tuple[object, ...]:
    """The arguments that name the workflow and where it ran."""
    return folder / "flow.py", "--out", folder / "out"


CHUNK = "out/c/segments/0001-double-*/signals/logits/c/2/0"
MINUS = "out/c/segments/0002-negate-*/signals/minus/c/1/0"


def test_a_users_whole_day(folder: Path, command: Command) -> None:
    """Damage is found, repaired, and gone: with the installed command, in processes of its own."""
    before = content(folder / "out/c")
    flip(only(folder, CHUNK), 77)
    path, where = str(folder / "out/c"), (str(folder / "flow.py"), "--out", str(folder / "out"))
    verified = command("cache", "verify", path)
    assert verified.returncode == 3
    assert "signals/logits/c/2/0: checksum" in verified.stdout
    repaired = command("repair", *where)
    assert repaired.returncode == 0, repaired.stderr
    assert "double: put back: segments/0001-double-" in repaired.stdout
    assert "double: 5 rows were computed again" in repaired.stdout
    assert content(folder / "out/c") == before
    assert command("cache", "verify", path).returncode == 0


def test_a_sound_cache_is_said_to_be_sound(folder: Path, run: Run) -> None:
    done = run("cache", "verify", folder / "out/c")
    assert (done.code, done.err) == (0, "")
    assert "every stored byte is as it was written" in done.out
    said = run("cache", "verify", folder / "out/c", "--json").json
    assert (said["problems"], said["leftovers"], said["segments"]) == ([], [], 2)
    assert f"{said['files']:,} files" in done.out


def test_damage_is_listed_with_its_path(folder: Path, run: Run) -> None:
    chunk = only(folder, CHUNK)
    flip(chunk, 77)
    only(folder, MINUS).unlink()
    done = run("cache", "verify", folder / "out/c")
    assert (done.code, len(done.out.splitlines())) == (3, 2)
    assert f"{chunk}: checksum" in done.out
    assert "is missing though its receipt is there" in done.out
    done = run("cache", "verify", folder / "out/c", "--json")
    assert done.code == 3
    shards = {(p["segment"][:4], p["shard"], p["signal"]) for p in done.json["problems"]}
    assert shards == {("0001", 2, "logits"), ("0002", 1, "minus")}


def test_leftovers_are_said_to_be_harmless(folder: Path, run: Run) -> None:
    (folder / "out/c/.tmp-x").write_text("half")
    done = run("cache", "verify", folder / "out/c")
    assert done.code == 0
    assert "1 leftovers of runs that were cut off (harmless; prune removes them)" in done.out
    assert "leftover .tmp-x" in run("cache", "prune", folder / "out/c").out
    assert run("cache", "verify", folder / "out/c", "--json").json["leftovers"] == []


@pytest.mark.parametrize("what", ["verify", "prune", "compact"])
def test_what_is_no_cache_is_an_error_without_a_traceback(
    tmp_path: Path, run: Run, what: str
) -> None:
    done = run("cache", what, tmp_path / "none")
    assert (done.code, done.out) == (1, "")
    assert str(tmp_path / "none") in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("cache", "prune", "x", "--keep-last", "0"),
        ("cache", "prune", "x", "--keep-days", "-1"),
        ("cache", "prune", "x", "--keep-last", "many"),
        ("cache", "prune"),
        ("cache", "verify", "x", "--quick"),
        ("audit",),
        ("audit", "no-such-flow"),
        ("repair", "no-such-flow"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err
    assert "Traceback" not in done.err


def test_prune_says_what_goes_and_then_removes_it(tmp_path: Path, run: Run) -> None:
    path = root(full_cache(tmp_path / "c"))
    before = content(path)
    policy = ("--keep-last", "1", "--draft-days", "0")
    said = run("cache", "prune", path, *policy, "--dry-run")
    assert content(path) == before
    names = said.out.splitlines()[:-1]
    assert names[:2] == ["snapshot 1", "snapshot 2"]
    assert names[2].startswith("draft 0004-teacher-")
    assert said.out.splitlines()[-1].startswith("would remove ")
    planned = run("cache", "prune", path, *policy, "--dry-run", "--json").json
    done = run("cache", "prune", path, *policy)
    assert done.out == said.out.replace("would remove", "removed")
    assert planned["snapshots"] == [1, 2]
    assert planned["dry_run"] is True
    assert planned["bytes"] >= sum(map(len, before.values())) - sum(
        map(len, content(path).values())
    )
    assert Cache(path).snapshots() == [3]
    assert run("cache", "prune", path, *policy).out == "removed 0 B\n"


def test_a_busy_cache_is_said_to_be_busy(folder: Path, run: Run) -> None:
    with Cache(folder / "out/c").writing("0123456789abcdef"):
        for what in ("prune", "compact"):
            done = run("cache", what, folder / "out/c")
            assert done.code == 1
            assert "busy: teaching 0123456789ab by process" in done.err


def test_compact_says_what_it_joins(tmp_path: Path, run: Run) -> None:
    path = root(full_cache(tmp_path / "c", draft=False))
    before = content(path)
    said = run("cache", "compact", path, "--dry-run")
    assert "teacher: would join 2 segments, 16 rows: 0001-teacher-" in said.out
    assert content(path) == before
    done = run("cache", "compact", path)
    assert "teacher: joined 2 segments, 16 rows" in done.out
    assert "snapshot 4 reads from what was joined; prune drops the old segments" in done.out
    again = run("cache", "compact", path)
    assert again.out == "nothing to join: no teacher's rows lie in several segments\n"
    assert run("cache", "compact", path, "--json").json == {
        "path": str(path),
        "dry_run": False,
        "merged": [],
        "snapshot": None,
    }


def test_compact_of_a_cache_without_snapshots_is_an_error(tmp_path: Path, run: Run) -> None:
    done = run("cache", "compact", root(SmallCache(tmp_path / "c")))
    assert done.code == 1
    assert "no snapshot yet" in done.err


def test_audit_prints_a_line_for_each_shard_and_what_the_encoding_loses(
    flow: tuple[object, ...], run: Run
) -> None:
    done = run("audit", *flow)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len([line for line in lines if "as the teacher says" in line]) == 8
    assert any("double: logits: live answers differ by 0" in line for line in lines)
    assert any("the encoding loses max_abs" in line for line in lines)
    assert any(line.startswith("negate: minus:") and "loses nothing" in line for line in lines)
    said = run("audit", *flow, "--json").json
    assert said["double"]["faithful"]
    assert {s["shard"] for s in said["negate"]["shards"]} == {0, 1, 2, 3}


def test_a_damaged_shard_fails_its_audit(folder: Path, flow: tuple[object, ...], run: Run) -> None:
    flip(only(folder, CHUNK), 77)
    done = run("audit", *flow)
    assert done.code == 3
    (line,) = [text for text in done.out.splitlines() if "are not what the teacher says" in text]
    assert "shard 2 logits" in line


def test_settings_are_the_workflows_own(flow: tuple[object, ...], run: Run) -> None:
    assert set(run("audit", *flow, "--teachers", "negate", "--json").json) == {"negate"}
    done = run("audit", *flow, "--row", "2")
    assert done.code == 2
    assert "--row: unknown; did you mean '--rows'" in done.err


def test_what_a_workflow_cannot_do_is_said(flow: tuple[object, ...], run: Run) -> None:
    for what in ("audit", "repair"):
        done = run(what, *flow, "--care=false")
        assert done.code == 2
        assert f"no step of this workflow can {what}; known: none" in done.err


def test_a_workflow_that_never_ran_is_told_to_run(folder: Path, tmp_path: Path, run: Run) -> None:
    for what in ("audit", "repair"):
        done = run(what, folder / "flow.py", "--out", tmp_path / "nowhere")
        assert done.code == 2
        assert "never ran in" in done.err
        assert "run the workflow first" in done.err
    assert not (tmp_path / "nowhere").exists()


def test_a_sound_cache_needs_no_repair(folder: Path, flow: tuple[object, ...], run: Run) -> None:
    before = content(folder / "out/c")
    done = run("repair", *flow)
    assert done.code == 0
    assert done.out.splitlines() == [
        "double: 0 rows were computed again",
        "negate: 0 rows were computed again",
    ]
    assert content(folder / "out/c") == before


def test_damage_of_two_teachers_is_mended_by_each_for_itself(
    folder: Path, flow: tuple[object, ...], run: Run
) -> None:
    before = content(folder / "out/c")
    flip(only(folder, CHUNK), 77)
    flip(only(folder, MINUS), 78)
    done = run("repair", *flow)
    assert "not repairable" not in done.out
    assert done.code == 0, done.out
    assert "negate: 5 rows were computed again" in done.out
    assert content(folder / "out/c") == before
    flip(only(folder, MINUS), 78)
    said = run("repair", *flow, "--json").json
    assert [said[step]["rows"] for step in ("double", "negate")] == [0, 5]


def test_damage_that_stays_is_exit_code_3(folder: Path, flow: tuple[object, ...], run: Run) -> None:
    flip(only(folder, MINUS), 78)
    done = run("repair", *flow, "--teachers", "double")
    assert done.code == 3
    assert "double: not repairable: segments/0002-negate-" in done.out
    assert "it belongs to another teacher" in done.out


def test_a_lost_marker_is_put_back(folder: Path, flow: tuple[object, ...], run: Run) -> None:
    before = content(folder / "out/c")
    (folder / "out/c/cache.json").write_text("{")
    assert run("cache", "verify", folder / "out/c").code == 3
    assert run("repair", *flow).code == 0
    assert content(folder / "out/c") == before


def test_a_lost_segment_and_wrong_values_are_mended_in_one_go(
    folder: Path, flow: tuple[object, ...], run: Run
) -> None:
    shutil.rmtree(only(folder, "out/c/segments/0001-double-*"))
    done = run("repair", *flow)
    assert done.code == 0, done.out
    assert "double: quarantined: snapshots/000001.json" in done.out
    assert "double: 20 rows were computed again" in done.out
    assert run("audit", *flow).code == 0
    assert run("cache", "verify", folder / "out/c").code == 0
    assert set(Cache(folder / "out/c").snapshot().signals) == {"logits", "minus"}


def test_a_cache_that_was_never_finished_can_be_repaired(
    folder: Path, flow: tuple[object, ...], run: Run
) -> None:
    shutil.rmtree(folder / "out/c/snapshots")
    flip(only(folder, CHUNK), 77)
    done = run("repair", *flow)
    assert done.code == 0, done.err
    assert "double: 5 rows were computed again" in done.out
