"""A cache that tests damage, and ways to do that."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stillroom.storage.care.problems import Problem
from stillroom.storage.care.verifying import verify
from tests.storage.caches import (
    flip,
)


@dataclass
class Victim:
    """A cache that many tests damage, one after the other."""

    path: Path
    before: dict[str, bytes]

    def segment(self, number: int) -> Path:
        """The folder of segment 1 to 3, or of the draft, 4."""
        return sorted((self.path / "segments").iterdir())[number - 1]


def found(path: Path) -> tuple[Problem, ...]:
    """The problems; there must be some."""
    problems = verify(path).problems
    assert problems
    assert all(str(problem) for problem in problems)
    return problems


def the_problem(path: Path) -> Problem:
    """The one problem."""
    problems = found(path)
    assert len(problems) == 1, list(map(str, problems))
    return problems[0]


def inside(victim: Victim, place: Path) -> str:
    return str(place.relative_to(victim.path))


def _deleted(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "deleted": (_deleted, "is missing though its receipt is there"),
    "cut": (_cut, "bytes, its receipt says"),
    "longer": (_longer, "bytes, its receipt says"),
    "empty": (_empty, "holds 0 bytes"),
    "a folder": (_a_folder, "is missing"),
    "a pipe": (_a_pipe, "is missing"),
    "flipped": (lambda path: flip(path, 100), "bytes were changed"),
}
