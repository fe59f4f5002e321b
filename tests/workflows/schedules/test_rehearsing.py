"""A scheduler that goes by a clock in a file, and a week of the ledger in one look."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillroom.workflows.cli import app
from stillroom.workflows.schedules.ledger import runs
from stillroom.workflows.schedules.schedule import ScheduleError, Trigger, since_of
from stillroom.workflows.schedules.serving import Scheduler, clock_of
from stillroom.workflows.schedules.showing import total_line
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import quick, quick_flow

NIGHT = Trigger("cron", "0 2 * * *", "UTC")


def test_a_clock_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    for text in (None, "noon"):
        if text:
            file.write_text(text)
        with pytest.raises(
            ScheduleError, match=r"--clock .*clock: expected a file with an instant"
        ):
            clock_of(file)
    file.write_text("2026-12-01T02:00:00+01:00\n")
    clock = clock_of(file)
    assert clock() == datetime(2026, 12, 1, 1, tzinfo=UTC).timestamp()
    file.write_text("")  # as it is being written
    assert clock() == datetime(2026, 12, 1, 1, tzinfo=UTC).timestamp()
    file.write_text("2026-12-01T03:00:00")
    assert clock() == datetime(2026, 12, 1, 3, tzinfo=UTC).timestamp()


def test_a_schedule_is_due_by_that_clock(tmp_path: Path) -> None:
    quick_flow(tmp_path)
    state, file = State(tmp_path / "state"), tmp_path / "clock"
    added = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    state.add(quick(tmp_path, "nightly", NIGHT, added=added))
    file.write_text("2026-12-01T01:59:59Z")
    scheduler = Scheduler(state, clock=clock_of(file), say=lambda text: None)
    assert scheduler.fire_due(scheduler.clock()) == []
    file.write_text("2026-12-01T02:00:00Z")
    assert scheduler.fire_due(scheduler.clock()) == ["nightly"]


def test_since_a_distance_or_a_date() -> None:
    assert since_of("7d", 700_000.0) == 700_000 - 7 * 86_400
    assert since_of("2026-12-01T00:00:00+00:00", 0.0) == 1_796_083_200
    assert since_of("2026-12-01", 0.0) == datetime(2026, 12, 1).timestamp()
    for text in ("", "yesterday", "-7d", "7"):
        with pytest.raises(ScheduleError, match=r"--since .*7d or 12h, or a date such as"):
            since_of(text, 0.0)


def test_runs_of_a_week_with_their_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_flow(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("STILLROOM_STATE", str(tmp_path / "state"))
    state = State(tmp_path / "state")
    typed = ("run", "quick.py", "--workers", "0")
    for more in ((), (), ("--fails", "9")):
        CliRunner().invoke(app, [*typed, *more])
    state.write("UPDATE runs SET rows_taught = 1500, saved_s = 2.5 WHERE number < 3", ())
    state.write("UPDATE runs SET asked = asked - ? WHERE number = 1", (8 * 86_400,))
    week = runs(state, since=time.time() - 7 * 86_400, last=None)
    assert [run.number for run in week] == [3, 2]
    assert total_line(week) == "2 runs: 1 done, 1 failed; 1,500 rows taught, 2.5 s saved"
    page = CliRunner().invoke(app, ["runs", "--since", "7d"]).output
    assert "2 runs: 1 done, 1 failed; 1,500 rows taught, 2.5 s saved" in page
    assert "3 runs: 2 done, 1 failed; 3,000 rows taught" in CliRunner().invoke(app, ["runs"]).output
