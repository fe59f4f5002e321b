"""The commands `schedule`, `serve`, `page`, `runs` and `logs`. What is heavy is imported inside them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stillroom.workflows.schedules.schedule import Trigger
    from stillroom.workflows.schedules.state import State

_FLOW = {"allow_extra_args": True, "ignore_unknown_options": True}
DEFAULT_STATE = "out/.stillroom"
STATE_VARIABLE, DATABASE_VARIABLE = "STILLROOM_STATE", "STILLROOM_DATABASE"
StateFolder = Annotated[
    Path | None,
    typer.Option(
        "--state", help=f"Folder of schedules and runs; {STATE_VARIABLE}, or {DEFAULT_STATE}."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")]
PageAt = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT",
        help="The page there; a token is asked for unless HOST is a loopback.",
    ),
]
Name = Annotated[str, typer.Argument(help="A schedule's name.")]

schedule_app = typer.Typer(
    help="When workflows run again: by the clock, when data or a teacher changed, after one another.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Give the commands to the command line."""
    app.add_typer(schedule_app, name="schedule")
    app.command("serve")(serve)
    app.command("page")(page)
    app.command("runs")(list_runs)
    app.command("logs")(logs)


def state_folder(said: Path | None = None) -> Path:
    """What was said, else the environment's, else `out/.stillroom` in the working directory."""
    return said or Path(os.environ.get(STATE_VARIABLE) or DEFAULT_STATE)


def run_arguments(flow: str, settings: Sequence[str]) -> list[str]:
    """What follows FLOW on this process's command line `run`; else the settings alone."""
    said = sys.argv[1:]
    if said[:1] == ["run"] and flow in said:
        said.remove(flow)
        return said[1:]
    return list(settings)


@schedule_app.command("add", context_settings=_FLOW)
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it.")],
    flow: Annotated[str, typer.Argument(help="A bundled workflow (digits) or a Python file.")],
    cron: Annotated[str | None, typer.Option(help='Five fields: "0 2 * * *"; or @daily.')] = None,
    every: Annotated[str | None, typer.Option(help="A distance: 30m, 12h, 1d.")] = None,
    on_data: Annotated[
        bool, typer.Option("--on-data", help="When the plan says that data changed.")
    ] = False,
    on_teacher: Annotated[
        bool, typer.Option("--on-teacher", help="When it says that a teacher changed, or is new.")
    ] = False,
    after: Annotated[
        str | None, typer.Option(help="When a run of this other schedule succeeded.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Of --cron, such as Europe/Berlin; this machine's.")
    ] = None,
    poll: Annotated[str, typer.Option(help="How often --on-data and --on-teacher look.")] = "5m",
    catch_up: Annotated[
        bool,
        typer.Option("--catch-up/--coalesce", help="Missed ticks: each by itself, or one for all."),
    ] = False,
    retries: Annotated[int, typer.Option(min=0, max=100, help="After a run that failed.")] = 0,
    backoff: Annotated[
        float, typer.Option(min=0, help="Seconds before the first of them; then twice as long.")
    ] = 60.0,
    webhook: Annotated[
        str | None, typer.Option(help="URL that gets every finished run as JSON.")
    ] = None,
    notify: Annotated[
        str | None, typer.Option(help="Shell command that gets the same on standard input.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Over one of that name.")] = False,
    state: StateFolder = None,
    as_json: Json = False,
) -> None:
    """Run a workflow again and again; `stillroom serve` does it.

    Further flags are those of `stillroom run`: --out, --workers, the workflow's own settings.
    """
    from stillroom.workflows.schedules.adding import checked_arguments, trigger_of
    from stillroom.workflows.schedules.schedule import Schedule, require_name
    from stillroom.workflows.schedules.showing import schedule_line
    from stillroom.workflows.schedules.state import State
    from stillroom.workflows.schedules.telling import require_webhook

    kinds: dict[str, Any] = {"--cron": cron, "--every": every, "--after": after}
    kinds |= {"--on-data": on_data or None, "--on-teacher": on_teacher or None}
    trigger: Trigger = trigger_of(kinds, timezone, poll)
    arguments = checked_arguments(flow, context.args)
    now = float(int(time.time()))
    kept = Schedule(
        require_name(name),
        flow,
        arguments,
        trigger,
        str(Path.cwd()),
        catch_up,
        retries,
        backoff,
        require_webhook(webhook) if webhook else "",
        notify or "",
        now,
    )
    there = State(state_folder(state))
    there.add(kept, replace=replace)
    _say(as_json, kept.to_json(), schedule_line(there, name))


@schedule_app.command("list")
def list_schedules(state: StateFolder = None, as_json: Json = False) -> None:
    """Every schedule, its next tick, its last run; whether a scheduler serves."""
    from dataclasses import asdict

    from stillroom.workflows.schedules.ledger import coming
    from stillroom.workflows.schedules.serving import serving
    from stillroom.workflows.schedules.showing import print_schedules
    from stillroom.workflows.schedules.state import State

    there = State(state_folder(state))
    found, server = coming(there, time.time()), serving(there)
    if as_json:
        _print({"state": str(there.folder), "served": server, "schedules": [*map(asdict, found)]})
    else:
        print_schedules(there, found, server)


@schedule_app.command("pause")
def pause(name: Name, state: StateFolder = None, as_json: Json = False) -> None:
    """Stop firing it; a run that is going on ends."""
    _pause(name, state, True, as_json)


@schedule_app.command("resume")
def resume(name: Name, state: StateFolder = None, as_json: Json = False) -> None:
    """Fire it again from now on; what was due in the pause is not made up for."""
    _pause(name, state, False, as_json)


def _pause(name: str, state: Path | None, paused: bool, as_json: bool) -> None:
    from stillroom.workflows.schedules.state import State

    there = State(state_folder(state))
    there.pause(name, paused, time.time())
    done = "paused" if paused else "goes on"
    _say(as_json, {"name": name, "paused": paused}, f"{name}: {done}")


@schedule_app.command("remove")
def remove(name: Name, state: StateFolder = None, as_json: Json = False) -> None:
    """Forget it; its runs stay in the ledger."""
    from stillroom.workflows.schedules.state import State

    State(state_folder(state)).remove(name)
    _say(as_json, {"name": name, "removed": True}, f"{name}: removed; its runs stay listed")


@schedule_app.command("next")
def next_ticks(
    name: Name,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 5,
    state: StateFolder = None,
    as_json: Json = False,
) -> None:
    """The next instants at which it is due."""
    from stillroom.workflows.schedules.ledger import ticks_ahead
    from stillroom.workflows.schedules.showing import tick_lines
    from stillroom.workflows.schedules.state import State

    there = State(state_folder(state))
    found = ticks_ahead(there, name, time.time(), count)
    kept = there.require(name)
    zone = kept.schedule.trigger.timezone
    said = {"name": name, "when": str(kept.schedule.trigger), "paused": kept.paused, "next": found}
    _say(as_json, said, "\n".join(tick_lines(kept, found, zone)))


def serve(
    state: StateFolder = None,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Runs at the same time.")] = 1,
    database: Annotated[
        str | None,
        typer.Option(
            help=f"The engine's: a SQLAlchemy URL (postgresql://...); {DATABASE_VARIABLE}, or SQLite "
            "in the state folder."
        ),
    ] = None,
    with_page: Annotated[
        bool, typer.Option("--page", help="Show a page of it on this machine, port 8321.")
    ] = False,
    page_at: PageAt = None,
    clock: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="To rehearse: go by the instant that this file says."),
    ] = None,
) -> None:
    """Be the scheduler: run what is due, until Ctrl-C or SIGTERM.

    Once lets runs finish what they have in hand, twice stops at once; the next `serve` goes on. Exit
    codes: 0 ended as asked, 1 another one serves this state, 130 stopped at once.
    """
    from stillroom.pipeline.stopping import stopping
    from stillroom.workflows.schedules.serving import Scheduler, clock_of
    from stillroom.workflows.schedules.state import State

    where = database or os.environ.get(DATABASE_VARIABLE) or ""
    there = State(state_folder(state))
    code = 0
    with ExitStack() as ends:
        if with_page or page_at is not None:
            _log(f"page: {ends.enter_context(_shown(there, page_at))}")
        stop = ends.enter_context(stopping())
        time_of_day = time.time if clock is None else clock_of(clock)
        scheduler = Scheduler(there, at_once, where, clock=time_of_day, say=_log)
        _log(f"serving {len(there.schedules())} schedules of {there.folder}, process {os.getpid()}")
        try:
            scheduler.serve(stop)
        except KeyboardInterrupt:
            code = 130
    _log("ended; runs that were stopped go on with the next `stillroom serve`")
    sys.stdout.flush()
    # Not sys.exit: the engine's threads wait inside runs that the next scheduler takes up.
    os._exit(code)


def page(
    state: StateFolder = None,
    page_at: PageAt = None,
) -> None:
    """Show the page without scheduling anything, until Ctrl-C or SIGTERM."""
    from stillroom.workflows.schedules.state import State

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with _shown(State(state_folder(state)), page_at) as address:
        _log(f"page: {address}")
        ended.wait()


def _shown(state: State, said: str | None) -> AbstractContextManager[str]:
    from stillroom.workflows.page.serving import Address, address_of, shown

    return shown(state, Address() if said is None else address_of(said))


def _log(text: str) -> None:
    print(f"{time.strftime('%F %T')} {text}", flush=True)


def list_runs(
    flow: Annotated[str | None, typer.Option(help="Of this workflow only.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of this schedule only.")] = None,
    last: Annotated[
        int | None, typer.Option(min=1, help="How many, the newest first; 20, all with --since.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Of the last 7d (12h, 2w), or since a date: 2026-12-01.")
    ] = None,
    steps: Annotated[bool, typer.Option("--steps", help="With each step and why it ran.")] = False,
    state: StateFolder = None,
    as_json: Json = False,
) -> None:
    """The ledger: when, why, how long, what was taught and spared, where the report is."""
    from stillroom.workflows.schedules.ledger import runs
    from stillroom.workflows.schedules.schedule import since_of
    from stillroom.workflows.schedules.showing import print_runs
    from stillroom.workflows.schedules.state import State

    there = State(state_folder(state))
    begin = None if since is None else since_of(since, time.time())
    last = last if last is not None or since is not None else 20
    found = runs(there, flow=flow, schedule=schedule, last=last, since=begin)
    if as_json:
        _print([run.to_json() for run in found])
    else:
        print_runs(found, steps, there)


def logs(
    run: Annotated[str, typer.Argument(help="Its number, its schedule's name, or `last`.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    state: StateFolder = None,
    as_json: Json = False,
) -> None:
    """What a run printed, and how it ended."""
    from stillroom.workflows.schedules.ledger import printed, run_of
    from stillroom.workflows.schedules.showing import ending, run_lines
    from stillroom.workflows.schedules.state import State

    there = State(state_folder(state))
    found = run_of(there, run)
    if as_json:
        text = printed(found).decode(errors="replace")
        _print({**found.to_json(), "printed": text})
        return
    print("\n".join(run_lines(found)), flush=True)
    start = 0
    while True:
        found = run_of(there, str(found.number))
        piece = printed(found, start)
        start += len(piece)
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        if not follow or found.state not in ("waiting", "running"):
            break
        time.sleep(0.3)
    print(ending(found))


def _say(as_json: bool, value: Any, words: str) -> None:
    if as_json:
        _print(value)
    else:
        print(words)


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
