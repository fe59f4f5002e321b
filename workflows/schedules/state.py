"""State: the SQLite file that holds schedules, their ticks and every run. All writes go through here.

What must not happen twice is a key: a schedule has one row for a tick, a tick one row for an attempt,
and an attempt is claimed by one process. So a scheduler that is killed at any moment leaves a file from
which the next one goes on.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.storage.errors import FormatError, StorePermissionError, nearest
from stillroom.workflows.schedules.schedule import (
    Schedule,
    ScheduleError,
    UnknownScheduleError,
    schedule_of,
)

FILE, VERSION = "schedules.sqlite", 1
DEFAULT = "out/.stillroom"
"""Where the state lies when nothing is said."""
_BUSY_S = 30.0
_TABLES = """
CREATE TABLE schedules (
  name TEXT PRIMARY KEY, spec TEXT NOT NULL, paused INTEGER NOT NULL DEFAULT 0,
  watermark REAL NOT NULL, cause TEXT NOT NULL DEFAULT '', looked REAL, problem TEXT NOT NULL DEFAULT '');
CREATE TABLE ticks (
  schedule TEXT NOT NULL, tick TEXT NOT NULL, due REAL NOT NULL, covers INTEGER NOT NULL,
  why TEXT NOT NULL, spec TEXT NOT NULL, fired REAL NOT NULL, closed REAL, PRIMARY KEY (schedule, tick));
CREATE INDEX ticks_open ON ticks (schedule) WHERE closed IS NULL;
CREATE TABLE runs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, schedule TEXT, tick TEXT, attempt INTEGER NOT NULL DEFAULT 1,
  why TEXT NOT NULL DEFAULT '', flow TEXT NOT NULL, arguments TEXT NOT NULL, cwd TEXT NOT NULL,
  folder TEXT NOT NULL, state TEXT NOT NULL, asked REAL NOT NULL, started REAL, ended REAL,
  exit_code INTEGER, process TEXT, rows_taught INTEGER NOT NULL DEFAULT 0, saved_s REAL,
  report TEXT, error TEXT, log TEXT, told TEXT NOT NULL DEFAULT '[]', UNIQUE (schedule, tick, attempt));
CREATE INDEX runs_flow ON runs (flow);
CREATE TABLE steps (
  run INTEGER NOT NULL REFERENCES runs (number), position INTEGER NOT NULL, step TEXT NOT NULL,
  why TEXT NOT NULL, fresh INTEGER, seconds REAL, folder TEXT NOT NULL, PRIMARY KEY (run, position));
CREATE INDEX steps_folder ON steps (folder, step, fresh);
"""


@dataclass(frozen=True)
class Kept:
    """A schedule as it is kept."""

    schedule: Schedule
    paused: bool
    watermark: float
    """The last tick that was handled, in unix seconds; of `after`, the last run that was followed."""
    cause: str
    """Of `on-data` and `on-teacher`: why the last run was asked for; empty once all was fresh."""
    looked: float | None
    """When it was last looked whether something changed."""
    problem: str
    """Why that could not be found out."""
    open_tick: str | None
    """The tick that is being run, or waits for it."""


class State:
    """A folder with the file, the engine's own database, leases and logs."""

    def __init__(self, folder: str | Path) -> None:
        """Nothing is made before something is written."""
        self.folder = Path(folder)

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return self.folder / FILE

    @property
    def logs(self) -> Path:
        """What runs of the scheduler printed, a file for each."""
        return self.folder / "logs"

    @contextmanager
    def connected(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction. StorePermissionError and FormatError name the file and the way out."""
        try:
            if write:
                self.folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StorePermissionError(
                f"cannot keep schedules and runs in {self.folder} ({error}); give this user write "
                "permission, or choose another folder with --state or STILLROOM_STATE"
            ) from error
        connection.row_factory = sqlite3.Row
        try:
            self._prepare(connection)
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError):
                if "readonly" in str(error) or "unable to open" in str(error):
                    raise StorePermissionError(
                        f"cannot write {self.path} ({error}); give this user write permission, or "
                        "choose another folder with --state or STILLROOM_STATE"
                    ) from error
                raise
            raise FormatError(
                f"{self.path} is no file of schedules ({error}); move it away, and schedules begin anew"
            ) from error
        finally:
            connection.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        elif version > VERSION:
            raise FormatError(
                f"{self.path} has version {version}, this stillroom knows {VERSION}; update stillroom"
            )

    def add(self, schedule: Schedule, *, replace: bool = False) -> None:
        """Keep a schedule; its first tick is the next one. ScheduleError when the name is taken, or
        when schedules would follow each other in a circle."""
        with self.connected() as connection:
            row = connection.execute(
                "SELECT spec FROM schedules WHERE name = ?", (schedule.name,)
            ).fetchone()
            if row is not None and not replace:
                now = schedule_of(json.loads(row["spec"])).trigger
                raise ScheduleError(
                    f"there is a schedule {schedule.name!r} already ({now}); remove it, or add with "
                    "--replace"
                )
            mark = schedule.added
            if schedule.trigger.kind == "after":
                _require_no_circle(schedule, _kept(connection))
                mark = connection.execute("SELECT coalesce(max(number), 0) FROM runs").fetchone()[0]
            connection.execute(
                "INSERT INTO schedules (name, spec, watermark) VALUES (?, ?, ?) ON CONFLICT (name) DO "
                "UPDATE SET spec = excluded.spec, watermark = excluded.watermark, cause = '', "
                "looked = NULL, problem = ''",
                (schedule.name, json.dumps(schedule.to_json()), mark),
            )

    def schedules(self) -> dict[str, Kept]:
        """By name, in the order of names; none where there is no file."""
        if not self.path.exists():
            return {}
        with self.connected(write=False) as connection:
            return _kept(connection)

    def require(self, name: str) -> Kept:
        """The schedule of that name; UnknownScheduleError with the nearest."""
        kept = self.schedules()
        if name not in kept:
            raise UnknownScheduleError(
                f"no schedule {name!r} in {self.folder}; {nearest(name, kept)}"
            )
        return kept[name]

    def pause(self, name: str, paused: bool, now: float) -> None:
        """Pause it, or let it go on from now: ticks of the pause are not made up for."""
        kept = self.require(name)
        timed = kept.schedule.trigger.kind in ("cron", "every")
        with self.connected() as connection:
            mark = max(now, kept.watermark) if timed else kept.watermark
            if kept.schedule.trigger.kind == "after":
                mark = connection.execute("SELECT coalesce(max(number), 0) FROM runs").fetchone()[0]
            connection.execute(
                "UPDATE schedules SET paused = ?, watermark = ? WHERE name = ?",
                (paused, kept.watermark if paused else mark, name),
            )

    def remove(self, name: str) -> None:
        """Forget it; its runs stay in the ledger, and one that is going on ends."""
        self.require(name)
        with self.connected() as connection:
            connection.execute("DELETE FROM schedules WHERE name = ?", (name,))

    def fire(self, kept: Kept, tick: str, due: float, why: str, **changes: Any) -> bool:
        """Note a tick and how far the schedule has come, both or neither; whether it is new.

        `changes`: of watermark, cause and covers.
        """
        schedule = kept.schedule
        covers = changes.pop("covers", 1)
        with self.connected() as connection:
            spec = json.dumps(schedule.to_json())
            row = (schedule.name, tick, due, covers, why, spec, time.time())
            done = connection.execute(
                "INSERT INTO ticks (schedule, tick, due, covers, why, spec, fired) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                row,
            )
            _change(connection, schedule.name, changes)
            return done.rowcount == 1

    def looked(self, name: str, now: float, **changes: Any) -> None:
        """Note when it was looked whether something changed, and what came of it."""
        with self.connected() as connection:
            _change(connection, name, {"looked": now, **changes})

    def close_tick(self, schedule: str, tick: str) -> None:
        """Nothing more is done for this tick."""
        with self.connected() as connection:
            connection.execute(
                "UPDATE ticks SET closed = ? WHERE schedule = ? AND tick = ? AND closed IS NULL",
                (time.time(), schedule, tick),
            )

    def open_ticks(self) -> list[tuple[str, str, int]]:
        """(schedule, tick, last attempt or 1) of every tick that is not closed, oldest first."""
        if not self.path.exists():
            return []
        with self.connected(write=False) as connection:
            rows = connection.execute(
                "SELECT schedule, tick, (SELECT coalesce(max(attempt), 1) FROM runs "
                "WHERE runs.schedule = ticks.schedule AND runs.tick = ticks.tick) "
                "FROM ticks WHERE closed IS NULL ORDER BY fired, schedule"
            )
            return [tuple(row) for row in rows]

    def tick(self, schedule: str, tick: str) -> tuple[Schedule, str]:
        """The schedule as it was when the tick was noted, and why it came."""
        with self.connected(write=False) as connection:
            row = connection.execute(
                "SELECT spec, why FROM ticks WHERE schedule = ? AND tick = ?", (schedule, tick)
            ).fetchone()
        return schedule_of(json.loads(row["spec"])), str(row["why"])

    def version(self) -> tuple[int, int]:
        """Changes whenever the file does: its size and its time of change in nanoseconds."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def last_success(self, schedule: str, after: float) -> tuple[int, int] | None:
        """(number, how many) of the runs of a schedule that succeeded after that run's number."""
        with self.connected(write=False) as connection:
            row = connection.execute(
                "SELECT max(number), count(*) FROM runs WHERE schedule = ? AND number > ? "
                "AND state = 'done'",
                (schedule, after),
            ).fetchone()
        return None if row[0] is None else (int(row[0]), int(row[1]))

    def write(self, statement: str, values: Sequence[Any]) -> int:
        """One statement in a transaction of its own; how many rows it changed."""
        with self.connected() as connection:
            return connection.execute(statement, values).rowcount


def _change(connection: sqlite3.Connection, name: str, changes: Mapping[str, Any]) -> None:
    for column, value in changes.items():
        assert column in ("watermark", "cause", "looked", "problem")
        connection.execute(f"UPDATE schedules SET {column} = ? WHERE name = ?", (value, name))


def _kept(connection: sqlite3.Connection) -> dict[str, Kept]:
    rows = connection.execute(
        "SELECT *, (SELECT min(tick) FROM ticks WHERE ticks.schedule = schedules.name "
        "AND closed IS NULL) AS open_tick FROM schedules ORDER BY name"
    )
    return {
        row["name"]: Kept(
            schedule_of(json.loads(row["spec"])),
            bool(row["paused"]),
            row["watermark"],
            row["cause"],
            row["looked"],
            row["problem"],
            row["open_tick"],
        )
        for row in rows
    }


def _require_no_circle(schedule: Schedule, kept: Mapping[str, Kept]) -> None:
    other, way = schedule.trigger.after, [schedule.name]
    if other not in kept and other != schedule.name:
        raise ScheduleError(f"--after {other}: no such schedule; {nearest(other, kept)}")
    while other:
        way.append(other)
        if other == schedule.name:
            raise ScheduleError(f"schedules would follow each other for ever: {' -> '.join(way)}")
        other = kept[other].schedule.trigger.after if other in kept else ""
