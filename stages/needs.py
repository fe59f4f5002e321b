"""Needs: what the process that trains a student must have; runners that place work take it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What a student asks of the worker that trains it. It changes no number, and no identity.

    Students that train together take turns, so their process has the CPUs and the share of a GPU of
    one of them, and the memory of all. `LocalRunner` places nothing and ignores it.
    """

    cpus: float | None = None
    """None: as many as the runner gives each worker."""
    gpus: float | None = None
    """A fraction shares a GPU with other workers; None: what the runner gives each worker."""
    memory_bytes: int = 0
    """Of this student alone; 0: what the runner says of each worker."""

    def __post_init__(self) -> None:
        """ValueError for less than nothing."""
        if min(self.cpus or 0, self.gpus or 0, self.memory_bytes) < 0:
            raise ValueError(f"what a student needs is counted from 0, found {self}")

    def times(self, students: int) -> Needs:
        """Those of so many such students in one process."""
        return Needs(self.cpus, self.gpus, self.memory_bytes * students)
