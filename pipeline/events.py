"""What a runner says of its workers while it maps; sent to a runner's `listen`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkersChanged:
    """Workers came or went."""

    ready: int
    """Workers that take items now."""
    asked: int
    """Workers that were asked of the cluster and have not come yet."""


@dataclass(frozen=True)
class WorkersAwaited:
    """There is no worker at all yet, or any more; said now and then while that lasts."""

    why: str
    """What a worker needs, and what the cluster has."""
    seconds: float


@dataclass(frozen=True)
class WorkerLost:
    """A worker died; the item it had in work is tried again by another one."""

    item: str
    reason: str
    """What Ray knows of it: its process, its node, the memory monitor."""
    attempt: int
    """The attempt that failed, counted from 1; 0 when it is not the item's fault (its node left)."""
    attempts: int
    """How many are made before the map ends with an error."""
    node: str
    """Host and address of the node that it ran on."""


def ignore(event: object) -> None:
    """The listener that hears nothing."""
