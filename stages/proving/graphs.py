"""Graphs for proofs: nodes as rows, edges as a table, and a network that sees both."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes with features and classes, and who is joined to whom."""

    features: NDArray[np.float32]
    """(nodes, dim)."""
    labels: NDArray[np.int64]
    """(nodes,)."""
    edges: NDArray[np.int64]
    """(2, edges): source and target, in both directions, and from each node to itself."""

    @property
    def rows(self) -> ArrayRows:
        """A row for every node: its number, features and class."""
        nodes = np.arange(len(self.labels))
        keys = [f"node-{place:05d}" for place in nodes]
        return ArrayRows(keys, node=nodes, x=self.features, label=self.labels)


def block_graph(
    seed: int, *, blocks: int, size: int, inside: float, across: float, dim: int, noise: float
) -> Graph:
    """A stochastic block model (Holland, Laskey, Leinhardt 1983) with Gaussian features.

    Two nodes of one block are joined with probability `inside`, of two blocks with `across`. A node's
    features are those of its block, drawn from N(0, 1), plus N(0, noise^2).
    """
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(blocks), size)
    centres = random.standard_normal((blocks, dim))
    features = centres[labels] + noise * random.standard_normal((len(labels), dim))
    chance = np.where(labels[:, None] == labels, inside, across)
    joined = np.triu(random.random(chance.shape) < chance, 1)
    return Graph(features.astype(np.float32), labels, _edges(joined))


def karate_club() -> Graph:
    """Zachary's karate club (1977), as in networkx: 34 people, the club that each joined when theirs
    broke apart, and who met outside. A person's features say only who it is, (34,) with a single 1."""
    import networkx

    club = networkx.karate_club_graph()
    people = sorted(club)
    labels = np.array([club.nodes[one]["club"] != "Mr. Hi" for one in people]).astype(np.int64)
    met = networkx.to_numpy_array(club, nodelist=people) > 0
    return Graph(np.eye(len(people), dtype=np.float32), labels, _edges(met))


def _edges(joined: NDArray[np.bool_]) -> NDArray[np.int64]:
    both = joined | joined.T | np.eye(len(joined), dtype=bool)
    return np.stack(np.nonzero(both)).astype(np.int64)


def graph_network(features: Any, edges: Any, *sizes: int) -> nn.Module:
    """GraphSAGE with means (Hamilton et al. 2017, arXiv:1706.02216): nodes' numbers in, (n, sizes[-1]) out.

    Every layer is relu(W h + U (mean of h over neighbours)), the last one without relu; it is given the
    whole graph whatever nodes are asked for. `features` (nodes, dim) and `edges` (2, edges) are arrays.
    """
    import torch
    from torch import nn

    class Sage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            given = torch.as_tensor(features)
            source, target = torch.as_tensor(edges)
            mean = torch.zeros(len(given), len(given))
            mean[source, target] = (source != target).to(mean.dtype)
            self.register_buffer("given", given, persistent=False)
            self.register_buffer("mean", mean / mean.sum(1, keepdim=True).clamp_min(1), False)
            widths = (given.shape[1], *sizes)
            self.own = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
            self.near = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))

        def forward(self, node: Tensor) -> Tensor:
            hidden: Any = self.given
            for place, (own, near) in enumerate(zip(self.own, self.near, strict=True)):
                hidden = hidden if place == 0 else hidden.relu()
                hidden = own(hidden) + near(self.mean @ hidden)
            answer: Tensor = hidden[node]
            return answer

    return Sage()
