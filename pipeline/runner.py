"""Runners map a function over items: the local one is the reference that every other must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from stillroom.pipeline.stopping import Stop, Until

Item = TypeVar("Item")
Result = TypeVar("Result")


class RunnerError(RuntimeError):
    """Workers could not be had, or an item's workers died again and again."""


class Runner(Protocol):
    """Maps work over items, wherever the work is done."""

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Call `build()` once in each worker and what it returns on every item.

        Results come as they are ready, in any order. An item may be tried again after its worker
        died, so the work must be safe to repeat. An exception of the work itself stops the map and
        is raised as it is.
        """


@dataclass(frozen=True)
class LocalRunner:
    """One worker, in this process, one item after another.

    >>> sorted(LocalRunner().map(lambda: str, [1, 2]))
    ['1', '2']
    """

    stop: Stop | None = None
    """Once an end was asked for, no item is begun, and a map that is not whole raises Stopped."""

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Build at the first item, so that nothing is loaded for no items."""
        work: Callable[[Item], Result] | None = None
        until = Until(items, self.stop)
        for item in until:
            if work is None:
                work = build()
            yield work(item)
        until.require()
