"""Items whose workers died: what is counted, whom it is blamed on, and when it is enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic

from stillroom.pipeline.events import WorkerLost
from stillroom.pipeline.ray_needs import Node
from stillroom.pipeline.ray_session import listens
from stillroom.pipeline.runner import Item, RunnerError

_MOVES = 10
"""How often an item may be on a node that leaves: it may be what brings nodes down."""
_KEPT = "What was finished is kept; run again to go on"


@dataclass
class Entry(Generic[Item]):
    """An item and how often it was tried."""

    item: Item
    attempts: int = 0
    """How often a worker died of it."""
    moves: int = 0
    """How often its worker's node left."""
    suspect: bool = False
    """Whether it was in the hands of a worker that died."""


def deaths(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises when a worker, its node or what they held is gone."""
    found = ray.exceptions
    return (
        found.RayActorError,
        found.OutOfMemoryError,
        found.NodeDiedError,
        found.WorkerCrashedError,
        found.ObjectLostError,
    )


def blamed(
    entry: Entry[Any],
    error: Exception,
    node: tuple[str, str],
    attempts: int,
    ray: Any,
    nodes: Iterable[Node],
) -> WorkerLost:
    """Count the attempt, and what to say of it; RunnerError when it was the last.

    `node` is the worker's, its id and its name; `nodes` are those that were known last.
    """
    number, name = node
    left = any(_left(known) for known in nodes if known["NodeID"] == number)
    entry.suspect = True
    entry.attempts += not left
    entry.moves += left
    reason = f"its node {name} left the cluster" if left else _reason(error, ray)
    if entry.moves >= _MOVES:
        raise RunnerError(
            f"{entry.item} was on {entry.moves} nodes that left the cluster while it was in work, the "
            f"last one {name}; it may be what brings them down. {_KEPT}"
        ) from error
    if entry.attempts >= attempts:
        raise RunnerError(
            f"{entry.item} was tried {entry.attempts} times and its worker died each time, the last "
            f"time on {name}: {reason}. Most often the machine runs out of memory: use fewer workers "
            f"or a smaller batch. {_KEPT}"
        ) from error
    return WorkerLost(str(entry.item), reason, 0 if left else entry.attempts, attempts, name)


def _left(node: Node) -> bool:
    """Whether it is gone; Ray itself notices a crash only after some seconds."""
    return not node["Alive"] or not listens(node["NodeManagerAddress"], node["NodeManagerPort"])


def _reason(error: Exception, ray: Any) -> str:
    """Why a worker died, as far as Ray knows."""
    text = str(error).strip()
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in text:
        first = text.splitlines()[0]  # tables of the node's memory follow
        return f"Ray's memory monitor killed it, because its node was low on memory: {first}"
    return text
