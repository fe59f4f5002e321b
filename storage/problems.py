"""What verify finds: a problem says where it lies, so that repair knows what to compute again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EXTRA = "is named by nothing in the cache"
"""What is said of a file that does not belong there."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written."""

    segment: str | None
    """The segment's folder name; None for the cache's own files and for snapshots."""
    shard: int | None
    """The shard whose rows are affected; None where it is no shard's file."""
    signal: str | None
    """The signal, where the file holds one."""
    path: str
    """The file, relative to the cache."""
    what: str
    """In words."""

    def __str__(self) -> str:
        """The path and the words."""
        return f"{self.path}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Verified:
    """All that verify saw."""

    problems: tuple[Problem, ...]
    leftovers: tuple[str, ...]
    """Paths that a killed writer left; harmless, removed by the next writer or by prune."""
    segments: int
    drafts: int
    snapshots: int
    unfinished: int
    """Shards of drafts that have no receipt yet."""
    files: int
    """Files that were read."""
    bytes: int
    """Their bytes."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        found = [problem.to_json() for problem in self.problems]
        return {**vars(self), "problems": found, "leftovers": list(self.leftovers)}
