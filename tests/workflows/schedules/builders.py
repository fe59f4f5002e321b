"""Schedules of a quick workflow, and a scheduler in a thread or in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.pipeline.stopping import Stop
from stillroom.workflows.schedules.ledger import Run, runs
from stillroom.workflows.schedules.schedule import Schedule, Trigger
from stillroom.workflows.schedules.serving import Scheduler
from stillroom.workflows.schedules.state import State

FLOW = """
import os
import time
from pathlib import Path
from stillroom.pipeline import Step

HERE = Path(__file__).parent

def work(run, inputs, *, seconds, fails):
    log = run.folder / "log"
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        file.write(f"begin {os.getpid()}\\n")
    for _ in range(round(seconds / 0.02)):
        run.stop.require()
        time.sleep(0.02)
    if log.read_text().count("begin") <= fails:
        raise RuntimeError("no luck")
    with open(log, "a") as file:
        file.write("end\\n")
    (run.folder / "page.html").write_text("a page")
    return {"report": "page.html", "at": time.time()}

def always(run, inputs, *, seconds, fails):
    return "it always runs"

def workflow(*, seconds: float = 0.0, fails: int = 0):
    settings = {"seconds": seconds, "fails": fails}
    return [Step("work", work, settings, files=(HERE / "rows.csv",), preview=always)]
"""


def quick_flow(folder: Path, text: str = FLOW) -> Path:
    """A workflow in a folder of its own, and its data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text("1\n")
    (folder / "quick.py").write_text(text)
    return folder / "quick.py"


def quick(folder: Path, name: str, trigger: Trigger, *arguments: str, **more: Any) -> Schedule:
    """A schedule of it; what it does lies in the folder of its name."""
    said = ("--workers", "0", "--out", f"out/{name}", *arguments)
    given = {"added": float(int(time.time())), **more}
    return Schedule(name, "quick.py", said, trigger, str(folder), **given)


@contextmanager
def served(state: State, **more: Any) -> Iterator[list[str]]:
    """A scheduler in a thread; what it says. It is stopped at the end."""
    said: list[str] = []
    stop, failed = Stop(), []
    scheduler = Scheduler(state, say=said.append, **{"poll_s": 0.05, **more})

    def serve() -> None:
        try:
            scheduler.serve(stop)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        stop.ask()
        thread.join(60)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def until(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What it returns once that is something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "nothing came of it in time"
        time.sleep(0.02)
    return value


def ended(state: State, count: int = 1, **of: Any) -> list[Run]:
    """The runs, oldest first, once so many have ended and no tick is open."""

    def found() -> list[Run]:
        if state.open_ticks():
            return []  # looked at first: what a run told is noted before its tick is closed
        every = runs(state, last=None, **of)[::-1]
        return every if sum(run.ended is not None for run in every) >= count else []

    return list(until(found))


SERVE = """
import sys
from stillroom.pipeline.stopping import stopping
from stillroom.workflows.schedules.serving import Scheduler
from stillroom.workflows.schedules.state import State
import os
with stopping() as stop:
    Scheduler(State(sys.argv[1]), poll_s=float(sys.argv[2])).serve(stop)
os._exit(0)
"""


def scheduler_process(state: State, poll_s: float = 0.05) -> subprocess.Popen[bytes]:
    """A scheduler in a process and a group of its own."""
    with open(state.folder / "scheduler.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", SERVE, str(state.folder), str(poll_s)],
            stdout=log,
            stderr=log,
            env=dict(os.environ),
            start_new_session=True,
        )
