"""Mapper: what stages need of a runner, so that they need not know one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mapper(Protocol):
    """What teaching and training need of a runner (LocalRunner and RayRunner have it)."""

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Call `build()` once in each worker, then what it made on every item; results as ready."""
