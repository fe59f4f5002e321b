"""Teachers: anything that answers batches and has an identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from stillroom.stages.data.rows import Batch
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values

Answer = Callable[[Batch], Mapping[str, Values]]
"""A loaded teacher: a batch of n rows in, n rows of every signal out."""


class Teacher(Protocol):
    """Light until loaded: it is described, identified and sent to workers without its weights."""

    @property
    def name(self) -> str:
        """Names the teacher's segments: letters, digits, _ and -."""

    @property
    def inputs(self) -> Sequence[str]:
        """The data set's columns that it reads; only these decide whether a row changed."""

    def asks(self) -> Mapping[str, Ask]:
        """The signals it gives, how each is encoded and what it is taken from."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides its numbers, as plain JSON; never a path or a batch size."""

    def load(self) -> Answer:
        """Build it, in the process that will run it."""
