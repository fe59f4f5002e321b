"""A workflow under Dagster: its ops, what is skipped and why, retries, the ledger, its command line."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage import Cache
from stillroom.workflows.schedules.ledger import runs
from stillroom.workflows.schedules.recording import holding
from stillroom.workflows.schedules.schedule import ScheduleError
from stillroom.workflows.schedules.state import State

FLOW = """
import time
from pathlib import Path
import numpy as np
from stillroom.pipeline import Step
from stillroom.stages import ArrayRows, FunctionTeacher, plan_teach, teach
from stillroom.storage import Cache

HERE = Path(__file__).parent

def half(number):
    time.sleep(float((HERE / "slow").read_text()) if (HERE / "slow").exists() else 0)
    return {"half": number / 2}

def of(run, rows):
    data = ArrayRows(range(rows), number=np.arange(rows, dtype="f4"))
    return Cache.at(run.folder / "cache"), data, FunctionTeacher("half", half, ("number",), ("half",))

def run_teach(run, inputs, *, rows):
    snapshot = teach(*of(run, rows), runner=run.runner, shard_rows=10, listen=run.listen, batch_size=5)
    if (HERE / "fails").exists():
        (HERE / "fails").unlink()
        raise RuntimeError("the lamp went out")
    return {"snapshot": snapshot.number}

def why_teach(run, inputs, *, rows):
    return plan_teach(*of(run, rows)).why

def report(run, inputs, *, title):
    (run.folder / "page.html").write_text(f"{title} {inputs['teach.half']['snapshot']}")
    return {"report": "page.html"}

def wrong(run, inputs):
    with open(HERE / "tries", "a") as file:
        file.write("x")
    return {"never plain": object()}

def workflow(*, rows: int = 30, title: str = "A page", bad: bool = False):
    teach = Step("teach.half", run_teach, {"rows": rows}, preview=why_teach)
    done = Step("report", report, {"title": title}, needs=(teach,))
    return [done, Step("wrong", wrong, needs=(done,))] if bad else [done]
"""

Job = Callable[..., Any]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of that workflow in this process, with other settings if wanted."""
    pytest.importorskip("dagster")
    from stillroom.workflows.dagster_job import dagster_job

    (tmp_path / "dagster_flow.py").write_text(FLOW)

    def made(*said: str, **more: Any) -> Any:
        where = {"out": tmp_path / "out", "state": tmp_path / "state", "workers": 0, **more}
        return dagster_job(tmp_path / "dagster_flow.py", said, **where)

    return made


def said(result: Any) -> dict[str, dict[str, Any]]:
    """What the ops of a run told, by op."""
    events = result.filter_events(lambda event: event.event_type_value == "STEP_OUTPUT")
    return {
        event.step_key: {k: v.value for k, v in event.step_output_data.metadata.items()}
        for event in events
    }


def test_what_is_stale_is_computed_and_the_rest_says_why_not(job: Job, tmp_path: Path) -> None:
    first = said(job().execute_in_process())
    assert list(first) == ["teach_half", "report"]
    taught = first["teach_half"]
    assert (taught["fresh"], taught["rows_taught"]) == (False, 30)
    assert taught["why"].startswith("it never ran here; half: ")
    assert (taught["result"], taught["seconds"] > 0) == ({"snapshot": 1}, True)
    assert first["report"]["report"] == str(tmp_path / "out" / "page.html")
    assert Cache(tmp_path / "out" / "cache").snapshot().rows == 30

    second = said(job().execute_in_process())
    assert [(op["fresh"], op["rows_taught"]) for op in second.values()] == [(True, 0), (True, 0)]
    assert second["teach_half"]["why"] == "it looked for what is stale, and found nothing"
    assert second["report"]["why"] == (
        "its code, settings, files and inputs are those of its last run"
    )
    assert second["report"]["result"] == first["report"]["result"]

    third = said(job("--title", "Another", "--rows", "35").execute_in_process())
    assert third["teach_half"]["rows_taught"] == 5
    assert "setting rows" in third["teach_half"]["why"]
    assert "setting title" in third["report"]["why"]
    assert (tmp_path / "out" / "page.html").read_text() == "Another 2"

    every = runs(State(tmp_path / "state"))
    assert [(run.state, run.rows_taught) for run in every] == [
        ("done", 5),
        ("done", 0),
        ("done", 30),
    ]
    assert every[1].saved_s is not None
    assert every[1].saved_s > 0


def test_a_step_that_fails_is_tried_again_and_keeps_what_it_had_stored(
    job: Job, tmp_path: Path
) -> None:
    (tmp_path / "fails").touch()
    ended = job(retries=1, backoff_s=0.01).execute_in_process()
    assert ended.success
    # The first attempt had taught all rows; the second one found them.
    assert said(ended)["teach_half"]["rows_taught"] == 0
    assert Cache(tmp_path / "out" / "cache").snapshot().rows == 30
    (run,) = runs(State(tmp_path / "state"))
    assert (run.state, run.rows_taught, run.error) == ("done", 30, None)

    (tmp_path / "fails").touch()
    ended = job("--rows", "31").execute_in_process(raise_on_error=False)
    assert not ended.success
    (run, _) = runs(State(tmp_path / "state"))
    assert (run.state, run.exit_code) == ("failed", 1)
    assert "the lamp went out" in str(run.error)
    # Its op is called alone, on what is there; and the folder is free again.
    again = job("--rows", "31").execute_in_process(op_selection=["teach_half"])
    assert said(again)["teach_half"]["rows_taught"] == 0


def test_what_cannot_get_better_is_not_tried_again(job: Job, tmp_path: Path) -> None:
    ended = job("--bad", retries=3, backoff_s=0.01).execute_in_process(raise_on_error=False)
    (failed,) = ended.filter_events(lambda event: event.is_step_failure)
    assert failed.step_key == "wrong"
    assert "must be plain JSON" in failed.step_failure_data.user_failure_data.description
    assert (tmp_path / "tries").read_text() == "x"
    assert runs(State(tmp_path / "state"))[0].exit_code == 2
    with holding(tmp_path / "out"):
        held = job(wait_s=0).execute_in_process(raise_on_error=False)
    (failed,) = held.filter_events(lambda event: event.is_step_failure)
    assert "is in use: " in str(failed.step_failure_data.error)


def test_a_schedule_asks_for_a_run_and_a_wrong_one_is_refused(job: Job) -> None:
    dagster = pytest.importorskip("dagster")
    from stillroom.workflows.dagster_job import dagster_schedule

    made = job(name="week")
    nightly = dagster_schedule(made, "0 2 * * *", "Europe/Berlin", running=True)
    (asked,) = nightly.evaluate_tick(dagster.build_schedule_context()).run_requests
    assert asked.run_config == {}
    kept = dagster.Definitions(jobs=[made], schedules=[nightly]).get_repository_def()
    assert [schedule.job_name for schedule in kept.schedule_defs] == ["week"]
    for cron, zone in (("0 25 * * *", "UTC"), ("0 2 * * *", "Europe/Atlantis")):
        with pytest.raises(ScheduleError):
            dagster_schedule(made, cron, zone)


def test_the_file_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/deploy/dagster_definitions.py, beside a flow."""
    pytest.importorskip("dagster")
    deploy = Path(__file__).parents[2] / "docs" / "deploy"
    shutil.copy(deploy / "dagster_definitions.py", tmp_path)
    (tmp_path / "flow.py").write_text(FLOW)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = runpy.run_path(str(tmp_path / "dagster_definitions.py"))
    monkeypatch.delitem(sys.modules, "flow")
    kept = found["definitions"].get_repository_def()
    (schedule,) = kept.schedule_defs
    assert (schedule.job_name, schedule.execution_timezone) == ("flow", "Europe/Berlin")
    ops = {node.name: node.definition.retry_policy for node in kept.get_job("flow").nodes}
    assert [policy.max_retries for policy in ops.values()] == [2, 2]


@settings(max_examples=30)
@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True), unique=True))
def test_every_step_has_a_name_of_its_own(steps: list[str]) -> None:
    from stillroom.workflows.dagster_job import op_names

    pytest.importorskip("dagster")
    from dagster._core.definitions.utils import is_valid_name

    found = op_names([*steps, "input", "input_2", "for"])
    assert len(set(found.values())) == len(found)
    assert all(map(is_valid_name, found.values()))


DEFINITIONS = """
from pathlib import Path
import dagster
from stillroom.workflows.dagster_job import dagster_job, dagster_schedule

HERE = Path(__file__).parent
job = dagster_job(
    HERE / "dagster_flow.py", out=HERE / "out", workers=0, retries=1, backoff_s=0.1, state=HERE / "state"
)
definitions = dagster.Definitions(
    jobs=[job], schedules=[dagster_schedule(job, "0 2 * * *", "Europe/Berlin")]
)
"""


def begun(folder: Path) -> subprocess.Popen[str]:
    """`dagster job execute` in a process of its own, its home beside the job."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    command = (sys.executable, "-m", "dagster", "job", "execute", "-f", "definitions.py")
    with open(folder / "printed", "a") as printed:
        return subprocess.Popen(
            [*command, "-a", "definitions", "-j", "dagster_flow"],
            cwd=folder,
            env={**os.environ, "DAGSTER_HOME": str(home)},
            stdout=printed,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.mark.slow
@pytest.mark.usefixtures("job")
def test_dagsters_own_command_runs_it_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "slow").write_text("0.5")  # two batches a shard: three seconds
    state, log = State(tmp_path / "state"), tmp_path / "printed"
    process = begun(tmp_path)
    receipts = tmp_path / "out" / "cache" / "segments"
    end = time.monotonic() + 120
    while not list(receipts.glob("*/receipts/*.json")):
        assert time.monotonic() < end, log.read_text()[-3000:]
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) != 0
    (run,) = runs(state)
    assert (run.state, run.exit_code) == ("interrupted", 130)
    kept = run.rows_taught
    assert kept in (10, 20), log.read_text()[-3000:]

    (tmp_path / "slow").unlink()
    (tmp_path / "fails").touch()
    assert begun(tmp_path).wait(120) == 0, log.read_text()[-3000:]
    assert [run.rows_taught for run in runs(state)] == [30 - kept, kept]
    assert "the lamp went out" in log.read_text()
    assert begun(tmp_path).wait(120) == 0
    assert [run.rows_taught for run in runs(state)] == [0, 30 - kept, kept]
    assert "step report: fresh: its code" in log.read_text()
    # Nothing of what passed between the ops is in Dagster's own store: they pass nothing.
    assert not list((tmp_path / "home" / "storage").rglob("result"))
