"""A scheduler that is killed: what it began is not done twice, and nothing that was due is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stillroom.workflows.schedules.ledger import Run, runs
from stillroom.workflows.schedules.schedule import Trigger
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import ended, quick, quick_flow, scheduler_process, until

YEARLY = Trigger("every", seconds=366 * 86_400.0)


@contextmanager
def serving_process(state: State) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler in a process, ended at the end of the block unless it was killed."""
    process = scheduler_process(state)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(100)


def going(state: State, attempt: int = 1) -> Run:
    """The last run, once it is that attempt and works."""

    def found() -> list[Run]:
        last = runs(state, last=1)
        works = last and last[0].state == "running" and last[0].steps
        return last if works and last[0].attempt == attempt else []

    (run,) = until(found)
    assert isinstance(run, Run)
    return run


@pytest.mark.slow
def test_killed_alone_then_with_its_run_then_stopped(tmp_path: Path) -> None:
    """SIGKILL to the scheduler: the next one waits for the run. To both: it is run once more.
    SIGTERM: the run ends at a border, and the next scheduler goes on with it."""
    quick_flow(tmp_path)
    state = State(tmp_path / "state")
    state.folder.mkdir()
    added = float(int(time.time())) - YEARLY.seconds - 5
    state.add(quick(tmp_path, "yearly", YEARLY, "--seconds", "600", added=added))
    with serving_process(state) as process:
        first = going(state)
        process.kill()
    assert runs(state)[0].state == "running"
    with serving_process(state) as process:
        until(lambda: state.open_ticks() and (state.folder / "leases").exists())
        until(lambda: holder(state) == process.pid)
        assert [run.number for run in runs(state)] == [first.number]
        process.kill()
        process.wait()
    assert first.process is not None
    os.kill(int(first.process["pid"]), signal.SIGKILL)
    with serving_process(state) as process:
        second = going(state, 2)
        assert [(run.attempt, run.state) for run in runs(state)] == [
            (2, "running"),
            (1, "interrupted"),
        ]
        process.terminate()
        assert process.wait(100) == 0
    assert second.tick == first.tick
    assert [(run.state, run.exit_code) for run in runs(state)] == [
        *[("interrupted", 130), ("interrupted", None)]
    ]
    assert [attempt for _, _, attempt in state.open_ticks()] == [2]


def holder(state: State) -> int:
    return int(json.loads((state.folder / "leases" / "serve.json").read_text())["pid"])


@pytest.mark.slow
def test_goes_on_after_a_stop(tmp_path: Path) -> None:
    """The run that a SIGTERM ended is made once more by the next scheduler, and then done."""
    quick_flow(tmp_path)
    state = State(tmp_path / "state")
    state.folder.mkdir()
    added = float(int(time.time())) - YEARLY.seconds - 5
    state.add(quick(tmp_path, "yearly", YEARLY, "--seconds", "6", added=added))
    with serving_process(state) as process:
        going(state)
        process.terminate()
        assert process.wait(100) == 0
    with serving_process(state):
        every = ended(state, 2)
    assert [(run.attempt, run.state) for run in every] == [(1, "interrupted"), (2, "done")]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kills", [200])
def test_no_tick_is_lost_or_doubled_over_many_kills(tmp_path: Path, kills: int) -> None:
    harness = [sys.executable, "-m", "tests.workflows.schedules.kills"]
    done = subprocess.run(
        [*harness, str(tmp_path / "life"), str(kills), "1"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["kills"]["scheduler"] == kills
    assert (found["lost"], found["doubled"], found["overlaps"]) == ([], [], [])
    assert found["ticks"] > kills / 10
