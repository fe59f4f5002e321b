"""The scheduler: what is due is noted, given to the engine, and run; one process for a state."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom.pipeline.stopping import Stop
from stillroom.storage.errors import BusyError
from stillroom.storage.lease import Lease, active_leases, held
from stillroom.workflows.schedules.attempt import LOST, Attempts
from stillroom.workflows.schedules.engine import Engine, Next, Task, Work
from stillroom.workflows.schedules.ledger import FAILED, runs
from stillroom.workflows.schedules.looking import look
from stillroom.workflows.schedules.schedule import ScheduleError
from stillroom.workflows.schedules.state import Kept, State
from stillroom.workflows.schedules.telling import tell
from stillroom.workflows.schedules.ticks import COUNTED, missed, next_tick

POLL_S = 1.0
_SET_BACK_S = 86_400.0
"""A clock that is set back by less is waited for; by more, it was wrong before."""
_LEASE_EVERY_S = 15.0
_LONGEST_BACKOFF_S = 86_400.0


@dataclass
class Scheduler:
    """One scheduler while it serves."""

    state: State
    at_once: int = 1
    """Runs at the same time."""
    database: str = ""
    """The engine's, as a SQLAlchemy URL; SQLite in the state folder when empty."""
    poll_s: float = POLL_S
    """Seconds between looks at the clock and at what other processes changed."""
    clock: Callable[[], float] = time.time
    say: Callable[[str], None] = print
    _kept: dict[str, Kept] = field(default_factory=dict)
    _seen: tuple[int, int] = (-1, -1)
    _gave: tuple[int, int] = (-1, -1)
    _due: dict[str, tuple[tuple[Any, ...], float]] = field(default_factory=dict)
    _given: set[str] = field(default_factory=set)
    _looking: threading.Thread | None = None

    def serve(self, stop: Stop) -> None:
        """Fire what is due until an end is asked for; then let runs finish what they have in hand.

        BusyError when another scheduler serves this state, MissingPackageError without the extra
        `schedule`.
        A KeyboardInterrupt while runs finish ends them at once.
        """
        attempts = Attempts(self.state)
        work = Work(attempts.make, self._following, self._close)
        self.state.folder.mkdir(parents=True, exist_ok=True)
        url = self.database or f"sqlite:///{(self.state.folder / 'engine.sqlite').absolute()}"
        with ExitStack() as ends:
            lease = ends.enter_context(alone(self.state))
            engine = Engine(url, work, at_once=self.at_once, poll_s=self.poll_s)
            ends.callback(engine.close)
            try:
                self._resume(engine)
                self._go_on(engine, lease, stop)
                attempts.stop()
                attempts.wait()
            except BaseException:
                attempts.end()
                raise

    def _go_on(self, engine: Engine, lease: Lease, stop: Stop) -> None:
        required = time.monotonic()
        while not stop.asked:
            if time.monotonic() - required > _LEASE_EVERY_S:
                required = time.monotonic()
                lease.require()
            self.fire_due(self.clock())
            self._give(engine)
            time.sleep(self.poll_s)

    def _resume(self, engine: Engine) -> None:
        """Give the engine again what is open: what it knows is not done twice."""
        for schedule, tick, attempt in self.state.open_ticks():
            task = Task(schedule, tick, attempt)
            while engine.broken(task):
                task = Task(schedule, tick, task.attempt + 1)
            self._given.add(f"{schedule}@{tick}")
            engine.submit(task)

    def _give(self, engine: Engine) -> None:
        """Every tick that was noted and is not done; the engine takes each once."""
        if self._gave == self._seen:
            return
        self._gave = self._seen
        for schedule, tick, attempt in self.state.open_ticks():
            if (name := f"{schedule}@{tick}") not in self._given:
                engine.submit(Task(schedule, tick, attempt))
                self._given.add(name)

    def fire_due(self, now: float) -> list[str]:
        """Note every tick that is due now; the schedules' names. Nothing is run by this itself."""
        self._read()
        fired = []
        for name, kept in self._kept.items():
            if kept.paused or kept.open_tick is not None:
                continue  # a run is going on; what is due meanwhile is due after it
            kind = kept.schedule.trigger.kind
            if kind == "after":
                done = self._fire_after(kept)
            elif kind in ("cron", "every"):
                done = self._fire_timed(kept, now)
            else:
                self._look(kept, now)
                continue
            fired += [name] if done else []
        if fired:
            self._read()
        return fired

    def _read(self) -> None:
        version = self.state.version()
        if version != self._seen:
            self._seen, self._kept = version, self.state.schedules()

    def _fire_timed(self, kept: Kept, now: float) -> bool:
        schedule, mark = kept.schedule, kept.watermark
        if now < mark - _SET_BACK_S:
            self.say(f"{schedule.name}: the clock was set back by {mark - now:,.0f} s; going by it")
            self.state.looked(schedule.name, now, watermark=now)
            return False
        # With the time: a clock that is set is no reason to compute everything anew.
        key = (schedule, mark)
        if self._due.get(schedule.name, (None,))[0] != key:
            self._due[schedule.name] = (key, next_tick(schedule.trigger, schedule.added, mark))
        due = self._due[schedule.name][1]
        if due > now:
            return False
        covers = 1
        if not schedule.catch_up:
            latest, covers = missed(schedule.trigger, schedule.added, mark, now)
            assert latest is not None
            due = latest
        why = str(schedule.trigger)
        if covers > 1:
            many = f"{covers:,}" if covers < COUNTED else f"{covers:,} or more"
            why += f"; stands for {many} ticks"
        new = self.state.fire(kept, instant(due), due, why, watermark=due, covers=covers)
        if new:
            self.say(f"{schedule.name}: due {instant(due)}")
        return new

    def _fire_after(self, kept: Kept) -> bool:
        schedule = kept.schedule
        found = self.state.last_success(schedule.trigger.after, kept.watermark)
        if found is None:
            return False
        number, covers = found
        why = f"after run {number} of {schedule.trigger.after}"
        new = self.state.fire(
            kept, f"run-{number}", self.clock(), why, watermark=number, covers=covers
        )
        if new:
            self.say(f"{schedule.name}: {why}")
        return new

    def _look(self, kept: Kept, now: float) -> None:
        """Begin a look at the data, unless one is going on; they are made one after another."""
        looked = kept.looked
        waited = looked is None or not looked <= now < looked + kept.schedule.trigger.seconds
        if waited and (self._looking is None or not self._looking.is_alive()):
            self._looking = threading.Thread(target=self._looked, args=(kept,), daemon=True)
            self._looking.start()

    def _looked(self, kept: Kept) -> None:
        schedule = kept.schedule
        found = look(schedule)
        now = self.clock()
        if found.problem:
            self.state.looked(schedule.name, now, problem=found.problem)
        elif not found.cause or found.cause == kept.cause:
            # Fresh again, or what the last run was asked for and did not bring about.
            self.state.looked(schedule.name, now, problem="", cause=found.cause)
        else:
            changes = {"looked": now, "problem": "", "cause": found.cause}
            if self.state.fire(kept, instant(now), now, found.cause, **changes):
                self.say(f"{schedule.name}: {found.cause}")

    def _following(self, task: Task, outcome: dict[str, Any]) -> Next:
        again = Task(task.schedule, task.tick, task.attempt + 1)
        if outcome["state"] == LOST:
            return again, 0.0
        schedule, _ = self.state.tick(task.schedule, task.tick)
        failed = runs(self.state, schedule=task.schedule, last=None)
        count = sum(r.tick == task.tick and r.state == FAILED for r in failed)
        if outcome["state"] != FAILED or count > schedule.retries:
            return None
        return again, min(schedule.backoff_s * 2 ** (count - 1), _LONGEST_BACKOFF_S)

    def _close(self, task: Task, outcome: dict[str, Any]) -> None:
        try:
            (run,) = runs(self.state, number=outcome["run"])
            self.say(f"{task.schedule}: run {run.number} {run.state}, exit code {run.exit_code}")
            schedule, _ = self.state.tick(task.schedule, task.tick)
            told = tell(run, schedule.webhook, schedule.notify)
            if told:
                row = (json.dumps(told), run.number)
                self.state.write("UPDATE runs SET told = ? WHERE number = ?", row)
        finally:
            self.state.close_tick(task.schedule, task.tick)


@contextmanager
def alone(state: State) -> Iterator[Lease]:
    """Be the only scheduler of a state; BusyError names the other one, its host, since when."""
    place = state.folder / "leases" / "serve.json"
    with ExitStack() as ends:
        try:
            lease = ends.enter_context(held(place, "stillroom serve"))
        except BusyError as error:
            holders = [
                str(holder) for name, holder in active_leases(place.parent) if name == "serve"
            ]
            raise BusyError(
                f"{state.folder} has a scheduler already: {''.join(holders) or 'another process'}. Stop "
                "that one (SIGTERM; it lets runs finish what they have in hand), or give this one a "
                "state of its own with --state"
            ) from error
        yield lease


def clock_of(file: Path) -> Callable[[], float]:
    """A clock that goes by the instant in a file, such as 2026-12-01T02:00:00+01:00; without an offset
    it is UTC. While the file cannot be read it stands still; ScheduleError when it says no instant at
    the start."""

    def said() -> float:
        moment = datetime.fromisoformat(file.read_text().strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    try:
        now = said()
    except (OSError, ValueError) as error:
        raise ScheduleError(
            f"--clock {file}: expected a file with an instant such as 2026-12-01T02:00:00+01:00 ({error})"
        ) from error

    def clock() -> float:
        nonlocal now
        with suppress(OSError, ValueError):  # it may be written just now
            now = said()
        return now

    return clock


def serving(state: State) -> str:
    """Who serves the state, in words; empty when nobody does."""
    leases = active_leases(state.folder / "leases")
    return next((str(holder) for name, holder in leases if name == "serve"), "")


def instant(seconds: float) -> str:
    """An instant as ticks are named, in UTC.

    >>> instant(0), instant(1.5)
    ('1970-01-01T00:00:00Z', '1970-01-01T00:00:01.500Z')
    """
    when = datetime.fromtimestamp(seconds, UTC)
    how = "milliseconds" if when.microsecond else "seconds"
    return when.replace(tzinfo=None).isoformat(timespec=how) + "Z"
