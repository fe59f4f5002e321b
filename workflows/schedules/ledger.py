"""The ledger of runs, as it is read: what ran when and why, and what came of it. Plain data, for the
command line, a page, or a script; nothing here writes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillroom.storage.errors import nearest
from stillroom.storage.process import is_dead
from stillroom.workflows.schedules.schedule import UnknownScheduleError
from stillroom.workflows.schedules.state import State
from stillroom.workflows.schedules.ticks import next_tick

GONE = "its process ended without a word: it was killed, or its machine went down"
WAITING, RUNNING, DONE, FAILED, INTERRUPTED = "waiting", "running", "done", "failed", "interrupted"
STATES = (WAITING, RUNNING, DONE, FAILED, INTERRUPTED)


@dataclass(frozen=True)
class StepRun:
    """What a run did with one step."""

    step: str
    why: str
    """Why it ran, or what it found to do; empty when it was fresh."""
    fresh: bool | None
    """Whether nothing had to be computed; None when it did not end."""
    seconds: float | None


@dataclass(frozen=True)
class Run:
    """One run, by a schedule or by hand; a run that is tried again is a run of its own."""

    number: int
    schedule: str | None
    """None: by hand."""
    tick: str | None
    """What it was due for: an instant in UTC, or `run-N` of the run that it follows."""
    attempt: int
    """Counted from 1."""
    why: str
    """Why it was asked for."""
    flow: str
    arguments: tuple[str, ...]
    cwd: str
    folder: str
    """Where its outputs are; absolute."""
    state: str
    """One of STATES."""
    asked: float
    """Unix seconds, as the next two."""
    started: float | None
    ended: float | None
    exit_code: int | None
    """As `stillroom run` has them; below zero: the signal that killed it."""
    process: dict[str, Any] | None
    """Host, pid and start."""
    rows_taught: int
    """Rows that teachers answered."""
    saved_s: float | None
    """Seconds that its fresh steps took when they last ran; None while it runs."""
    report: str | None
    """The page that it made, absolute."""
    error: str | None
    """What ended it: the last lines of a traceback, or a sentence."""
    log: str | None
    """File with what it printed; None for a run by hand."""
    told: tuple[str, ...]
    """What became of its notifications."""
    steps: tuple[StepRun, ...]

    @property
    def seconds(self) -> float | None:
        """From its start to its end; None while it lasts."""
        if self.started is None or self.ended is None:
            return None
        return max(self.ended - self.started, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, `seconds` included."""
        return {**asdict(self), "seconds": self.seconds}


@dataclass(frozen=True)
class Coming:
    """A schedule and what comes of it next."""

    name: str
    flow: str
    arguments: tuple[str, ...]
    when: str
    """Its trigger in words."""
    paused: bool
    next: float | None
    """Unix seconds; None when it is paused, or does not go by the clock."""
    overdue: bool
    """Whether that is past: no scheduler is running, or a run is still going."""
    open_tick: str | None
    """The tick that is being run, or waits for it."""
    problem: str
    last: Run | None


def runs(
    state: State,
    *,
    flow: str | None = None,
    schedule: str | None = None,
    last: int | None = 20,
    number: int | None = None,
    since: float | None = None,
) -> list[Run]:
    """The last runs, newest first; of one workflow, one schedule, or the one of that number; asked for
    since that point in time (unix seconds)."""
    if not state.path.exists():
        return []
    wanted = {"flow": flow, "schedule": schedule, "number": number}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    where = " AND ".join(f"{name} = ?" for name in given) or "1"
    if since is not None:
        where, given = f"{where} AND asked >= ?", {**given, "since": since}
    with state.connected(write=False) as connection:
        rows = connection.execute(
            f"SELECT * FROM runs WHERE {where} ORDER BY number DESC LIMIT ?",
            (*given.values(), -1 if last is None else last),
        ).fetchall()
        return [_run(row, _steps(connection, row["number"])) for row in rows]


def run_of(state: State, name: str) -> Run:
    """The run of that number, or the last one of that schedule or workflow; `last`: the newest.

    UnknownScheduleError with what there is.
    """
    if name.isdecimal():
        found = runs(state, number=int(name), last=1)
    elif name == "last":
        found = runs(state, last=1)
    else:
        found = runs(state, schedule=name, last=1) or runs(state, flow=name, last=1)
    if not found:
        known = {one.schedule or one.flow for one in runs(state, last=200)}
        hint = nearest(name, known) if known else "nothing ran yet"
        raise UnknownScheduleError(f"no run {name!r} in {state.folder}; {hint}")
    return found[0]


def coming(state: State, now: float) -> list[Coming]:
    """Every schedule with its next tick and its last run, in the order of names."""
    kept = state.schedules()
    if not kept:
        return []
    with state.connected(write=False) as connection:
        rows = connection.execute(
            "SELECT * FROM runs WHERE number IN (SELECT max(number) FROM runs WHERE schedule IS NOT "
            "NULL GROUP BY schedule)"
        ).fetchall()
    last = {row["schedule"]: _run(row, ()) for row in rows}
    found = []
    for name, one in kept.items():
        schedule = one.schedule
        due = None
        if not one.paused and schedule.trigger.kind in ("cron", "every"):
            due = next_tick(schedule.trigger, schedule.added, one.watermark)
        words = (name, schedule.flow, schedule.arguments, str(schedule.trigger), one.paused)
        overdue = due is not None and due <= now
        found.append(Coming(*words, due, overdue, one.open_tick, one.problem, last.get(name)))
    return found


def ticks_ahead(state: State, name: str, now: float, count: int) -> list[float]:
    """The next instants at which a schedule is due, as unix seconds; none of one without a clock."""
    one = state.require(name)
    schedule, found = one.schedule, []
    if schedule.trigger.kind in ("cron", "every") and not one.paused:
        tick = max(now, one.watermark)
        for _ in range(count):
            tick = next_tick(schedule.trigger, schedule.added, tick)
            found.append(tick)
    return found


def printed(run: Run, start: int = 0) -> bytes:
    """What a run printed so far, from that byte on; nothing where no log was kept."""
    if run.log is None or not Path(run.log).is_file():
        return b""
    with open(run.log, "rb") as file:
        file.seek(start)
        return file.read()


def _steps(connection: sqlite3.Connection, number: int) -> tuple[StepRun, ...]:
    rows = connection.execute(
        "SELECT step, why, fresh, seconds FROM steps WHERE run = ? ORDER BY position", (number,)
    )
    return tuple(
        StepRun(r["step"], r["why"], None if r["fresh"] is None else bool(r["fresh"]), r["seconds"])
        for r in rows
    )


def _run(row: sqlite3.Row, steps: Sequence[StepRun]) -> Run:
    process = None if row["process"] is None else json.loads(row["process"])
    said, error = row["state"], row["error"]
    if said == RUNNING and process is not None and is_dead(process):
        said, error = INTERRUPTED, error or GONE
    return Run(
        **{
            **dict(row),
            "arguments": tuple(json.loads(row["arguments"])),
            "process": process,
            "state": said,
            "error": error,
            "told": tuple(json.loads(row["told"])),
            "steps": tuple(steps),
        }
    )
