"""The engine under the scheduler: DBOS, of which nothing is known outside this module.

It keeps what is to be done in a database of its own (SQLite in the state folder, or Postgres), does it
once for each name, goes on after a kill with what was begun, and waits durably before a retry. When
something is due, and what a run is, are none of its business.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from stillroom.storage.errors import MissingPackageError
from stillroom.workflows.schedules.schedule import ScheduleError

VERSION = "1"
"""Of the work below: a change of its steps needs another one, and pending work of the old is lost."""
_QUEUE = "runs"
_NAME = "stillroom"
_GOING = ("SUCCESS", "PENDING", "ENQUEUED", "DELAYED")


@dataclass(frozen=True)
class Task:
    """One attempt at one tick of a schedule."""

    schedule: str
    tick: str
    attempt: int

    @property
    def id(self) -> str:
        """A name that it never shares."""
        return f"{self.schedule}@{self.tick}#{self.attempt}"


Next = tuple[Task, float] | None
"""What follows an attempt: another one after so many seconds, or nothing."""


@dataclass(frozen=True)
class Work:
    """What the engine calls; each may be called again for the same task when a process was killed."""

    attempt: Callable[[Task], dict[str, Any]]
    """Does it; what came of it, as plain JSON."""
    following: Callable[[Task, dict[str, Any]], Next]
    """Decides what follows."""
    close: Callable[[Task, dict[str, Any]], None]
    """Tells people, once nothing follows."""


class Engine:
    """The engine of this process; there is one at a time."""

    _work: ClassVar[Work | None] = None

    def __init__(self, database: str, work: Work, *, at_once: int, poll_s: float = 1.0) -> None:
        """Start it, and take up what an earlier process left. `database`: a SQLAlchemy URL.

        MissingPackageError without DBOS; ScheduleError when the database cannot be used.
        """
        try:
            import dbos
        except ImportError as error:
            raise MissingPackageError(
                "the scheduler is built on the package dbos, which is not installed: "
                "pip install 'stillroom[schedule]'"
            ) from error
        logging.getLogger("dbos").setLevel(logging.ERROR)
        Engine._work, self._dbos = work, dbos
        config: Any = {
            "name": _NAME,
            "system_database_url": database,
            "application_version": VERSION,  # the default hashes code: an upgrade would strand work
            "executor_id": _NAME,  # one scheduler at a time: it recovers its predecessor's work
            "serializer": _Json(),
            "log_level": "ERROR",
            "scheduler_polling_interval_sec": 3600.0,  # its own schedules are not used
            "max_executor_threads": at_once + 4,
        }
        dbos.DBOS(config=config)
        self._run = _workflow(dbos)
        try:
            dbos.DBOS.launch()
            dbos.DBOS.register_queue(
                _QUEUE,
                worker_concurrency=at_once,
                polling_interval_sec=poll_s,
                on_conflict="always_update",
            )
        except Exception as error:
            dbos.DBOS.destroy(destroy_registry=True)
            raise ScheduleError(
                f"the engine cannot use its database {_public(database)}: {_last_line(error)}. Give "
                "another one with --database, or none for SQLite in the state folder"
            ) from error

    def submit(self, task: Task, delay_s: float = 0.0) -> None:
        """Have it done; once, however often it is submitted."""
        _submit(self._dbos, self._run, task, delay_s)

    def broken(self, task: Task) -> bool:
        """Whether the engine gave it up: what it called raised, which it never should."""
        found = self._dbos.DBOS.get_workflow_status(task.id)
        return found is not None and found.status not in _GOING

    def close(self) -> None:
        """Stop; what is not done is taken up by the next one."""
        self._dbos.DBOS.destroy(destroy_registry=True)


def _submit(dbos: Any, run: Any, task: Task, delay_s: float) -> None:
    delay = delay_s if delay_s > 0 else None
    with dbos.SetWorkflowID(task.id), dbos.SetEnqueueOptions(delay_seconds=delay):
        dbos.DBOS.enqueue_workflow(_QUEUE, run, task.schedule, task.tick, task.attempt)


def _workflow(dbos: Any) -> Any:
    """The durable function: attempt, then another attempt or the end. Its steps are done once each,
    but for one that a kill cut off, which is done again."""

    def work() -> Work:
        assert Engine._work is not None
        return Engine._work

    def attempt(schedule: str, tick: str, number: int) -> dict[str, Any]:
        return work().attempt(Task(schedule, tick, number))

    def following(schedule: str, tick: str, number: int, outcome: dict[str, Any]) -> float | None:
        found = work().following(Task(schedule, tick, number), outcome)
        return None if found is None else found[1]

    def close(schedule: str, tick: str, number: int, outcome: dict[str, Any]) -> None:
        work().close(Task(schedule, tick, number), outcome)

    step = dbos.DBOS.step
    attempt_once = step(name="attempt")(attempt)
    following_once = step(name="following")(following)
    close_once = step(name="close")(close)

    def run(schedule: str, tick: str, number: int) -> None:
        outcome = attempt_once(schedule, tick, number)
        delay = following_once(schedule, tick, number, outcome)
        if delay is None:
            close_once(schedule, tick, number, outcome)
        else:
            _submit(dbos, durable, Task(schedule, tick, number + 1), delay)

    durable = dbos.DBOS.workflow(name="run", max_recovery_attempts=None)(run)
    return durable


class _Json:
    """JSON in the engine's database; its default is pickle, and nothing stored is ever unpickled."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=repr)

    def deserialize(self, serialized_data: str) -> Any:
        return json.loads(serialized_data)

    def name(self) -> str:
        return "json"


def _public(database: str) -> str:
    """The URL without its password."""
    head, at, tail = database.rpartition("@")
    scheme, slashes, user = head.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}@{tail}" if at else database


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
