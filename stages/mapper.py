"""Mapper: what stages need of a runner, so that they need not know one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mapper(Protocol):
    """What teaching and training need of a runner (LocalRunner and RayRunner have it)."""

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Call `build()` once in each worker, then what it made on every item; results as ready."""


@runtime_checkable
class Placing(Mapper, Protocol):
    """A runner that has several workers, and places them by what they need (RayRunner)."""

    def needing(self, cpus: float | None, gpus: float | None, memory_bytes: int) -> Self:
        """The same runner for long items, whose workers need this; None and 0 leave what it has."""

    def places(self) -> int:
        """How many such workers there is room for; 0 where one alone does not fit."""

    def __enter__(self) -> Self:
        """Keep workers' processes between maps."""

    def __exit__(self, *raised: Any) -> None:
        """Let them go."""
