"""Schedules and runs as people read them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from stillroom.workflows.printing import console
from stillroom.workflows.schedules.ledger import (
    FAILED,
    INTERRUPTED,
    STATES,
    Coming,
    Run,
    ticks_ahead,
)
from stillroom.workflows.schedules.state import Kept, State
from stillroom.workflows.spelling import NONE, duration, whole


def when(seconds: float | None, zone: str | None = None) -> str:
    """A point in time by this machine's clock, or by that zone's, to the minute or the second."""
    if seconds is None:
        return NONE
    moment = datetime.fromtimestamp(seconds, ZoneInfo(zone) if zone else None)
    return moment.strftime("%Y-%m-%d %H:%M" + (":%S" if moment.second else ""))


def schedule_line(state: State, name: str) -> str:
    """What was added, and what comes next."""
    kept = state.require(name)
    trigger = kept.schedule.trigger
    found = ticks_ahead(state, name, time.time(), 1)
    first = f"; next: {when(found[0], trigger.timezone)} {trigger.timezone}" if found else ""
    return f"{name}: {kept.schedule.flow}, {trigger}{first}. `stillroom serve` runs it"


def tick_lines(kept: Kept, found: Sequence[float], zone: str) -> Iterator[str]:
    """The next instants; or why there are none."""
    if kept.paused:
        yield f"{kept.schedule.name} is paused; stillroom schedule resume {kept.schedule.name}"
    elif not found:
        yield f"{kept.schedule.name} does not go by the clock: {kept.schedule.trigger}"
    yield from (f"{when(tick, zone)} {zone}" for tick in found)


def print_schedules(state: State, found: Sequence[Coming], server: str) -> None:
    """A table, and who serves."""
    if not found:
        print(f"no schedules in {state.folder}; stillroom schedule add NAME FLOW --cron ...")
        return
    table = _table("schedule", "workflow", "when", "next", "last run")
    for one in found:
        coming = "paused" if one.paused else when(one.next)
        if one.open_tick is not None:
            coming = "running"
        elif one.overdue:
            coming += " (overdue)"
        last = NONE if one.last is None else f"{when(one.last.asked)} {one.last.state}"
        words = [one.when, *([f"cannot look: {one.problem}"] if one.problem else [])]
        _row(table, one.name, " ".join((one.flow, *one.arguments)), "\n".join(words), coming, last)
    console().print(table)
    print(server or "nobody serves: start `stillroom serve`")


def print_runs(found: Sequence[Run], steps: bool, state: State) -> None:
    """A table, the newest first; below it what went wrong, and the reports."""
    if not found:
        print(f"no runs in {state.folder}")
        return
    table = _table("run", "began", "by", "workflow", "took", "taught", "saved", "ended")
    for run in found:
        by = run.schedule or "hand"
        taught = f"{whole(run.rows_taught)} rows" if run.rows_taught else NONE
        saved = duration(run.saved_s) if run.saved_s else NONE
        ended = run.state if run.exit_code in (0, None) else f"{run.state} ({run.exit_code})"
        tries = f", attempt {run.attempt}" if run.attempt > 1 else ""
        _row(
            *(table, str(run.number), when(run.started or run.asked), by + tries, run.flow),
            *(duration(run.seconds), taught, saved, ended),
        )
    console().print(table)
    for run in found:
        if steps:
            print("\n".join(run_lines(run)))
        if run.state in (FAILED, INTERRUPTED) and run.error:
            print(f"run {run.number}: {run.error.strip().splitlines()[-1]}")
    if len(found) > 1:
        print(total_line(found))
    reports = {run.report: run.number for run in reversed(found) if run.report}
    for report, number in reports.items():
        print(f"report of run {number}: {report}")


def total_line(found: Sequence[Run]) -> str:
    """How many runs ended how, what they taught, and what they spared, in all."""
    states = Counter(run.state for run in found)
    ends = ", ".join(f"{states[name]} {name}" for name in STATES if states[name])
    rows, saved = sum(r.rows_taught for r in found), sum(r.saved_s or 0.0 for r in found)
    return f"{whole(len(found))} runs: {ends}; {whole(rows)} rows taught, {duration(saved)} saved"


def run_lines(run: Run) -> list[str]:
    """A run and its steps, a line for each."""
    asked = run.why or "by hand"
    lines = [f"run {run.number}: {' '.join((run.flow, *run.arguments))}, {asked}"]
    for step in run.steps:
        if step.fresh is None:
            words = "not finished"
        else:
            words = "fresh" if step.fresh else f"done in {duration(step.seconds)}"
        lines.append(f"  {step.step}: {words}{f' ({step.why})' if step.why else ''}")
    return lines


def ending(run: Run) -> str:
    """How a run stands, in one line or with what ended it."""
    told = f"; {'; '.join(run.told)}" if run.told else ""
    said = f"run {run.number}: {run.state}"
    if run.exit_code is not None:
        said += f", exit code {run.exit_code}, {duration(run.seconds)}{told}"
    if run.log is None and run.schedule is None:
        said += "; by hand, what it printed went to its terminal"
    return f"{said}\n{run.error}" if run.error else said


def _table(*headings: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("run", "took") else "left")
    return table


def _row(table: Any, *cells: str) -> None:
    from rich.markup import escape

    table.add_row(*map(escape, cells))
