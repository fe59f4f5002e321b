"""Pools on a real cluster of several raylets: placement, growing and shrinking, nodes that leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillroom.pipeline import RayRunner, RunnerError, WorkerLost, WorkersAwaited, WorkersChanged
from tests.crash.cluster_nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head without CPUs, and nothing else yet."""
    nodes = Nodes(0)
    nodes.start()
    yield nodes
    nodes.stop()


def where(seconds: float = 0.0) -> Callable[[], Callable[[int], tuple[str, int]]]:
    """Work that says on which node and in which process it is done."""

    def build() -> Callable[[int], tuple[str, int]]:
        import os

        import ray

        node = ray.get_runtime_context().get_node_id()

        def work(item: int) -> tuple[str, int]:
            time.sleep(seconds)
            return node, os.getpid()

        return work

    return build


def test_a_pool_grows_with_its_cluster_from_nothing_and_shrinks_at_the_end(nodes: Nodes) -> None:
    heard: list[Any] = []

    def listen(event: object) -> None:
        if isinstance(event, WorkersAwaited) and not any(
            isinstance(e, WorkersAwaited) for e in heard
        ):
            nodes.add()  # as an autoscaler does
            nodes.add()
        heard.append(event)

    def build() -> Callable[[int], int]:
        import os

        def work(item: int) -> int:
            time.sleep(20 if item == 29 else 0.5)
            return os.getpid()

        return work

    runner = RayRunner(workers=(0, 2), address=nodes.address, listen=listen)
    found = list(runner.map(build, iter(range(30))))
    assert len(set(found)) == 2
    assert "CPU is missing" in next(e.why for e in heard if isinstance(e, WorkersAwaited))
    sizes = [event.ready for event in heard if isinstance(event, WorkersChanged)]
    # The one without work is given back while the other one still has some.
    assert sizes[-3:] == [2, 1, 0]


def test_a_node_that_joins_later_is_used_and_one_that_leaves_costs_what_it_had_in_hand(
    nodes: Nodes, tmp_path: Path
) -> None:
    first = nodes.add()
    nodes.cluster.wait_for_nodes()
    heard: list[Any] = []
    log = tmp_path / "log"
    runner = RayRunner(address=nodes.address, listen=heard.append)

    def build() -> Callable[[int], str]:
        import ray

        node = ray.get_runtime_context().get_node_id()

        def work(item: int) -> str:
            with open(log, "a") as file:
                file.write(f"{item}\n")
            time.sleep(0.2)
            return str(node)

        return work

    results = []
    for count, node in enumerate(runner.map(build, range(60))):
        results.append(node)
        if count == 5:
            nodes.add()
        if len(set(results)) == 2 and first is not None:
            nodes.kill(first)
            first = None
    assert len(results) == 60
    assert results[-1] != results[0]
    done = log.read_text().split()
    assert set(done) == {str(n) for n in range(60)}
    assert len(done) - 60 <= 2
    (lost,) = [event for event in heard if isinstance(event, WorkerLost)]
    assert "left the cluster" in lost.reason
    assert lost.attempt == 0


def test_teachers_are_placed_by_resources_labels_and_fractions_of_a_gpu(nodes: Nodes) -> None:
    plain = nodes.add(num_cpus=2).node_id
    gpu = nodes.add(num_cpus=4, num_gpus=1, resources={"a100": 1}).node_id
    labelled = nodes.add(labels={"zone": "b"}).node_id
    nodes.cluster.wait_for_nodes()
    with RayRunner(address=nodes.address) as runner:
        halves = list(replace(runner, num_gpus=0.5).map(where(0.2), range(20)))
        assert {node for node, _ in halves} == {gpu}
        assert len({pid for _, pid in halves}) == 2
        (special,) = {n for n, _ in replace(runner, resources={"a100": 1}).map(where(), range(4))}
        assert special == gpu
        (zone,) = {n for n, _ in replace(runner, labels={"zone": "b"}).map(where(), range(4))}
        assert zone == labelled
        # Workers of other needs were ended, so this one finds every CPU.
        every = {node for node, _ in runner.map(where(0.5), range(40))}
        assert every == {plain, gpu, labelled}


def test_two_maps_at_once_share_a_cluster(nodes: Nodes) -> None:
    nodes.add(num_cpus=1)
    nodes.add(num_cpus=1, resources={"special": 1})
    nodes.cluster.wait_for_nodes()
    found: dict[str, set[str]] = {}
    with RayRunner(address=nodes.address, workers=1) as runner:
        teachers = {
            "plain": replace(runner, labels={}, num_cpus=1),
            "special": replace(runner, num_cpus=0, resources={"special": 1}),
        }

        def teach(name: str) -> None:
            found[name] = {node for node, _ in teachers[name].map(where(0.1), range(20))}

        threads = [threading.Thread(target=teach, args=(name,)) for name in teachers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len(found[name]) for name in teachers] == [1, 1]


def test_a_worker_that_never_comes_is_an_error_that_says_what_is_missing(nodes: Nodes) -> None:
    nodes.add()
    nodes.cluster.wait_for_nodes()
    began = time.monotonic()
    runner = RayRunner(workers=(0, 2), num_gpus=1, address=nodes.address, worker_wait_s=3)
    with pytest.raises(RunnerError, match=r"no worker came within 3 s: .*GPU is missing: Ray has"):
        list(runner.map(where(), range(3)))
    fixed = RayRunner(workers=2, num_gpus=1, address=nodes.address)
    with pytest.raises(RunnerError, match=r"GPU is missing.*say workers=\(0, N\)"):
        list(fixed.map(where(), range(3)))
    assert time.monotonic() - began < 60


def test_a_cluster_that_others_hold_is_said_so(nodes: Nodes) -> None:
    nodes.add()
    nodes.cluster.wait_for_nodes()
    import ray

    with RayRunner(address=nodes.address) as runner:
        assert list(runner.map(where(), [1]))
        holder: Any = ray.remote(num_cpus=1)(_Holder)
        runner._session.taken(runner.needs, ray, 0)
        holding: Any = holder.remote()
        ray.get(holding.ready.remote(), timeout=60)
        with pytest.raises(RunnerError, match=r"of which 0 CPU is free: others hold it"):
            list(replace(runner, worker_wait_s=3).map(where(), [1]))


class _Holder:
    """Another job's actor."""

    def ready(self) -> int:
        return 1
