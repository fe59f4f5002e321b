"""A scheduler with real runs: by the clock, one after another, again after failing; what it tells."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from stillroom.storage.errors import BusyError
from stillroom.workflows.schedules.ledger import Run, printed, run_of, runs
from stillroom.workflows.schedules.schedule import Trigger
from stillroom.workflows.schedules.serving import alone
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import ended, quick, quick_flow, served, until

YEARLY = Trigger("every", seconds=366 * 86_400.0)
"""Due once, when it was added a little longer ago."""
LONG_AGO = float(int(time.time())) - YEARLY.seconds - 5
BROKEN = "import no_such_package_of_anybody\n\ndef workflow():\n    return []\n"


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A web server of the team's chat: its URL, and what it was told. It is busy the first time."""
    heard: list[dict[str, object]] = []
    codes = iter([503])

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            code = next(codes, 200)
            if code == 200:
                heard.append(json.loads(body))
            self.send_response(code)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", heard
    server.shutdown()
    server.server_close()


def test_a_night_of_schedules(tmp_path: Path, hook: tuple[str, list[dict[str, object]]]) -> None:
    """One scheduler: a run, one after it, one that fails once, one that cannot be imported."""
    url, heard = hook
    quick_flow(tmp_path)
    quick_flow(tmp_path / "broken", BROKEN)
    state = State(tmp_path / "state")
    told = tmp_path / "told.json"
    state.add(
        quick(
            tmp_path, "first", YEARLY, added=LONG_AGO, notify=f"cat > {told}; echo no >&2; exit 3"
        )
    )
    state.add(quick(tmp_path, "second", Trigger("after", after="first")))
    again = {"retries": 2, "backoff_s": 0.1, "webhook": url}
    state.add(quick(tmp_path, "again", YEARLY, "--fails", "1", added=LONG_AGO, **again))
    state.add(quick(tmp_path / "broken", "broken", YEARLY, added=LONG_AGO))
    with served(state, at_once=4):
        every = ended(state, 5)
        with pytest.raises(BusyError, match="has a scheduler already"), alone(state):
            pass
    by = {(run.schedule, run.attempt): run for run in every}
    assert len(by) == len(every) == 5
    assert {name: run.state for name, run in by.items()} == {
        ("first", 1): "done",
        ("second", 1): "done",
        ("again", 1): "failed",
        ("again", 2): "done",
        ("broken", 1): "failed",
    }
    must_tell(by["first", 1], told, state)
    assert by["second", 1].why == f"after run {by['first', 1].number} of first"
    failed = by["again", 1]
    assert failed.exit_code == 1
    assert (failed.error or "").endswith("RuntimeError: no luck")
    assert (tmp_path / "out" / "again" / "log").read_text().count("end") == 1
    assert [(each["schedule"], each["attempt"], each["state"]) for each in heard] == [
        ("again", 2, "done")
    ]
    assert by["again", 2].told == ("webhook: sent (200)",)
    broken = by["broken", 1]
    assert "ModuleNotFoundError: No module named 'no_such_package_of_anybody'" in (
        broken.error or ""
    )
    assert "quick.py" in printed(broken).decode()
    assert broken.exit_code == 2
    assert "broken" in state.schedules()


def must_tell(run: Run, told: Path, state: State) -> None:
    """Of a run that went well: its command got its JSON, and the ledger has all of it."""
    assert run.told == ("command: exit code 3: no",)
    said = json.loads(told.read_text())
    assert (said["number"], said["state"], said["exit_code"]) == (run.number, "done", 0)
    (step,) = run.steps
    assert (step.step, step.fresh, step.why) == ("work", False, "it never ran here")
    assert run.report is not None
    assert Path(run.report).read_text() == "a page"
    assert b"work: done in" in printed(run)
    assert run_of(state, "first").number == run_of(state, str(run.number)).number == run.number
    assert [r.schedule for r in runs(state, schedule="first")] == ["first"]
    assert run.why == "every 366d"


@pytest.mark.slow
def test_data_that_changed_is_found_and_run_once(tmp_path: Path) -> None:
    flow = quick_flow(tmp_path, "from pathlib import Path\nfrom stillroom.pipeline import Step\n"
        "ROWS = Path(__file__).parent / 'rows.csv'\n"
        "def work(run, inputs):\n    return {'size': ROWS.stat().st_size}\n"
        "def workflow():\n    return [Step('work', work, files=(ROWS,))]\n")  # fmt: skip
    state = State(tmp_path / "state")
    state.add(quick(tmp_path, "data", Trigger("on-data", seconds=1.0)))
    state.add(quick(tmp_path, "teacher", Trigger("on-teacher", seconds=1.0), "--out=out/data"))
    with served(state, at_once=2):
        first = ended(state, 1)
        state.pause("teacher", True, 0.0)  # it may have seen that nothing ran there yet
        count = len(ended(state, 1))
        until(lambda: state.require("data").cause == "")  # a look saw that all was fresh
        (flow.parent / "rows.csv").write_text("1\n2\n")
        every = ended(state, count + 1, schedule=None)
        (tmp_path / "out" / "quiet").touch()
        state.pause("data", True, 0.0)
    assert first[0].why.endswith("work: it never ran here")
    assert "rows.csv" in every[-1].why
    assert every[-1].schedule == "data"
    assert [step.fresh for step in every[-1].steps] == [False]
