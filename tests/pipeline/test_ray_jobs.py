"""`ray job submit`: the same workflow file on a running cluster, its exit code is the job's status."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stillroom.storage import Cache
from tests.crash.cluster_nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLOW = """
from pathlib import Path
import numpy as np
import beside
from stillroom.pipeline import Step
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache

def run_teach(run, inputs, rows):
    data = ArrayRows(range(rows), number=np.arange(rows, dtype="f4"))
    teacher = FunctionTeacher("half", beside.half, ("number",), ("half",))
    snapshot = teach(Cache.at(run.folder / "c"), data, teacher, runner=run.runner, shard_rows=10)
    return {"snapshot": snapshot.number}

def workflow(*, rows: int = 60):
    return [Step("teach", run_teach, settings={"rows": rows})]
"""
BESIDE = "def half(number):\n    return {'half': number / 2}\n"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A cluster with a dashboard, which is what jobs are submitted to."""
    pytest.importorskip("aiohttp_cors", reason="jobs need ray[default]")
    pytest.importorskip("opencensus", reason="jobs need ray[default]")
    from ray.job_submission import JobSubmissionClient

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nodes = Nodes(2)
    nodes.start(include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=port)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                yield JobSubmissionClient(f"http://127.0.0.1:{port}")
                break
            except ConnectionError:
                assert time.monotonic() < until, "the dashboard does not answer"
                time.sleep(1)
    finally:
        nodes.stop()


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    """A workflow and a module beside it."""
    folder = tmp_path / "flow"
    folder.mkdir()
    (folder / "flow.py").write_text(FLOW)
    (folder / "beside.py").write_text(BESIDE)
    return folder


def ended(client: Any, flow: Path, *arguments: str) -> tuple[str, str]:
    """(status, log) of a job that is submitted with the workflow's folder as its working_dir."""
    stillroom = Path(sys.executable).with_name("stillroom")
    entrypoint = " ".join([str(stillroom), "run", "flow.py", "--address", "auto", *arguments])
    job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(flow)})
    until = time.monotonic() + 300
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < until, client.get_job_logs(job)
        time.sleep(0.5)
    return client.get_job_status(job).value, client.get_job_logs(job)


def test_a_job_teaches_on_the_cluster_and_a_second_one_has_nothing_to_do(
    client: Any, flow: Path, tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path / "out"))
    status, log = ended(client, flow, *out)
    assert status == "SUCCEEDED", log
    assert Cache(tmp_path / "out" / "c").snapshot().rows == 60
    status, log = ended(client, flow, *out)
    assert status == "SUCCEEDED", log
    assert "no teacher was loaded" in log


def test_a_run_that_fails_is_a_job_that_failed(client: Any, flow: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    status, log = ended(client, flow, *out, "--rows", "0")
    assert status == "FAILED"
    assert "has no rows" in log
    status, log = ended(client, flow, *out, "--resource", "a100=1")
    assert status == "FAILED"
    assert "a100 is missing" in log
