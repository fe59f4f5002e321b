"""What teaching and training say while they run; pass a function that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RowsSkipped:
    """The data set left out broken records, as its policy says; they are no rows of it."""

    rows: int
    reasons: Mapping[Any, str]
    """Why, by key."""


@dataclass(frozen=True)
class CacheChosen:
    """A teacher is about to write to a cache; nothing is written before this is heard."""

    teacher: str
    cache: str
    identity: str
    """Digest of the teacher's identity."""


@dataclass(frozen=True)
class TeachStarted:
    """Rows will be computed; `resumed` of them were already stored by a run that was cut off."""

    teacher: str
    rows: int
    resumed: int
    why: str


@dataclass(frozen=True)
class BooksMade:
    """What encodings need for all rows is stored: a head's weight, centroids; once for a teacher."""

    teacher: str
    signals: tuple[str, ...]
    rows: int
    """Rows that were answered for it beforehand; they are answered again with their shard."""
    seconds: float


@dataclass(frozen=True)
class RowsTaught:
    """A shard is stored."""

    teacher: str
    rows: int
    bytes: int
    teacher_seconds: float
    worker: str = ""
    """The process that did it: host and number."""
    halved: int = 0
    """How often a batch was cut in half because memory ran out."""
    asked_again: int = 0
    """Rows that were asked for once more, to see whether the teacher says the same; once for a run."""


@dataclass(frozen=True)
class SnapshotTaken:
    """A snapshot serves what is there while teaching goes on: `rows` of the `asked` ones."""

    teacher: str
    rows: int
    asked: int
    snapshot: int


@dataclass(frozen=True)
class TeachFinished:
    """A snapshot serves every row; `rows` were computed now (none when all was fresh)."""

    teacher: str
    rows: int
    snapshot: int
    seconds: float


@dataclass(frozen=True)
class RowsAudited:
    """Rows were asked of the live teacher again and compared."""

    teacher: str
    rows: int


@dataclass(frozen=True)
class TrainStarted:
    """`students` will be trained, `fresh` are as recorded."""

    students: int
    fresh: int


@dataclass(frozen=True)
class RowsAwaited:
    """Students train on `rows` of the `asked` ones of a split: the snapshot serves no more yet."""

    split: str
    rows: int
    asked: int
    snapshot: int


@dataclass(frozen=True)
class StudentTrained:
    """A student is trained, evaluated and recorded."""

    name: str
    seed: int
    seconds: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class StudentFailed:
    """A student could not be trained; the others go on."""

    name: str
    seed: int
    why: str


@dataclass(frozen=True)
class StudentStopped:
    """A student was worse than the others at a rung and is trained no further."""

    name: str
    seed: int
    epoch: int
    value: float
    """What it was compared by."""


Event = (
    RowsSkipped
    | CacheChosen
    | TeachStarted
    | BooksMade
    | RowsTaught
    | SnapshotTaken
    | TeachFinished
    | RowsAudited
    | TrainStarted
    | RowsAwaited
    | StudentTrained
    | StudentFailed
    | StudentStopped
)
Listen = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that hears nothing."""
