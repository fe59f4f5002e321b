"""When schedules are due: cron lines against a slow reading of them, clocks put forward and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.workflows.schedules.schedule import (
    ScheduleError,
    Trigger,
    cron_trigger,
    every_trigger,
    seconds_of,
)
from stillroom.workflows.schedules.ticks import COUNTED, missed, next_tick

BERLIN = ZoneInfo("Europe/Berlin")


def ticks(line: str, start: str, count: int, zone: str = "Europe/Berlin") -> list[str]:
    """The next ticks after a time on the wall of that zone, with their offsets."""
    trigger = cron_trigger(line, zone)
    at = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone)).timestamp()
    found = []
    for _ in range(count):
        at = next_tick(trigger, 0.0, at)
        found.append(datetime.fromtimestamp(at, ZoneInfo(zone)).strftime("%d %H:%M %z"))
    return found


def test_a_time_that_the_clock_leaves_out_comes_at_the_change() -> None:
    assert ticks("30 2 * * *", "2026-03-28T00:00", 3) == [
        *("28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200")
    ]
    # Two that fall into the gap, or one that falls on its end, are one tick.
    assert ticks("0,30 2 * * *", "2026-03-29T00:00", 2) == ["29 03:00 +0200", "30 02:00 +0200"]
    assert ticks("0 2,3 * * *", "2026-03-29T00:00", 2) == ["29 03:00 +0200", "30 02:00 +0200"]


def test_a_time_that_comes_twice_is_due_once() -> None:
    assert ticks("30 2 * * *", "2026-10-25T00:00", 2) == ["25 02:30 +0200", "26 02:30 +0100"]


def test_lines_of_every_hour_go_by_elapsed_time() -> None:
    assert ticks("*/30 * * * *", "2026-10-25T01:40", 5) == [
        *("25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100"),
        "25 03:00 +0100",
    ]
    assert ticks("*/30 * * * *", "2026-03-29T01:10", 2) == ["29 01:30 +0100", "29 03:00 +0200"]


def test_a_zone_half_an_hour_off_and_one_without_changes() -> None:
    lord_howe = "Australia/Lord_Howe"  # puts its clock forward by half an hour
    assert ticks("15 2 * * *", "2026-10-03T12:00", 2, lord_howe) == [
        *("04 02:30 +1100", "05 02:15 +1100")
    ]
    assert ticks("0 2 * * *", "2026-10-24T12:00", 1, "UTC") == ["25 02:00 +0000"]


minutes = st.sampled_from(["*", "*/15", "0", "30", "5,35", "10-12"])
hours = st.sampled_from(["*", "*/2", "2", "1-3", "2,14"])
days = st.sampled_from(["*", "29", "25", "1"])
near_changes = st.sampled_from(
    [datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC)]
)


@settings(max_examples=40, deadline=None)
@given(minutes, hours, days, near_changes, st.integers(0, 60 * 40))
def test_ticks_are_a_chain_that_does_not_hang_on_where_it_is_entered(
    minute: str, hour: str, day: str, begin: datetime, offset: int
) -> None:
    """Ticks rise, none is skipped by asking from between, and each fits the line on the wall clock
    unless it is the end of a gap."""
    trigger = cron_trigger(f"{minute} {hour} {day} * *", "Europe/Berlin")
    start = (begin + timedelta(minutes=offset)).timestamp()
    first = next_tick(trigger, 0.0, start)
    second = next_tick(trigger, 0.0, first)
    assert start < first < second
    for between in (start + (first - start) / 2, first - 1):
        assert next_tick(trigger, 0.0, between) == first
    assert next_tick(trigger, 0.0, first + (second - first) / 2) == second
    wall = datetime.fromtimestamp(first, BERLIN)
    gap = wall.utcoffset() != datetime.fromtimestamp(first - 1, BERLIN).utcoffset()
    assert gap or hour in ("*", "*/2", "1-3") or str(wall.hour) in hour.split(",")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 10**9), st.floats(0, 10**9), st.floats(0, 10**6))
def test_an_interval_counts_from_its_anchor(
    every: int, anchor: int, after: float, passed: float
) -> None:
    trigger = Trigger("every", seconds=float(every))
    tick = next_tick(trigger, float(anchor), after)
    assert tick > after
    assert (tick - anchor) % every == 0
    assert tick - every <= after or tick == anchor
    latest, count = missed(trigger, float(anchor), after, after + passed)
    walked: list[float] = []
    step = tick
    while step <= after + passed and len(walked) < 50:
        walked.append(step)
        step += every
    if len(walked) < 50:
        assert (latest, count) == ((walked[-1], len(walked)) if walked else (None, 0))
    else:
        assert latest is not None
        assert latest <= after + passed < latest + every


def test_a_long_time_without_a_scheduler_is_one_tick() -> None:
    line = cron_trigger("* * * * *", "Europe/Berlin")
    begin = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
    now = begin + 400 * 86_400 + 30
    assert missed(line, 0.0, begin, now) == (now - 30, COUNTED)
    yearly = cron_trigger("0 0 29 2 *", "UTC")
    leap = datetime(2028, 2, 29, tzinfo=UTC).timestamp()
    assert missed(yearly, 0.0, begin, leap + 5) == (leap, 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "expected five fields"),
        ("0 2 * *", "found 4"),
        ("0 2 * * * *", "found 6"),
        ("61 2 * * *", "out of range"),
        ("0 0 31 2 *", "never comes"),
        ("0 2 * * mon-foo", "not acceptable"),
        ("*/0 * * * *", "not acceptable"),
        ("@often", "@daily"),
        ("0 2 ? * $(x)", r"'\?' is no day of the month"),
    ],
)
def test_a_cron_line_that_is_none_is_refused_with_examples(line: str, said: str) -> None:
    with pytest.raises(ScheduleError, match=f"(?s){said}.*every night at two"):
        cron_trigger(line, "UTC")


def test_a_zone_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(ScheduleError, match="did you mean 'Europe/Berlin'"):
        cron_trigger("@daily", "Europe/Berlim")
    with pytest.raises(ScheduleError, match="unknown"):
        cron_trigger("@daily", "../../etc/passwd")


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0s", "0.5s", "400d", "5 parsecs", "1m30"])
def test_a_distance_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match="--every"):
        every_trigger(text)


def test_distances() -> None:
    assert [seconds_of(t, "x") for t in ("90s", "1h30m", "1d", "1.5h")] == [90, 5400, 86_400, 5400]
