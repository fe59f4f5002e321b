"""What `schedule add` is told, checked before anything is kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.workflows.flow_command import arguments_of
from stillroom.workflows.flows import find_workflow, parse_settings
from stillroom.workflows.schedules.schedule import (
    EXAMPLES,
    ScheduleError,
    Trigger,
    cron_trigger,
    every_trigger,
    seconds_of,
)


def trigger_of(kinds: Mapping[str, Any], timezone: str | None, poll: str) -> Trigger:
    """The one trigger that was said; ScheduleError when it is none, or when there are several."""
    said = {flag: value for flag, value in kinds.items() if value is not None}
    if len(said) != 1:
        found = " and ".join(said) or "none"
        raise ScheduleError(
            f"expected one of {', '.join(kinds)}, found {found}. Examples: --cron {EXAMPLES}; --every 30m"
        )
    ((flag, value),) = said.items()
    if timezone is not None and flag != "--cron":
        raise ScheduleError(f"--timezone belongs to --cron; {flag} does not go by the wall clock")
    if flag == "--cron":
        return cron_trigger(value, timezone or local_zone())
    if flag == "--every":
        return every_trigger(value)
    if flag == "--after":
        return Trigger("after", after=value)
    return Trigger(flag.removeprefix("--"), seconds=seconds_of(poll, "--poll"))


def local_zone(local: Path = Path("/etc/localtime")) -> str:
    """The name of this machine's time zone, UTC where it has none.

    It is kept with the schedule, so that a machine that is moved changes nothing.
    """
    named = os.environ.get("TZ", "").removeprefix(":")
    if not named and local.exists():
        named = str(local.resolve()).partition("zoneinfo/")[2]
    try:
        from zoneinfo import ZoneInfo

        return ZoneInfo(named).key or "UTC" if named else "UTC"
    except (ValueError, OSError, KeyError):
        return "UTC"


def checked_arguments(flow: str, said: Sequence[str]) -> tuple[str, ...]:
    """What a run of the flow will be told; SettingsError lists what is wrong with it, now and not at
    two in the morning."""
    from typer.main import get_command

    from stillroom.workflows.cli import app

    group: Any = get_command(app)
    try:
        context = group.commands["run"].make_context("run", [flow, *said])
    except Exception as error:
        # Of click, which newer versions of typer bring as their own.
        if not hasattr(error, "format_message"):
            raise
        raise ScheduleError(f"arguments of the run: {error.format_message()}") from error
    before = list(sys.path)
    try:
        workflow = find_workflow(flow)
    finally:
        sys.path[:] = before
    given = (context.params.get("config"), context.params.get("sets"))
    parse_settings(workflow, arguments_of(context, *given))
    return tuple(said)
