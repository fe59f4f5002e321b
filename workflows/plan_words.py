"""What a plan of teaching says to people: why, how many bytes, how long, whether it fits, N*."""

from __future__ import annotations

from typing import Any

from stillroom.pipeline.step import Preview, Run
from stillroom.stages.deriving.planning import DerivePlan
from stillroom.stages.plans.estimating import BreakEven, Estimate, Interval, Room
from stillroom.stages.plans.forecasting import refusal
from stillroom.stages.plans.teach_plan import TeachPlan
from stillroom.storage.place import Place
from stillroom.workflows.spelling import DASH, amount, decimals, duration, whole

_OPTIONS = ("probe", "workers", "price_per_hour")
_FEW = {1: "first", 2: "second", 3: "third"}
_CHANGES = 3
"""Fields of a changed teacher that are named."""


def plan_options(run: Run) -> dict[str, Any]:
    """What the command line asked of `plan_teach`, as its arguments."""
    return {name: run.options[name] for name in _OPTIONS if name in run.options}


def preview_of(plan: TeachPlan, place: Place) -> Preview:
    """The plan of a teach step into the cache at `place`, for people and as plain JSON."""
    if not plan.why:
        return Preview("", details=plan.to_json())
    lines, refused = [], ""
    if plan.kept:
        lines.append(
            f"{whole(plan.kept)} rows were finished by a run that was cut off; they are kept"
        )
    if plan.early:
        lines.append(
            f"{whole(len(plan.work))} segments of up to {whole(plan.snapshot_every or 0)} rows, a "
            "snapshot after each: students can begin with the first"
        )
    if (found := plan.estimate) is not None:
        lines += estimate_lines(found)
        if found.room is not None:
            refused = refusal(found.room, place, plan.teacher, found.source)
    return Preview(why_words(plan), tuple(lines), plan.to_json(), refused)


def preview_of_derived(plan: DerivePlan) -> Preview:
    """The plan of a step that derives a summary; that of derived signals goes to `preview_of`."""
    if plan.fresh:
        return Preview("", details=plan.to_json())
    size = "bytes unknown: it was never derived" if plan.bytes is None else amount(plan.bytes)
    return Preview(plan.why, (f"over {whole(plan.rows)} rows; {size}",), plan.to_json())


def why_words(plan: TeachPlan) -> str:
    """Why rows are to be computed; where the teacher changed, each field in which it did."""
    if not plan.changes:
        return plan.why
    more = len(plan.changes) - _CHANGES
    named = "; ".join(plan.changes[:_CHANGES]) + (f"; and {more:,} more" if more > 0 else "")
    rows = sum(len(work.places) for work in plan.work)
    return f"the teacher changed: {named}; {whole(rows)} rows would be taught again"


def estimate_lines(found: Estimate) -> list[str]:
    """Bytes, seconds and N*, a line for each."""
    room = "" if found.room is None else f"; {_room(found.room)}"
    if found.bytes is None:
        return [f"bytes and seconds unknown: --probe loads the teacher and times it{room}"]
    size = f"{amount(found.bytes.value)}{_share(found.bytes)} in {whole(found.files)} files"
    lines = [f"{size}, from {_source(found)}{room}"]
    if found.seconds is None:
        return [*lines, "seconds unknown: --probe loads the teacher and times it"]
    loaded = "" if found.load_seconds is not None else "; loading the teacher is not in it"
    workers = f"{found.workers} worker{'s' if found.workers > 1 else ''}"
    lines.append(f"{duration(found.seconds.value)}{_ends(found.seconds)} with {workers}{loaded}")
    return lines if found.break_even is None else [*lines, break_even_line(found.break_even)]


def break_even_line(found: BreakEven) -> str:
    """N* and the two sides that it compares."""
    once, inside = (
        duration(seconds) + _price(found.price(seconds))
        for seconds in (found.once_seconds, found.online_seconds)
    )
    sides = f"teacher {once} once against {inside} inside each"
    reading = duration(found.reading_seconds)
    sides += f"; reading {reading} a run" if found.reading_measured else "; reading not measured"
    epochs = f"{found.epochs:g} epoch{'' if found.epochs == 1 else 's'}"
    if found.students is None:
        return f"N*: never cheaper for students of {epochs} ({sides})"
    ordinal = _ordinal(found.students)
    return (
        f"N* = {whole(found.students)}: cheaper from the {ordinal} student of {epochs} on ({sides})"
    )


def _price(price: float | None) -> str:
    if price is None:
        return ""
    return f" for {decimals(price, 2)}" if price >= 1 else f" for {price:.2g}"


def _source(found: Estimate) -> str:
    return f"a {found.source}" if found.source.startswith("probe") else found.source


def _room(found: Room) -> str:
    if found.free is None:
        return "free room unknown"
    return (
        f"{amount(found.free)} free: {found.verdict}"
        if found.need
        else f"{amount(found.free)} free"
    )


def _share(size: Interval) -> str:
    if size.half is None:
        return " (spread unknown)"
    share = size.half / max(size.value, 1)
    return f" \N{PLUS-MINUS SIGN} {share:.1%}" if share >= 0.001 else ""


def _ends(seconds: Interval) -> str:
    if seconds.low is None:
        return " (spread unknown)"
    return f" ({duration(seconds.low)} {DASH} {duration(seconds.high)} by the spread of what was timed)"


def _ordinal(number: int) -> str:
    if number in _FEW:
        return _FEW[number]
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"
