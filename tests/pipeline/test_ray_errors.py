"""What goes wrong around a Ray cluster is named, quickly, with the way out."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillroom.pipeline import RayRunner, RunnerError
from stillroom.storage.care.verifying import verify
from tests.crash.cluster_nodes import Nodes
from tests.crash.cluster_teaching import LOG, PACE, SHARDS, teach_here
from tests.crash.life import content_of

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head and one node."""
    nodes = Nodes(1)
    nodes.start()
    nodes.cluster.wait_for_nodes()
    yield nodes
    nodes.stop()


def one() -> Callable[[int], int]:
    return abs


MISMATCHED = """
import json, sys
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._raylet import GcsClient
from stillroom.pipeline import RayRunner, RunnerError

table = GcsClient(address=sys.argv[1])
said = json.loads(table.internal_kv_get(CLUSTER_METADATA_KEY, b"cluster"))
said |= {"ray_version": "2.41.0", "python_version": "3.9.7"}
table.internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(said).encode(), True, b"cluster")
try:
    list(RayRunner(address=sys.argv[1]).map(lambda: abs, [1]))
except RunnerError as error:
    print(error)
"""


def test_a_cluster_of_other_versions_is_an_error_that_names_both(nodes: Nodes) -> None:
    """What the cluster says of its versions is changed; everything else is real."""
    import ray

    # Not in this process: Ray ends one whose connection failed when the cluster goes.
    command = [sys.executable, "-c", MISMATCHED, nodes.address]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert f"the cluster at {nodes.address} runs Ray 2.41.0 and Python 3.9.7" in said
    assert f"this process Ray {ray.__version__} and Python {sys.version.split()[0]}" in said
    assert "ray job submit" in said


def test_a_package_that_a_node_lacks_is_named_with_the_node_and_can_be_shipped(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "only_here"
    package.mkdir()
    (package / "__init__.py").write_text("def build():\n    return abs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    build = importlib.import_module("only_here").build
    node = rf"a worker on {socket.gethostname()} \([\d.]+\) has no module 'only_here'"
    plain = RayRunner(address=nodes.address, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    with pytest.raises(RunnerError, match=node + r".*py_modules"):
        list(plain.map(build, [1]))

    def inside() -> Callable[[int], int]:
        import absent_package  # type: ignore[import-not-found]  # noqa: F401

        return abs

    with pytest.raises(RunnerError, match=r"has no module 'absent_package'.*'pip'"):
        list(plain.map(inside, [1]))
    shipped = RayRunner(address=nodes.address, runtime_env={"py_modules": [str(package)]})
    assert list(shipped.map(build, [-3])) == [3]


def test_what_listens_but_is_no_ray_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check = (
            "from stillroom.pipeline import RayRunner, RunnerError\n"
            f"try:\n    list(RayRunner(address={address!r}).map(lambda: str, [1]))\n"
            f"except RunnerError as error:\n    assert {address!r} in str(error), error\n"
            "else:\n    raise SystemExit('no error')\n"
        )
        subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


EATING = """
import os, sys, time
known = dict(line.split(":") for line in open("/proc/meminfo"))
total, free = (int(known[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
os.environ["RAY_memory_usage_threshold"] = f"{(total - free) / total + 0.1:.3f}"
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
from stillroom.pipeline import RayRunner, RunnerError

def build():
    held = []
    def work(item):
        while item == 1 and len(held) < 4000:  # a tenth of the memory is passed long before
            held.append(b"x" * (4 << 20))
            time.sleep(0.002)
        return item
    return work

events = []
runner = RayRunner(workers=1, attempts=2, listen=events.append)
try:
    list(runner.map(build, range(3)))
except RunnerError as error:
    print(str(error).replace("\\n", " "))
print([event.attempt for event in events if hasattr(event, "attempt")])
"""


def test_an_item_that_eats_all_memory_is_named_as_such() -> None:
    """Ray's own memory monitor, with its limit a tenth of the memory above what is used now."""
    ran = subprocess.run(
        [sys.executable, "-c", EATING], capture_output=True, text=True, check=True, timeout=300
    )
    error, attempts = ran.stdout.splitlines()[-2:]
    assert error.startswith("1 was tried 2 times and its worker died each time"), ran.stdout
    assert "Ray's memory monitor killed it, because its node was low on memory" in error
    assert attempts == "[1]"  # the last one is the error


def test_workers_of_a_killed_driver_do_not_harm_the_run_that_goes_on(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They finish and store what they have in hand, under the same names as the next run."""
    log = tmp_path / "asked"
    teach_here(tmp_path / "quiet", 2_000)
    nodes.stop()
    for name, value in {LOG: str(log), PACE: "0.02", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    nodes.start()
    cache = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.crash.cluster_teaching", str(cache), nodes.address]
    starts = 0
    while True:
        driver = subprocess.Popen([*command, "2000"], cwd=ROOT, stdout=subprocess.DEVNULL)
        starts += 1
        until = _finished(cache) + 40
        while driver.poll() is None and (starts > 4 or _finished(cache) < until):
            time.sleep(0.01)
        if driver.poll() is not None:
            break
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()  # and the next one starts at once
    assert driver.returncode == 0
    assert starts > 2
    # What the dead drivers' workers still wrote is there by now, whenever it came.
    nodes.stop()
    assert content_of(cache) == content_of(tmp_path / "quiet")
    assert verify(cache).problems == ()
    again = len(log.read_text().splitlines()) - SHARDS
    assert again <= 2 * (starts - 1)


def _finished(cache: Path) -> int:
    found: Any = cache.glob("segments/*/receipts/[0-9]*.json")
    return len(list(found))
