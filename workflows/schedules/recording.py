"""A run writes itself into the ledger while it goes, and holds its folder alone."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.pipeline.execute import StepFinished, StepFound, StepStarted, WorkflowError
from stillroom.pipeline.runner import RunnerError
from stillroom.stages.events import CacheChosen, RowsTaught, TeachStarted, TrainStarted
from stillroom.storage.errors import BusyError, MissingPackageError, StillroomError
from stillroom.storage.lease import Holder, held
from stillroom.storage.place import Place
from stillroom.storage.process import this_process
from stillroom.workflows.flows import SettingsError
from stillroom.workflows.running import InterruptedRunError, default_folder, flow_name
from stillroom.workflows.schedules.ledger import DONE, FAILED, INTERRUPTED, RUNNING, WAITING
from stillroom.workflows.schedules.state import State
from stillroom.workflows.writers import require_meaning

CLAIM = "STILLROOM_RUN"
"""Environment variable by which a scheduler tells a run its number in the ledger."""
TAKEN = 75
"""Exit code of a scheduled run that another process has begun already (EX_TEMPFAIL of sysexits)."""
_STEP = (
    "INSERT INTO steps (step, why, fresh, seconds, folder, position, run) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET why = excluded.why, "
    "fresh = excluded.fresh, seconds = excluded.seconds"
)
_WAIT_S = 366 * 86_400.0
_SAVE_EVERY_S, _SAVE_SHARE = 1.0, 20.0
"""Rows are noted that often at least, and not so often that it takes more than a twentieth of the time."""
_ERROR_CHARACTERS = 4000


@dataclass
class Recording:
    """A run that is going on; a listener of its events."""

    state: State | None
    """None when nothing can be recorded; the run goes on all the same."""
    number: int = 0
    flow: str = ""
    """The workflow, as steps note it."""
    scheduled: str = ""
    """The schedule that asked for it; empty by hand."""
    wait_s: float = 0.0
    folder: Path = field(default_factory=Path)
    rows: int = 0
    report: str | None = None
    _waiting: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    _position: int = 0
    _open: tuple[str, str] | None = None
    _save_from: float = 0.0

    def __call__(self, event: Any) -> None:
        """Take one event; those that the ledger does not keep are ignored."""
        if isinstance(event, CacheChosen) and self.state is not None and self.flow:
            require_meaning(self.state.folder, self.flow, event)
        if isinstance(event, RowsTaught):
            self.rows += event.rows
            if (begun := time.monotonic()) >= self._save_from:
                self._write("UPDATE runs SET rows_taught = ? WHERE number = ?", self.rows)
                ended = time.monotonic()
                self._save_from = ended + min(_SAVE_SHARE * (ended - begun), _SAVE_EVERY_S)
        elif isinstance(event, StepStarted):
            self._open = (event.step, event.why)
            self._step(event.step, event.why, None, None)
        elif (found := found_words(event)) and self._open:
            # Steps that look by themselves learn why they run only once they do.
            step, why = self._open
            self._open = (step, f"{why}; {found}" if why else found)
            self._step(*self._open, None, None)
        elif isinstance(event, StepFinished):
            begun = self._open is not None and self._open[0] == event.step
            why = self._open[1] if self._open and begun else ""
            self._step(event.step, why, event.fresh, event.seconds, soon=not begun)
            self._position, self._open = self._position + 1, None
            if event.result.get("report"):
                self.report = str(self.folder / str(event.result["report"]))

    def _step(
        self, step: str, why: str, fresh: bool | None, seconds: float | None, soon: bool = False
    ) -> None:
        """Note a step; `soon`: with whatever is noted next, as each note waits for the disk."""
        values = (step, why, fresh, seconds, str(self.folder), self._position)
        if soon:
            self._waiting.append((_STEP, (*values, self.number)))
        else:
            self._write(_STEP, *values)

    def _write(self, statement: str, *values: Any) -> None:
        """One statement whose last value is the run's number, after what waits; a ledger that fails
        ends no run."""
        if self.state is None:
            return
        every = [*self._waiting, (statement, (*values, self.number))]
        self._waiting.clear()
        try:
            with self.state.connected() as connection:
                for each, given in every:
                    connection.execute(each, given)
        except Exception as error:
            _warn(error)
            self.state = None

    def holding(self, folder: Path) -> AbstractContextManager[Any]:
        """Hold the folder while the block runs; BusyError when another run holds it."""
        return holding(folder, self.scheduled, self.wait_s)

    def end(self, error: BaseException | None) -> None:
        """Note how it ended, with what its fresh steps spared."""
        code = exit_code(error)
        state = DONE if error is None else INTERRUPTED if code == 130 else FAILED
        self._write(
            "UPDATE runs SET state = ?, ended = ?, exit_code = ?, rows_taught = ?, report = ?, "
            "error = ?, saved_s = (SELECT coalesce(sum((SELECT before.seconds FROM steps AS before "
            "WHERE before.folder = now.folder AND before.step = now.step AND before.fresh = 0 "
            "AND before.run < now.run ORDER BY before.run DESC LIMIT 1)), 0) FROM steps AS now "
            "WHERE now.run = runs.number AND now.fresh = 1) WHERE number = ?",
            *(state, time.time(), code, self.rows, self.report, _said(error)),
        )


@contextmanager
def recorded(
    place: str | Path, flow: str, arguments: Sequence[str], out: Path | None, wait_s: float = 0.0
) -> Iterator[Recording]:
    """The run of the block is in the ledger of the state at `place`, also when it fails.

    A run that a scheduler began (CLAIM is set) takes the row that was made for it; when another
    process has, this one exits with TAKEN. A ledger that cannot be written is said once, and the run
    goes on without.
    """
    folder = Path(out or default_folder(flow)).absolute()
    claim = os.environ.pop(CLAIM, "")  # not for what this run starts itself
    recording = Recording(State(place), flow=flow_name(flow), folder=folder, wait_s=wait_s)
    if claim.isdecimal():
        _claim(recording, int(claim))
    else:
        _begin(recording, flow, arguments)
    try:
        yield recording
    except BaseException as error:
        recording.end(error)
        raise
    recording.end(None)


def _claim(recording: Recording, number: int) -> None:
    assert recording.state is not None
    recording.number, recording.wait_s = number, _WAIT_S
    taken = recording.state.write(
        "UPDATE runs SET state = ?, started = ?, process = ?, folder = ? WHERE state = ? AND number = ?",
        (RUNNING, time.time(), _process(), str(recording.folder), WAITING, number),
    )
    if not taken:
        print(f"run {number} was begun by another process; this one does nothing", file=sys.stderr)
        raise SystemExit(TAKEN)
    with recording.state.connected(write=False) as connection:
        row = connection.execute("SELECT schedule FROM runs WHERE number = ?", (number,))
        recording.scheduled = str(row.fetchone()[0])


def _begin(recording: Recording, flow: str, arguments: Sequence[str]) -> None:
    assert recording.state is not None
    now, folder = time.time(), str(recording.folder)
    row = (
        flow,
        json.dumps(list(arguments)),
        str(Path.cwd()),
        folder,
        RUNNING,
        now,
        now,
        _process(),
    )
    try:
        with recording.state.connected() as connection:
            done = connection.execute(
                "INSERT INTO runs (flow, arguments, cwd, folder, state, asked, started, process) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            recording.number = int(done.lastrowid or 0)
    except Exception as error:
        _warn(error)
        recording.state = None


@contextmanager
def holding(folder: Path, scheduled: str = "", wait_s: float = 0.0) -> Iterator[Any]:
    """Hold a run's folder among all processes and hosts that see it.

    A run that finds it held waits `wait_s` seconds, then raises BusyError: who holds it, where, since
    when, and what to do.
    """
    what = f"stillroom run of schedule {scheduled}" if scheduled else "stillroom run"
    place = run_lease(folder)
    with ExitStack() as ends:
        try:
            lease = ends.enter_context(held(place, what, wait=wait_s))
        except BusyError as error:
            raise BusyError(
                f"{folder} is in use: {_holder(place) or 'another run'}. Nothing was started. Wait for it "
                "to end (--wait SECONDS), stop it (Ctrl-C or SIGTERM once), or give this run a folder of "
                "its own with --out"
            ) from error
        yield lease


def run_lease(folder: Path) -> Path:
    """Where the lease of a run's folder lies."""
    return folder / "leases" / "run.json"


def _holder(place: Place) -> Holder | None:
    from stillroom.storage.files import read_json

    with suppress(OSError, StillroomError):
        return Holder(read_json(place))
    return None


def in_use(folder: Path) -> bool:
    """Whether a run holds that folder, on whichever host."""
    holder = _holder(run_lease(folder))
    return holder is not None and holder.active


def exit_code(error: BaseException | None) -> int:
    """What the command line answers to it."""
    if error is None:
        return 0
    if isinstance(error, InterruptedRunError | KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    wrong = isinstance(error, SettingsError | WorkflowError | MissingPackageError)
    return 2 if wrong else 1


def found_words(event: Any) -> str:
    """What a step said that it found to do, in words; empty for other events."""
    if isinstance(event, StepFound):
        return event.why
    if isinstance(event, TeachStarted):
        kept = f", {event.resumed:,} rows kept of a run that was cut off" if event.resumed else ""
        return f"{event.teacher}: {event.why}{kept}"
    if isinstance(event, TrainStarted) and event.students:
        return f"{event.students:,} of {event.students + event.fresh:,} students without a record"
    return ""


def _said(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, StillroomError | RunnerError | WorkflowError | InterruptedRunError):
        return str(error)[-_ERROR_CHARACTERS:]
    return "".join(traceback.format_exception(error)).strip()[-_ERROR_CHARACTERS:]


def _process() -> str:
    return json.dumps(this_process())


def _warn(error: Exception) -> None:
    print(f"stillroom: this run is not in the ledger of runs: {error}", file=sys.stderr)
