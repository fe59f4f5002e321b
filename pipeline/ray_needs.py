"""What one Ray worker needs, how many of them a cluster has room for, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

Node = Mapping[str, Any]
"""An entry of `ray.nodes()`."""


@dataclass(frozen=True)
class Size:
    """How many actors there should be."""

    least: float
    """Kept while there is nothing to do."""
    most: float
    grows: bool
    """Whether to ask for more than the cluster has room for now."""

    @classmethod
    def of(cls, workers: int | tuple[int, int] | None) -> Size:
        """From a runner's `workers`."""
        if isinstance(workers, tuple):
            return cls(*workers, grows=True)
        most = inf if workers is None else max(workers, 1)
        return cls(most, most, grows=False)

    def wanted(self, fitting: float, nodes: int) -> int:
        """How many to have now, where `fitting` have room; at least one, to be waited for."""
        if fitting == inf and self.most == inf:
            fitting = nodes  # they need nothing and no number was said: one for each node
        return max(int(self.most if self.grows else min(self.most, fitting)), 1)


@dataclass(frozen=True)
class Needs:
    """Logical resources of one worker; Ray places by them, and holds nobody to them."""

    amounts: Mapping[str, float]
    """By Ray's names: CPU, GPU, memory (bytes), custom ones; only what is above zero."""
    labels: Mapping[str, str]
    """What the node's labels must be (Ray's label selectors)."""

    @classmethod
    def of(
        cls,
        num_cpus: float,
        num_gpus: float,
        memory_bytes: int,
        resources: Mapping[str, float],
        labels: Mapping[str, str],
    ) -> Needs:
        """From a runner's fields."""
        every = {"CPU": num_cpus, "GPU": num_gpus, "memory": memory_bytes, **resources}
        return cls({name: n for name, n in every.items() if n > 0}, dict(labels))

    def options(self) -> dict[str, Any]:
        """The same as options of a Ray actor."""
        rest = dict(self.amounts)
        cpus, gpus, memory = rest.pop("CPU", 0), rest.pop("GPU", 0), rest.pop("memory", 0)
        found: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "resources": rest}
        if memory:
            found["memory"] = memory
        if self.labels:
            found["label_selector"] = dict(self.labels)
        return found

    def room(self, node: Node) -> float:
        """How many workers the node has room for when it is empty; infinite where nothing is needed."""
        if not node["Alive"] or not self._labelled(node):
            return 0
        has = node["Resources"]
        # Rounded: 0.3 of a GPU three times over is not 0.9000000000000001 of it.
        fitting = (int(round(has.get(name, 0) / n, 6)) for name, n in self.amounts.items())
        return min(fitting, default=inf)

    def fitting(self, nodes: Iterable[Node]) -> float:
        """How many workers all nodes together have room for. A worker never spans two nodes."""
        return sum(self.room(node) for node in nodes)

    def lacking(self, nodes: Iterable[Node], free: Mapping[str, float]) -> str:
        """What a worker needs and why the cluster does not give it, in words."""
        alive = [node for node in nodes if node["Alive"]]
        which = f"a worker needs {_said(self.amounts) or 'nothing'}"
        if self.labels:
            which += f" on a node labelled {', '.join(f'{k}={v}' for k, v in self.labels.items())}"
        has: dict[str, float] = {}
        for node in alive:
            for name in self.amounts:
                has[name] = has.get(name, 0) + node["Resources"].get(name, 0)
        count = f"{len(alive)} node{'s' * (len(alive) != 1)}"
        cluster = f"Ray has {_said(has) or 'nothing of it'} in all, on {count}"
        if not any(self._labelled(node) for node in alive):
            return f"{which}; no node has these labels; {cluster}"
        short = [n for n, amount in self.amounts.items() if has.get(n, 0) < amount]
        if short:
            return f"{which}; {', '.join(short)} is missing: {cluster}"
        if not self.fitting(alive):
            return f"{which}, and no single node has all of that; {cluster}"
        left = {name: free.get(name, 0.0) for name in self.amounts}
        return f"{which}; {cluster}, of which {_said(left)} is free: others hold it, or workers start on it"

    def _labelled(self, node: Node) -> bool:
        """Whether the node's labels are asked for; other operators than equality are left to Ray."""
        has = node.get("Labels") or {}
        plain = {k: v for k, v in self.labels.items() if not v.startswith(("!", "in("))}
        return all(has.get(name) == value for name, value in plain.items())


def _said(amounts: Mapping[str, float]) -> str:
    """Amounts in words.

    >>> _said({"GPU": 0.5, "memory": 3 << 30})
    '0.5 GPU, 3 GiB memory'
    """
    return ", ".join(
        f"{n / 2**30:.3g} GiB memory" if name == "memory" else f"{n:g} {name}"
        for name, n in amounts.items()
    )
