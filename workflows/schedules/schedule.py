"""Schedule: a workflow with its settings and what makes it run; plain data, checked when it is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from stillroom.storage.errors import StillroomError, nearest
from stillroom.workflows.flows import SettingsError

KINDS = ("cron", "every", "on-data", "on-teacher", "after")
EXAMPLES = (
    '"0 2 * * *" every night at two, "*/15 * * * *" every quarter of an hour, '
    '"30 6 * * mon-fri" on workdays, @daily'
)
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FIELD = re.compile(r"[0-9A-Za-z*,/\-]+")
_FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class ScheduleError(SettingsError):
    """A schedule cannot be: its name, its time or what it follows is none."""


class UnknownScheduleError(StillroomError, KeyError):
    """There is no schedule, or no run, of that name."""


@dataclass(frozen=True)
class Trigger:
    """What makes a schedule due."""

    kind: str
    """One of KINDS."""
    cron: str = ""
    """Five fields, as crontab(5) has them."""
    timezone: str = "UTC"
    """Whose clock the cron line means, by its name in the tz database."""
    seconds: float = 0.0
    """Of `every`: from one tick to the next. Of `on-data` and `on-teacher`: from one look to the next."""
    after: str = ""
    """The schedule whose runs this one follows."""

    def __str__(self) -> str:
        """As a person says it."""
        if self.kind == "cron":
            return f"cron {self.cron} ({self.timezone})"
        if self.kind == "after":
            return f"after {self.after}"
        often = words_of_seconds(self.seconds)
        return (
            f"every {often}" if self.kind == "every" else f"{self.kind}, looked for every {often}"
        )


@dataclass(frozen=True)
class Schedule:
    """A workflow, and when it runs again."""

    name: str
    """Letters, digits, '_', '.' and '-'; names its runs and their logs."""
    flow: str
    """A bundled workflow, or a Python file as it is found from `folder`."""
    arguments: tuple[str, ...]
    """What follows FLOW on the command line of `stillroom run`: its flags and the workflow's settings."""
    trigger: Trigger
    folder: str
    """Working directory of its runs."""
    catch_up: bool = False
    """Whether each tick that was missed is run by itself; otherwise one run stands for all of them."""
    retries: int = 0
    """How often a run that failed is tried again."""
    backoff_s: float = 60.0
    """Seconds before the first of these; each further one waits twice as long."""
    webhook: str = ""
    """URL that gets every finished run as JSON, by POST."""
    notify: str = ""
    """Shell command that gets every finished run as JSON on its standard input."""
    added: float = 0.0
    """When it was added, in unix seconds; the ticks of `every` are counted from it."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @property
    def out(self) -> str:
        """The folder of its runs, as `stillroom run` will find it; absolute."""
        said = [a.partition("=") for a in self.arguments]
        found = ""
        for index, (flag, joined, value) in enumerate(said):
            if flag == "--out":
                found = value if joined else "".join(self.arguments[index + 1 : index + 2])
        return str(Path(self.folder, found or Path("out") / Path(self.flow).stem))


def schedule_of(stored: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_json` gave; fields of a later version are ignored."""
    known = {f.name for f in fields(Schedule)} - {"trigger", "arguments"}
    trigger = {
        f.name: stored["trigger"][f.name] for f in fields(Trigger) if f.name in stored["trigger"]
    }
    return Schedule(
        trigger=Trigger(**trigger),
        arguments=tuple(stored["arguments"]),
        **{name: value for name, value in stored.items() if name in known},
    )


def require_name(name: str) -> str:
    """The name; ScheduleError when it cannot name files."""
    if not _NAME.fullmatch(name):
        raise ScheduleError(
            f"schedule name {name!r}: expected letters, digits, '_', '.' or '-', starting with a letter "
            "or digit, at most 64, such as nightly"
        )
    return name


def cron_trigger(line: str, timezone: str) -> Trigger:
    """At the times of a cron line by the clock of that zone; ScheduleError says which field is wrong."""
    said = ALIASES.get(line.strip().lower(), line)
    parts = said.lower().split()
    if len(parts) != len(_FIELDS):
        raise ScheduleError(
            f"cron line {line!r}: expected five fields ({', '.join(_FIELDS)}) or one of "
            f"{', '.join(ALIASES)}, found {len(parts)}. Examples: {EXAMPLES}"
        )
    for part, name in zip(parts, _FIELDS, strict=True):
        if not _FIELD.fullmatch(part):
            raise ScheduleError(
                f"cron line {line!r}: {part!r} is no {name}; expected numbers, names, '*', ranges 1-5, "
                f"steps */15, lists 1,2. Examples: {EXAMPLES}"
            )
    try:
        ZoneInfo(timezone)
    except (ValueError, OSError, KeyError) as error:
        from zoneinfo import available_timezones

        raise ScheduleError(
            f"time zone {timezone!r} is unknown; {_nearest_zone(timezone, available_timezones())}"
        ) from error
    trigger = Trigger("cron", " ".join(parts), timezone)
    from stillroom.workflows.schedules.ticks import CronError, next_tick

    try:
        # Any start will do: a line that does not come within years never comes.
        next_tick(trigger, 0.0, datetime(2026, 1, 1).timestamp())
    except CronError as error:
        raise ScheduleError(f"cron line {line!r}: {error}. Examples: {EXAMPLES}") from error
    return trigger


def _nearest_zone(timezone: str, known: set[str]) -> str:
    said = nearest(timezone, known)
    return (
        said if said.startswith("did you mean") else "expected a name such as Europe/Berlin or UTC"
    )


def every_trigger(text: str) -> Trigger:
    """At a fixed distance: 30m, 90s, 12h, 1d. ScheduleError for anything else."""
    return Trigger("every", seconds=seconds_of(text, "--every"))


def seconds_of(text: str, flag: str) -> float:
    """Seconds of a duration such as 30m; ScheduleError names the flag.

    >>> seconds_of("30m", "--every"), seconds_of("1h30m", "--every")
    (1800.0, 5400.0)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", text.lower())
    if not parts or "".join(a + u for a, u in parts) != text.lower().replace(" ", ""):
        raise ScheduleError(
            f"{flag} {text}: expected a duration such as 30m, 90s, 12h, 1d or 1h30m"
        )
    seconds = sum(float(amount) * _UNITS[unit] for amount, unit in parts)
    if not 1 <= seconds <= 366 * 86_400:
        raise ScheduleError(f"{flag} {text}: expected at least 1s and at most 366d")
    return seconds


def since_of(text: str, now: float) -> float:
    """The point in time that `7d` (before now) or a date means, in unix seconds; a date without a zone
    is by this machine's clock. ScheduleError for anything else."""
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    with suppress(ScheduleError):
        return now - seconds_of(text, "--since")
    raise ScheduleError(
        f"--since {text}: expected a distance such as 7d or 12h, or a date such as 2026-12-01"
    )


def words_of_seconds(seconds: float) -> str:
    """The reverse, in its largest unit.

    >>> words_of_seconds(1800), words_of_seconds(5400), words_of_seconds(1)
    ('30m', '90m', '1s')
    """
    for unit in ("d", "h", "m"):
        if seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    return f"{seconds:g}s"
