"""The engine on Postgres instead of SQLite; needs Postgres' programs, and is skipped without."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.pipeline.stopping import Stop
from stillroom.workflows.schedules.schedule import ScheduleError, Trigger
from stillroom.workflows.schedules.serving import Scheduler
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import ended, quick, quick_flow, served

pytestmark = pytest.mark.slow
YEARLY = Trigger("every", seconds=366 * 86_400.0)


@pytest.fixture
def postgres() -> Iterator[str]:
    """An empty database of a server on loopback; its URL."""
    found = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    found += [path for path in [shutil.which("initdb")] if path is not None]
    if not found:
        pytest.skip("Postgres is not installed")
    programs = Path(found[0]).parent
    # Not below pytest's own folder: every pytest that starts closes that to other users.
    folder = Path(tempfile.mkdtemp(prefix="stillroom-postgres-"))
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    data = str(folder / "data")
    call("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
    options = f"-p {port} -h 127.0.0.1 -k {folder}"
    call("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "stillroom")
        yield f"postgresql://postgres@127.0.0.1:{port}/stillroom"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_runs_on_postgres(tmp_path: Path, postgres: str) -> None:
    quick_flow(tmp_path)
    state = State(tmp_path / "state")
    added = float(int(time.time())) - YEARLY.seconds - 5
    again = {"added": added, "retries": 1, "backoff_s": 0.1}
    state.add(quick(tmp_path, "first", YEARLY, "--fails", "1", **again))
    state.add(quick(tmp_path, "second", Trigger("after", after="first")))
    with served(state, database=postgres):
        every = ended(state, 3)
    assert [(run.schedule, run.state) for run in every] == [
        *[("first", "failed"), ("first", "done"), ("second", "done")]
    ]
    assert not list(state.folder.glob("engine*"))
    assert "dbos" in sys.modules


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    scheduler = Scheduler(State(tmp_path / "s"), database="postgresql://u:secret@127.0.0.1:1/none")
    with pytest.raises(ScheduleError, match=r"postgresql://u@127\.0\.0\.1:1/none") as found:
        scheduler.serve(Stop())
    assert "secret" not in str(found.value)
