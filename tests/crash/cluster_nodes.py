"""Several raylets on this machine as a cluster, each of which can be killed with all that it runs."""

from __future__ import annotations

import os
import random
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 20_000,  # for busy machines; a port that is closed answers at once
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A head without CPUs, and nodes with one each."""

    def __init__(self, count: int, **each: Any) -> None:
        self.count, self.each = count, {"num_cpus": 1, **each}
        self.cluster: Any = None

    def start(self, **more: Any) -> None:
        """A new cluster at a new address; `more` is told to its head."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
        head |= {"object_store_memory": 100 << 20, **more}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(self.count):
            self.add()

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self.cluster.address)

    def add(self, **more: Any) -> Any:
        """One more node."""
        return self.cluster.add_node(
            wait=False, object_store_memory=100 << 20, **{**self.each, **more}
        )

    def kill_node(self, chosen: random.Random) -> None:
        """One of the nodes that are not the head, at random."""
        self.kill(chosen.choice(sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id)))

    def kill(self, node: Any) -> None:
        """SIGKILL to everything that a node is made of, as when its power fails."""
        _kill(_processes(node))
        self.cluster.worker_nodes.discard(node)

    def kill_head(self) -> None:
        """SIGKILL to the head's store of what the cluster is, and to its raylet."""
        _kill(_processes(self.cluster.head_node))

    def kill_worker(self, number: int) -> bool:
        """SIGKILL to that process, if it is a worker of ours that still runs."""
        mine = {n for node in self._every() for n in _processes(node)}
        return number in mine and _kill([number])

    def stop(self) -> None:
        """SIGKILL to all that is left."""
        if self.cluster is not None:
            _kill([n for node in self._every() for n in _processes(node)])
            self.cluster = None

    def _every(self) -> list[Any]:
        return [*self.cluster.worker_nodes, self.cluster.head_node]


def _processes(node: Any) -> list[int]:
    """The numbers of a node's processes and of everything that they started, children last."""
    known = [each.process.pid for kind in node.all_processes.values() for each in kind]
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    for number in known:
        known += [child for child in parents.get(number, ()) if child not in known]
    return known


def _kill(numbers: list[int]) -> bool:
    for number in numbers:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return bool(numbers)


def ended(number: int, frame: object) -> None:
    """A signal handler that runs the `finally` blocks."""
    sys.exit(128 + number)
