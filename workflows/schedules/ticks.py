"""When a schedule is due: instants of cron lines and intervals, through clocks that are put forward and
back. Pure arithmetic; the caller says what time it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from stillroom.storage.errors import MissingPackageError, StillroomError
from stillroom.workflows.schedules.schedule import Trigger

_AROUND = timedelta(hours=3)
"""No zone of the tz database puts its clock forward or back by more, date lines apart."""
COUNTED = 1000
"""Missed ticks are counted so far; what is more is `at least` that many."""


class CronError(StillroomError, ValueError):
    """A cron line that is none, or that never comes."""


def next_tick(trigger: Trigger, anchor: float, after: float) -> float:
    """The first instant after `after` at which the trigger is due, in unix seconds.

    `anchor`: an interval's ticks lie at multiples of it from there. A time of day that a clock put
    forward leaves out comes at the moment of the change; one that comes twice when it is put back is
    due the first time only. Lines whose hour is `*` go by elapsed time instead, as Debian's crond has
    it: each quarter of an hour that passes is one. CronError for a line that is none, or that never
    comes.
    """
    if trigger.kind == "every":
        passed = max((after - anchor) // trigger.seconds, -1.0)
        tick = anchor + (passed + 1) * trigger.seconds
        while tick <= after:  # rounding
            tick += trigger.seconds
        return tick
    zone = ZoneInfo(trigger.timezone)
    start = datetime.fromtimestamp(after, UTC)
    elapsed = trigger.cron.split()[1] == "*"
    plain = _is_even(zone, start - _AROUND, start + _AROUND)
    local = start.astimezone(zone).replace(tzinfo=None)
    found: float | None = None
    for wall in _walls(trigger.cron, local if plain else local - _AROUND):
        if found is not None and wall > _wall(found, zone) + _AROUND:
            break
        for instant in _instants(wall, zone, elapsed):
            if instant > after and (found is None or instant < found):
                found = instant
        if found is not None and plain and _is_even(zone, start, _utc(found) + _AROUND):
            break
    assert found is not None
    return found


def missed(trigger: Trigger, anchor: float, after: float, now: float) -> tuple[float | None, int]:
    """The latest tick in (after, now], and how many there are, counted up to COUNTED."""
    first = next_tick(trigger, anchor, after)
    if first > now:
        return None, 0
    if trigger.kind == "every":
        count = int((now - first) // trigger.seconds) + 1
        return first + (count - 1) * trigger.seconds, min(count, COUNTED)
    count, tick = 0, first
    while tick <= now and count < COUNTED:
        latest, count = tick, count + 1
        tick = next_tick(trigger, anchor, tick)
    if tick <= now:  # too many to walk through: near the end they are few
        for span in (3600.0, 86_400.0, 32 * 86_400.0, 367 * 86_400.0):
            tick, begin = latest, max(now - span, latest)
            while (tick := next_tick(trigger, anchor, max(begin, tick))) <= now:
                latest = tick
            if latest > begin:
                break
    return latest, count


def _walls(cron: str, start: datetime) -> Iterator[datetime]:
    """Times on the wall after `start` that fit the line, without any zone."""
    try:
        from croniter import croniter
    except ImportError as error:
        raise MissingPackageError(
            "cron lines are read by the package croniter, which is not installed: "
            "pip install 'stillroom[schedule]'"
        ) from error
    try:
        each = croniter(cron, start, ret_type=datetime, max_years_between_matches=9)
        while True:
            yield each.get_next()
    except (ValueError, KeyError, OverflowError) as error:
        never = type(error).__name__ == "CroniterBadDateError"
        raise CronError("it never comes" if never else f"it is none ({error})") from error


def _instants(wall: datetime, zone: ZoneInfo, elapsed: bool) -> Iterator[float]:
    """The instants at which a wall clock of the zone shows that time."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if _wall(first, zone) == wall:
        yield first
        if elapsed and second != first:
            yield second
    elif not elapsed:
        # In a gap fold=0 counts with the offset before it, fold=1 with the one after it; the change
        # lies between the two.
        low, high = min(first, second), max(first, second)
        before = datetime.fromtimestamp(low, zone).utcoffset()
        while high - low > 1:
            middle = (low + high) // 2
            if datetime.fromtimestamp(middle, zone).utcoffset() == before:
                low = middle
            else:
                high = middle
        yield float(int(high))


def _wall(instant: float, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(instant, zone).replace(tzinfo=None, fold=0)


def _utc(instant: float) -> datetime:
    return datetime.fromtimestamp(instant, UTC)


def _is_even(zone: ZoneInfo, first: datetime, last: datetime) -> bool:
    """Whether the zone's clock is not changed between the two, judged by their offsets."""
    return first.astimezone(zone).utcoffset() == last.astimezone(zone).utcoffset()
