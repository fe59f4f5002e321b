"""Templates and the words in them. Everything that comes from a run is escaped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from stillroom.storage.errors import MissingPackageError
from stillroom.workflows.page.curves import sparkline
from stillroom.workflows.schedules.ledger import Run
from stillroom.workflows.schedules.showing import when
from stillroom.workflows.spelling import NONE, amount, duration, span, whole

HERE = Path(__file__).parent


def templates() -> Any:
    """A Jinja environment over this folder; MissingPackageError names the extra."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingPackageError(
            f"the page needs Jinja ({error}): pip install 'stillroom[page]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (when, stamp, ago, amount, duration, span, whole, number, asked, command)
    environment.filters.update({f.__name__: f for f in words})
    environment.filters["sparkline"] = lambda curve: Markup(sparkline(curve))
    environment.globals.update(absent=NONE)
    return environment


def stamp(seconds: float) -> str:
    """An instant for machines, in this machine's zone."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def ago(seconds: float | None) -> str:
    """How far an instant is from now: `in 5.0 min`, `3.0 h ago`."""
    if seconds is None:
        return NONE
    far = seconds - time.time()
    return f"in {duration(far)}" if far >= 0 else f"{duration(-far)} ago"


def number(value: float | None) -> str:
    """A measured number, to four figures."""
    return NONE if value is None else f"{value:.4g}"


def asked(run: Run) -> str:
    """Who asked for a run."""
    tries = f", attempt {run.attempt}" if run.attempt > 1 else ""
    return (run.schedule or "by hand") + tries


def command(run: Run | Mapping[str, Any]) -> str:
    """A workflow and its flags, as they were given."""
    flow, arguments = (
        (run.flow, run.arguments) if isinstance(run, Run) else (run["flow"], run["arguments"])
    )
    return " ".join((flow, *arguments))
