"""Ctrl-C and SIGTERM: once finishes the shard in hand, twice stops at once; a rerun goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.json
import pytest

from stillroom.storage import Cache, Reader
from stillroom.workflows.running import Running, run_workflow
from tests.stages.builders import tree

ROWS, SHARD_ROWS = 60, 6
FLOW = f"""
import os
import time
from pathlib import Path
import numpy as np
from stillroom.pipeline import Step
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache

HERE = Path(__file__).parent

def slow(number):
    time.sleep(0.1 if (HERE / "pause").exists() else 0)
    with open(HERE / "shown", "a") as log:
        log.writelines(f"{{n}}\\n" for n in number.tolist())
    return {{"half": number / 2}}

def run_teach(run, inputs):
    rows = ArrayRows(range({ROWS}), number=np.arange({ROWS}, dtype="f4"))
    teacher = FunctionTeacher("slow", slow, ("number",), ("half",))
    snapshot = teach(Cache.at(run.folder / "c"), rows, teacher, runner=run.runner, batch_size=2,
                     shard_rows={SHARD_ROWS}, band=float("inf"), listen=run.listen)
    return {{"snapshot": snapshot.number}}

def after(run, inputs):
    (HERE / "after").touch()
    return {{}}

def workflow():
    first = Step("teach", run_teach)
    return [Step("after", after, needs=(first,))]
"""


class Flow:
    """A workflow whose teacher dawdles while a file is there, run as a user does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "slow_flow.py").write_text(FLOW)

    def command(self, *more: str) -> list[str]:
        stillroom = str(Path(sys.executable).with_name("stillroom"))
        return [stillroom, "run", "slow_flow.py", "--out", "out", *more]

    def finish(self, **more: Any) -> None:
        """Run it to the end, in this process."""
        (self.folder / "pause").unlink(missing_ok=True)
        how = Running(self.folder / "out", workers=0, **more)
        run_workflow(str(self.folder / "slow_flow.py"), [], how)

    @contextmanager
    def started(self, shards: int, *more: str) -> Iterator[subprocess.Popen[str]]:
        """Run in a process group of its own, as a shell does, until some shards are stored."""
        (self.folder / "pause").touch()
        process = subprocess.Popen(
            self.command(*more),
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 100
            while len(self.receipts) < shards:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.01)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @property
    def receipts(self) -> list[Path]:
        return sorted(self.folder.glob("out/c/segments/*/receipts/[0-9]*.json"))

    @property
    def shown(self) -> list[float]:
        """Rows that the teacher was shown, each as often as it was."""
        return sorted(map(float, (self.folder / "shown").read_text().split()))

    def must_be_as_if_never_stopped(self, tmp_path: Path) -> None:
        quiet = tmp_path / "quiet"
        quiet.mkdir()
        Flow(quiet).finish()
        assert tree(self.folder / "out" / "c") == tree(quiet / "out" / "c")
        found = Reader(Cache(self.folder / "out" / "c").snapshot(), ["half"]).gather(range(ROWS))
        np.testing.assert_array_equal(found["half"], np.arange(ROWS, dtype="f4") / 2)


@pytest.fixture
def flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    (tmp_path / "flow").mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))  # a workflow's folder is put on it
    return Flow(tmp_path / "flow")


def ended(process: subprocess.Popen[str]) -> str:
    """Its standard error, once it ended as an interrupted run does."""
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said


def must_tell_all(log: Path) -> None:
    """Lines of two runs that Arrow reads: every row once, in order of time."""
    found = pyarrow.json.read_json(log).to_pylist()
    assert sum(line["rows"] for line in found if line["event"] == "RowsTaught") == ROWS
    assert [line["event"] for line in found].count("TeachStarted") == 2
    assert found[-1]["event"] == "StepFinished"
    times = [line["at"] for line in found]
    assert times == sorted(times)
    assert time.time() - 600 < times[0] <= times[-1] <= time.time()


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        pytest.param(signal.SIGINT, "0", id="ctrl-c"),
        pytest.param(signal.SIGTERM, "0", id="sigterm", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "2", id="ctrl-c-ray", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "2", id="sigterm-ray", marks=pytest.mark.slow),
    ],
)
def test_once_finishes_the_shards_in_hand_and_no_row_is_computed_twice(
    flow: Flow,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    workers: str,
    number: signal.Signals,
) -> None:
    log = flow.folder / "logs" / "run.jsonl"
    with flow.started(2, "--workers", workers, "--events", str(log)) as process:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: Ray's processes hear it too
        else:
            process.send_signal(number)
        before = len(flow.receipts)
        said = ended(process)
    stored = len(flow.receipts)
    assert before <= stored <= before + max(int(workers), 1)
    assert "finishing what is in hand" in said
    assert f"{stored * SHARD_ROWS} of {ROWS} rows of slow are stored" in said
    assert "Run the same command again to go on" in said
    assert len(flow.shown) == stored * SHARD_ROWS  # none was begun that was not stored
    assert not (flow.folder / "after").exists()
    assert Cache(flow.folder / "out" / "c").snapshots() == []
    flow.finish(events=log)
    assert f"{stored * SHARD_ROWS} rows kept" in capsys.readouterr().out
    assert flow.shown == [float(n) for n in range(ROWS)]
    assert (flow.folder / "after").exists()
    flow.must_be_as_if_never_stopped(tmp_path)
    must_tell_all(log)


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_twice_stops_at_once_and_keeps_what_was_finished(
    flow: Flow, tmp_path: Path, workers: str
) -> None:
    with flow.started(1, "--workers", workers) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        for line in process.stderr:
            if "finishing" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        said = ended(process)
    assert re.search(r"interrupted: at least \d+ of 60 rows of slow are stored", said)
    time.sleep(0.5 if workers != "0" else 0)
    assert Cache(flow.folder / "out" / "c").snapshots() == []
    kept = {path: path.stat().st_mtime_ns for path in flow.receipts}
    assert kept
    flow.finish()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    flow.must_be_as_if_never_stopped(tmp_path)
