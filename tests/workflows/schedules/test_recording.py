"""Runs by hand in the ledger; a folder is held by one run; commands as a user types them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillroom.stages.events import RowsTaught
from stillroom.storage.errors import BusyError
from stillroom.workflows.cli import app
from stillroom.workflows.flows import SettingsError
from stillroom.workflows.schedules.ledger import RUNNING, runs
from stillroom.workflows.schedules.recording import CLAIM, TAKEN, holding, recorded, run_lease
from stillroom.workflows.schedules.schedule import ScheduleError, UnknownScheduleError
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import quick_flow


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A folder with a workflow, in which a user stands."""
    quick_flow(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("STILLROOM_STATE", str(tmp_path / "state"))
    return State(tmp_path / "state")


def typed(*arguments: str) -> Any:
    """What a command line answers; its errors are raised."""
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_runs_by_hand_are_in_the_ledger(state: State) -> None:
    assert typed("run", "quick.py", "--workers", "0").exit_code == 0
    with pytest.raises(RuntimeError, match="no luck"):
        typed("run", "quick.py", "--workers", "0", "--fails", "9")
    with pytest.raises(SettingsError):
        typed("run", "quick.py", "--workers", "0", "--epoch", "9")
    wrong, failed, done = runs(state)
    assert (done.state, done.exit_code, done.schedule, done.flow) == ("done", 0, None, "quick.py")
    assert done.folder == str(Path("out/quick").absolute())
    assert done.report == str(Path("out/quick/page.html").absolute())
    assert done.seconds is not None
    assert [(s.step, s.fresh) for s in done.steps] == [("work", False)]
    assert (failed.state, failed.exit_code) == ("failed", 1)
    assert (failed.error or "").endswith("RuntimeError: no luck")
    assert [(s.step, s.fresh, s.seconds) for s in failed.steps] == [("work", None, None)]
    assert failed.steps[0].why.startswith("setting fails")
    assert (wrong.exit_code, wrong.steps) == (2, ())
    assert "--epoch: unknown" in (wrong.error or "")
    shown = typed("runs", "--steps").stdout
    assert "hand" in shown
    assert "run 2: RuntimeError: no luck" in shown
    assert "report of run 1: " in shown
    said = json.loads(typed("runs", "--json", "--flow", "quick.py", "--last", "2").stdout)
    assert [run["number"] for run in said] == [3, 2]
    assert typed("runs", "--flow", "digits").stdout.startswith("no runs")
    assert "by hand, what it printed went to its terminal" in typed("logs", "1").stdout
    assert json.loads(typed("logs", "last", "--json").stdout)["number"] == 3
    with pytest.raises(UnknownScheduleError, match=r"did you mean 'quick\.py'"):
        typed("logs", "quick")


def test_what_fresh_steps_spared_and_rows_that_were_taught(state: State, tmp_path: Path) -> None:
    from stillroom.pipeline.execute import StepFinished, StepStarted

    out = tmp_path / "out"
    for fresh in (False, True, True):
        with recorded(state.folder, "flow.py", [], out) as record:
            record(StepStarted("teach", "" if fresh else "120 rows are new"))
            for rows in () if fresh else (100, 20):
                record(RowsTaught("cnn", rows, 1, 0.1))
            record(StepFinished("teach", fresh, 0.01 if fresh else 40.0, {}))
            record(StepFinished("students", False, 2.5, {}))
    third, second, first = runs(state)
    assert [run.rows_taught for run in (first, second, third)] == [120, 0, 0]
    assert [run.saved_s for run in (first, second, third)] == [0.0, 40.0, 40.0]
    assert first.steps[0].why == "120 rows are new"
    with recorded(state.folder, "flow.py", [], tmp_path / "elsewhere") as record:
        record(StepFinished("teach", True, 0.0, {}))
    assert runs(state)[0].saved_s == 0.0  # that folder's steps never ran


def test_a_folder_is_held_by_one_run(state: State) -> None:
    folder = Path("out/quick").absolute()
    with holding(folder, "nightly"):
        with pytest.raises(
            BusyError,
            match=r"(?s)out/quick is in use: stillroom run of schedule nightly by process \d+ on .* since"
            r".*Nothing was started.*--wait SECONDS.*--out",
        ):
            typed("run", "quick.py", "--workers", "0")
        assert typed("run", "quick.py", "--workers", "0", "--out", "out/other").exit_code == 0
        assert not (folder / "log").exists()
    assert typed("run", "quick.py", "--workers", "0", "--wait", "5").exit_code == 0
    assert [run.exit_code for run in runs(state)] == [0, 0, 1]


def test_an_error_inside_a_run_is_not_taken_for_a_held_folder(tmp_path: Path) -> None:
    with pytest.raises(BusyError, match="the cache is busy"), holding(tmp_path / "out"):
        raise BusyError("the cache is busy")
    assert run_lease(tmp_path / "out").is_file()
    with holding(tmp_path / "out"):
        pass


def test_a_ledger_that_cannot_be_written_ends_no_run(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STILLROOM_STATE", str(tmp_path / "file"))
    done = typed("run", "quick.py", "--workers", "0")
    assert done.exit_code == 0
    assert "this run is not in the ledger of runs" in done.output
    assert (tmp_path / "out" / "quick" / "log").exists()


def test_a_run_of_a_schedule_is_begun_by_one_process(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = "INSERT INTO runs (schedule, tick, flow, arguments, cwd, folder, state, asked) VALUES "
    state.write(row + "('a', 't', 'quick.py', '[]', '.', '', 'waiting', 1)", ())
    monkeypatch.setenv(CLAIM, "1")
    with recorded(state.folder, "quick.py", [], tmp_path / "out") as record:
        assert CLAIM not in os.environ  # or what the run starts would take it for its own
        assert record.scheduled == "a"
        assert runs(state)[0].state == RUNNING
        monkeypatch.setenv(CLAIM, "1")
        with (
            pytest.raises(SystemExit, match=str(TAKEN)),
            recorded(state.folder, "quick.py", [], tmp_path / "out"),
        ):
            pass
    assert [run.state for run in runs(state)] == ["done"]


def test_a_run_whose_process_is_gone_says_so(state: State) -> None:
    with recorded(state.folder, "quick.py", [], None):
        pass
    gone = json.dumps({**(runs(state)[0].process or {}), "pid": 2**30})
    state.write("UPDATE runs SET state = 'running', ended = NULL, process = ?", (gone,))
    (run,) = runs(state)
    assert (run.state, run.seconds) == ("interrupted", None)
    assert "killed" in (run.error or "")


def test_schedules_as_a_user_types_them(state: State) -> None:
    said = typed(
        *("schedule", "add", "nightly", "quick.py", "--cron", "30 2 * * *"),
        *("--timezone", "Europe/Berlin", "--out", "out/n", "--seconds", "0.5", "--workers", "0"),
    )
    assert "nightly: quick.py, cron 30 2 * * * (Europe/Berlin); next: 2" in said.stdout
    added = json.loads(
        typed("schedule", "add", "b", "quick.py", "--after", "nightly", "--json").stdout
    )
    assert added["trigger"]["after"] == "nightly"
    kept = state.require("nightly").schedule
    assert kept.arguments == ("--out", "out/n", "--seconds", "0.5", "--workers", "0")
    assert (kept.out, kept.folder) == (str(Path("out/n").absolute()), str(Path.cwd()))
    listed = json.loads(typed("schedule", "list", "--json").stdout)
    assert [one["name"] for one in listed["schedules"]] == ["b", "nightly"]
    assert listed["served"] == ""
    assert "nobody serves" in typed("schedule", "list").stdout
    times = typed("schedule", "next", "nightly", "--count", "3").stdout.splitlines()
    assert [line[11:] for line in times] == ["02:30 Europe/Berlin"] * 3
    typed("schedule", "pause", "nightly")
    assert "is paused" in typed("schedule", "next", "nightly").stdout
    typed("schedule", "resume", "nightly")
    assert len(json.loads(typed("schedule", "next", "nightly", "--json").stdout)["next"]) == 5
    typed("schedule", "remove", "b")
    assert list(state.schedules()) == ["nightly"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cron", "0 25 * * *"], "out of range.*every night at two"),
        (["--cron", "@daily", "--every", "2h"], "found --cron and --every"),
        ([], "found none"),
        (["--every", "2 hours"], "--every 2 hours: expected a duration"),
        (["--every", "2h", "--timezone", "UTC"], "--timezone belongs to --cron"),
        (["--every", "2h", "--secondss", "3"], "--secondss: unknown; did you mean '--seconds'"),
        (["--every", "2h", "--seconds", "much"], "--seconds: "),
        (["--every", "2h", "--gpus", "many"], "arguments of the run: .*--gpus"),
        (["--every", "2h", "--webhook", "chat.example"], "--webhook chat.example: expected http"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(
    state: State, arguments: list[str], said: str
) -> None:
    with pytest.raises(SettingsError, match=f"(?s){said}"):
        typed("schedule", "add", "x", "quick.py", *arguments)
    assert state.schedules() == {}


def test_names_and_workflows_that_cannot_be_are_refused(state: State) -> None:
    with pytest.raises(ScheduleError, match="expected letters, digits"):
        typed("schedule", "add", "../x", "quick.py", "--every", "2h")
    with pytest.raises(SettingsError, match=r"nope"):
        typed("schedule", "add", "x", "nope.py", "--every", "2h")
    assert not state.path.exists()
