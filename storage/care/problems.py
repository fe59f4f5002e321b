"""What verify finds: a problem says where it lies, so that repair knows what to compute again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillroom.storage.errors import (
    CorruptShardError,
    StorePermissionError,
    StoreUnreachableError,
    StoreUnsupportedError,
)

EXTRA = "is named by nothing in the cache"
"""What is said of a file that does not belong there."""


def damage(error: Exception) -> str:
    """In words what an error says about stored bytes; one that says nothing of them is raised again.

    What cannot be read just now is not known to be damaged, and must not be repaired.
    """
    if isinstance(error, StoreUnreachableError | StorePermissionError | StoreUnsupportedError):
        raise error
    if isinstance(error, PermissionError):
        raise StorePermissionError(
            f"cannot read {error.filename}: {error.strerror}. Give this user permission to read it, and "
            "verify again"
        ) from error
    gone = FileNotFoundError | NotADirectoryError | IsADirectoryError
    if isinstance(error, OSError) and not isinstance(error, CorruptShardError | gone):
        raise CorruptShardError(
            f"cannot read {error.filename}: {error.strerror}. If it stays so when you try again, the "
            "disk is at fault: delete that file, and repair"
        ) from error
    return str(error)


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
