"""Runners map a function over items: the local one is the reference that every other must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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


class LocalRunner:
    """One worker, in this process, one item after another.

    >>> sorted(LocalRunner().map(lambda: str, [1, 2]))
    ['1', '2']
    """

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Build at the first item, so that nothing is loaded for no items."""
        work: Callable[[Item], Result] | None = None
        for item in items:
            if work is None:
                work = build()
            yield work(item)
