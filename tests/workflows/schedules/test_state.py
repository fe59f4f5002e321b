"""What is kept of schedules: names, circles, pauses, ticks that are noted once, damaged files."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stillroom.storage.errors import BusyError, FormatError, StorePermissionError
from stillroom.workflows.schedules.ledger import coming, ticks_ahead
from stillroom.workflows.schedules.schedule import (
    ScheduleError,
    Trigger,
    UnknownScheduleError,
    schedule_of,
)
from stillroom.workflows.schedules.serving import Scheduler, alone, instant, serving
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import quick

NIGHT = Trigger("cron", "0 2 * * *", "UTC")
DAY = 86_400.0
NOON = 20_000 * DAY + DAY / 2
"""Some noon, in UTC."""


def scheduler(state: State) -> Scheduler:
    return Scheduler(state, say=lambda text: None)


def fired(state: State) -> list[tuple[str, int]]:
    """(tick, what it stands for) of every tick so far, closed, so that the next one may come."""
    with state.connected() as connection:
        found = connection.execute("SELECT tick, covers FROM ticks ORDER BY fired, tick").fetchall()
        connection.execute("UPDATE ticks SET closed = 1")
    return [tuple(row) for row in found]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


def test_what_is_kept_is_what_was_added(state: State, tmp_path: Path) -> None:
    schedule = quick(
        tmp_path, "a", NIGHT, "--seconds", "2", catch_up=True, retries=3, webhook="http://x"
    )
    state.add(schedule)
    assert state.require("a").schedule == schedule
    assert schedule_of({**schedule.to_json(), "of_a_later_version": 1}) == schedule
    assert schedule.out == str(tmp_path / "out" / "a")


def test_names_are_taken_once_and_circles_refused(state: State, tmp_path: Path) -> None:
    state.add(quick(tmp_path, "a", NIGHT))
    state.add(quick(tmp_path, "b", Trigger("after", after="a")))
    with pytest.raises(ScheduleError, match=r"already \(cron 0 2 \* \* \* \(UTC\)\).*--replace"):
        state.add(quick(tmp_path, "a", NIGHT))
    with pytest.raises(ScheduleError, match="for ever: a -> b -> a"):
        state.add(quick(tmp_path, "a", Trigger("after", after="b")), replace=True)
    with pytest.raises(ScheduleError, match="for ever: c -> c"):
        state.add(quick(tmp_path, "c", Trigger("after", after="c")))
    with pytest.raises(ScheduleError, match="no such schedule; known: a, b"):
        state.add(quick(tmp_path, "c", Trigger("after", after="nightly")))
    with pytest.raises(UnknownScheduleError, match="known: a, b"):
        state.remove("nightly")
    state.remove("a")
    assert list(state.schedules()) == ["b"]


def test_missed_ticks_are_one_or_each(state: State, tmp_path: Path) -> None:
    state.add(quick(tmp_path, "one", NIGHT, added=NOON))
    state.add(quick(tmp_path, "each", NIGHT, added=NOON, catch_up=True))
    there = scheduler(state)
    assert there.fire_due(NOON + 60) == []
    later = NOON + 3 * DAY
    assert there.fire_due(later) == ["each", "one"]
    nights = [instant(NOON - DAY / 2 + day * DAY + 7200) for day in (1, 2, 3)]
    assert sorted(fired(state)) == sorted([(nights[0], 1), (nights[2], 3)])
    assert there.fire_due(later) == ["each"]  # the next one waits for the end of the one before
    assert there.fire_due(later) == []
    fired(state)
    assert there.fire_due(later) == ["each"]
    fired(state)
    assert there.fire_due(later) == []
    assert {tick for tick, _ in fired(state)} == set(nights)


def test_a_scheduler_that_begins_anew_knows_what_was_noted(state: State, tmp_path: Path) -> None:
    state.add(quick(tmp_path, "a", NIGHT, added=NOON))
    assert scheduler(state).fire_due(NOON + DAY) == ["a"]
    assert scheduler(state).fire_due(NOON + DAY) == []
    (kept,) = state.schedules().values()
    assert kept.open_tick == fired(state)[0][0]
    assert scheduler(state).fire_due(NOON + DAY) == []


def test_a_clock_that_is_set_back_repeats_no_tick(state: State, tmp_path: Path) -> None:
    state.add(quick(tmp_path, "hourly", Trigger("every", seconds=3600.0), added=NOON))
    there, found = scheduler(state), []
    hours = [1, 2, 3, 1.5, 2.5, 3.5, 4, 3.2, 5]  # set back twice
    for hour in hours:
        there.fire_due(NOON + hour * 3600)
        found = fired(state)
    assert [tick for tick, _ in found] == [instant(NOON + hour * 3600) for hour in (1, 2, 3, 4, 5)]


def test_a_clock_that_was_wrong_by_years_stops_nothing(state: State, tmp_path: Path) -> None:
    state.add(quick(tmp_path, "nightly", NIGHT, added=NOON))
    there = scheduler(state)
    assert there.fire_due(NOON + 900 * DAY) == ["nightly"]
    fired(state)
    assert there.fire_due(NOON + 60) == []  # right again: it goes by the clock from here
    assert there.fire_due(NOON + DAY) == ["nightly"]
    assert len(set(fired(state))) == 2
    assert there.fire_due(NOON + 900 * DAY) == []  # that night again: it has its row
    assert len(fired(state)) == 2


def test_a_pause_is_not_made_up_for(state: State, tmp_path: Path) -> None:
    state.add(quick(tmp_path, "a", NIGHT, added=NOON, catch_up=True))
    state.pause("a", True, NOON + 1)
    there = scheduler(state)
    assert there.fire_due(NOON + 5 * DAY) == []
    assert ticks_ahead(state, "a", NOON, 2) == []
    state.pause("a", False, NOON + 5 * DAY)
    assert there.fire_due(NOON + 5 * DAY) == []
    assert there.fire_due(NOON + 6 * DAY) == ["a"]
    assert len(fired(state)) == 1


def test_what_comes_next(state: State, tmp_path: Path) -> None:
    assert coming(state, NOON) == []
    state.add(quick(tmp_path, "a", NIGHT, added=NOON))
    state.add(quick(tmp_path, "b", Trigger("after", after="a"), added=NOON))
    a, b = coming(state, NOON)
    assert (a.next, a.overdue, b.next) == (NOON + DAY / 2 + 7200, False, None)
    assert coming(state, NOON + 5 * DAY)[0].overdue
    assert ticks_ahead(state, "a", NOON, 2) == [NOON + DAY / 2 + 7200, NOON + 1.5 * DAY + 7200]


def test_one_scheduler_serves(state: State) -> None:
    assert serving(state) == ""
    with alone(state):
        assert "stillroom serve by process" in serving(state)
        with (
            pytest.raises(
                BusyError, match=r"has a scheduler already: .* process \d+ on \S+ since \d"
            ),
            alone(state),
        ):
            pass
    assert serving(state) == ""


def test_many_at_once_make_one_file(state: State, tmp_path: Path) -> None:
    schedules = [quick(tmp_path, f"s{number}", NIGHT) for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(state.add, schedules))
    assert len(state.schedules()) == 12


def test_a_file_that_is_none_is_named(state: State, tmp_path: Path) -> None:
    state.folder.mkdir()
    state.path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(
        FormatError, match=r"schedules\.sqlite is no file of schedules.*move it away"
    ):
        state.schedules()
    state.path.unlink()
    with sqlite3.connect(state.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FormatError, match="version 99, this stillroom knows 1; update"):
        state.schedules()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorePermissionError, match="--state or STILLROOM_STATE"):
        State(tmp_path / "file").add(quick(tmp_path, "a", NIGHT))
