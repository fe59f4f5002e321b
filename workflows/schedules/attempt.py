"""One attempt: `stillroom run` in a process of its own, watched until it ended, whoever began it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillroom.storage.process import is_dead, this_process
from stillroom.workflows.schedules.engine import Task
from stillroom.workflows.schedules.ledger import (
    DONE,
    FAILED,
    GONE,
    INTERRUPTED,
    WAITING,
    Run,
    runs,
)
from stillroom.workflows.schedules.recording import CLAIM, TAKEN, in_use
from stillroom.workflows.schedules.state import State

LOST = "lost"
"""Outcome of an attempt that was killed together with its scheduler; it is made once more."""
STILLROOM = (
    *(sys.executable, "-P", "-c"),
    "from stillroom.workflows.cli import main; main()",
)
"""The command line of this very installation, wherever PATH points."""
_WATCH_S = 0.1
_CLAIM_S = 300.0
"""A process that was begun has to say so in the ledger within this time."""
_TAIL_BYTES = 2000
_GRACE_S = 10.0


class Attempts:
    """The attempts of this scheduler."""

    def __init__(self, state: State, environment: Mapping[str, str] | None = None) -> None:
        """None is being made."""
        self.state = state
        self._environment = dict(environment or {})
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._stopping = False

    def make(self, task: Task) -> dict[str, Any]:
        """Make an attempt, or go on with the one that an earlier scheduler began; {"state", "run"}.

        While the scheduler is being stopped this never returns, so that the engine keeps the attempt
        as begun, and the next scheduler takes it up.
        """
        number, found = self._row(task)
        if found is None or found.state == WAITING:
            outcome = self._begin(task, number)
        elif found.ended is not None:
            # A kill came between the end of the run and the engine's note of it; one that was
            # interrupted was so by the end of the scheduler.
            outcome = LOST if found.state == INTERRUPTED else found.state
        else:
            outcome = self._watch(number, None)
            outcome = LOST if outcome == INTERRUPTED else outcome
        if self._stopping and outcome in (INTERRUPTED, LOST):
            threading.Event().wait()
        return {"state": outcome, "run": number}

    def _row(self, task: Task) -> tuple[int, Run | None]:
        """The attempt's row in the ledger, made now unless it is there; its run when it was there."""
        schedule, why = self.state.tick(task.schedule, task.tick)
        words = why if task.attempt == 1 else f"{why}; attempt {task.attempt}"
        with self.state.connected() as connection:
            made = connection.execute(
                "INSERT INTO runs (schedule, tick, attempt, why, flow, arguments, cwd, folder, state, "
                "asked) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (
                    *(task.schedule, task.tick, task.attempt, words, schedule.flow),
                    *(json.dumps(list(schedule.arguments)), schedule.folder, schedule.out, WAITING),
                    time.time(),
                ),
            ).rowcount
            row = connection.execute(
                "SELECT number FROM runs WHERE schedule = ? AND tick = ? AND attempt = ?",
                (task.schedule, task.tick, task.attempt),
            ).fetchone()
        number = int(row["number"])
        return number, None if made else runs(self.state, number=number)[0]

    def _begin(self, task: Task, number: int) -> str:
        schedule, _ = self.state.tick(task.schedule, task.tick)
        log = (self.state.logs / f"{number:06}-{task.schedule}.log").absolute()
        log.parent.mkdir(parents=True, exist_ok=True)
        self.state.write("UPDATE runs SET log = ? WHERE number = ?", (str(log), number))
        command = [*STILLROOM, "run", schedule.flow]
        environment = {
            **os.environ,
            **self._environment,
            CLAIM: str(number),
            "STILLROOM_STATE": str(self.state.folder.absolute()),
            "PYTHONUNBUFFERED": "1",
        }
        try:
            with self._lock, open(log, "ab", buffering=0) as printed:
                if self._stopping:
                    return LOST
                child = subprocess.Popen(
                    [*command, *schedule.arguments],
                    cwd=schedule.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C meant for the scheduler is passed on by it
                )
                self._children[number] = child
        except OSError as error:
            return self._end(number, FAILED, None, f"it could not be started: {error}")
        try:
            return self._watch(number, child)
        finally:
            self._children.pop(number, None)

    def _watch(self, number: int, child: subprocess.Popen[bytes] | None) -> str:
        """Wait for the end of a run; what the ledger then says."""
        begun = time.monotonic()
        while True:
            code = None if child is None else child.poll()
            (run,) = runs(self.state, number=number)
            if run.ended is not None:
                return run.state
            if code == TAKEN:
                child, code = None, None  # a process that an earlier scheduler started has it
            if code is not None:
                (run,) = runs(self.state, number=number)  # it may have ended between the two looks
                return run.state if run.ended is not None else self._gone(run, code)
            if child is None and not self._is_alive(run, time.monotonic() - begun):
                (run,) = runs(self.state, number=number)
                if run.ended is not None:
                    return run.state
                return self._end(number, INTERRUPTED, None, GONE)
            time.sleep(_WATCH_S)

    def _is_alive(self, run: Run, watched_s: float) -> bool:
        if run.process is None:
            return watched_s < _CLAIM_S
        if run.process.get("machine") == this_process()["machine"]:
            return not is_dead(run.process)
        # It ran on another host, or before this one was started again: its lease tells, which ends.
        return in_use(Path(run.folder))

    def _gone(self, run: Run, code: int) -> str:
        """The process ended, and the ledger was not told how."""
        if self._stopping or code == 130:
            return self._end(run.number, INTERRUPTED, code, "it was stopped")
        if code == 0:  # the ledger could not be written just then
            return self._end(run.number, DONE, code, "")
        if code < 0:
            words = f"it was killed by signal {-code} ({_signal(-code)})"
            if code == -signal.SIGKILL:
                words += "; often the kernel does that when memory runs out"
        else:
            words = f"it ended with exit code {code}"
        return self._end(run.number, FAILED, code, f"{words}\n{self._tail(run)}".strip())

    def _tail(self, run: Run) -> str:
        if run.log is None:
            return ""
        with suppress(OSError):
            return Path(run.log).read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        return ""

    def _end(self, number: int, said: str, code: int | None, error: str) -> str:
        self.state.write(
            "UPDATE runs SET state = ?, ended = ?, exit_code = ?, error = ? "
            "WHERE ended IS NULL AND number = ?",
            (said, time.time(), code, error, number),
        )
        return said

    def stop(self) -> None:
        """Ask every child for an end, as one Ctrl-C does; no further one is begun."""
        self._stopping = True
        with self._lock:
            self._signal_children(signal.SIGTERM)

    def wait(self, until: float | None = None) -> bool:
        """Wait until no child is left, or `time.monotonic()` is `until`; whether none is left."""
        while any(child.poll() is None for child in list(self._children.values())):
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(_WATCH_S)
        return True

    def end(self) -> None:
        """End every child now: asked for the second time, then killed with all it started."""
        self.stop()
        if not self.wait(time.monotonic() + _GRACE_S):
            self._signal_children(signal.SIGKILL, group=True)

    def _signal_children(self, number: signal.Signals, group: bool = False) -> None:
        for child in list(self._children.values()):
            with suppress(ProcessLookupError, PermissionError):
                if child.poll() is None:
                    os.killpg(child.pid, number) if group else child.send_signal(number)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
