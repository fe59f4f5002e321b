"""Ask a loaded teacher for rows, in batches that fit into memory.

A batch that runs out of memory is cut in half and asked again, and the size that fitted is kept for
all later batches of that worker. What fits is a property of the machine, so it is no part of a
teacher's identity; a batch of another size may change the last bits of an answer, as it always may.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Batch, Rows, column_shapes
from stillroom.stages.teachers.teacher import Answer, Teacher
from stillroom.storage.errors import OutOfMemoryError, StillroomError, listed
from stillroom.storage.pairs import spelled

Int64s = NDArray[np.int64]
_WORDS = (
    "out of memory",  # CUDA, HIP, MPS
    "allocate memory",  # torch's CPU allocator, the operating system, ONNX Runtime
    "not enough memory",
    "alloc_failed",  # cuBLAS, cuDNN
)


@dataclass(frozen=True)
class Asked:
    """One batch and what the teacher said."""

    places: Int64s
    """Of its rows in the data set."""
    answered: Mapping[str, Any]
    """As the teacher gave it."""
    shapes: str
    """What it was given, in words."""
    seconds: float
    """Inside the teacher."""


class Asking:
    """A loaded teacher and the rows that it is asked for; it remembers which batches fit."""

    def __init__(self, teacher: Teacher, answer: Answer, rows: Rows, batch_size: int) -> None:
        """`batch_size` is where it begins, and the most that a batch will hold."""
        self.teacher, self.answer, self.rows = teacher, answer, rows
        self.batch_size = batch_size
        """Rows of a batch from now on."""
        self.halved = 0
        """How often a batch had to be cut in half."""
        self.load_seconds: float | None = None
        """Of loading the teacher, where it was loaded for this."""

    @classmethod
    def of(cls, teacher: Teacher, rows: Rows, batch_size: int) -> Asking:
        """Load the teacher, in this process."""
        started = time.perf_counter()
        asking = cls(teacher, teacher.load(), rows, batch_size)
        asking.load_seconds = time.perf_counter() - started
        return asking

    def each(self, places: Int64s, sizes: Sequence[int] = ()) -> Iterator[Asked]:
        """The rows at these places, batch after batch.

        `sizes` are those of the first batches, in turn, the last one that of all others; without any,
        batches are of `batch_size`. OutOfMemoryError for a single row that does not fit.
        """
        wanted = list(sizes)
        start = 0
        while start < len(places):
            size = wanted[0] if wanted else self.batch_size
            found = self._asked(places[start : start + size])
            if found is None:
                # Those that were asked for do not fit either, where they are larger.
                wanted = [min(size, self.batch_size) for size in wanted]
                continue
            start += len(found.places)
            wanted = wanted[1:] if len(wanted) > 1 else wanted
            yield found

    def batch(self, places: Int64s) -> Batch:
        """The columns that the teacher reads."""
        return self.rows.read(places, self.teacher.inputs)

    def _asked(self, places: Int64s) -> Asked | None:
        """None when memory ran out: the batches are smaller now."""
        try:
            batch = self.batch(places)
            before = time.perf_counter()
            answered = self.answer(batch)
            seconds = time.perf_counter() - before
            return Asked(places, answered, column_shapes(batch), seconds)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if len(places) == 1:
                raise self._too_large(places, error) from error
        # Out of the handler, whose error holds on to the frames and all that lies in their memory.
        self.batch_size = max(min(self.batch_size, len(places)) // 2, 1)
        self.halved += 1
        _let_go()
        return None

    def _too_large(self, places: Int64s, error: Exception) -> OutOfMemoryError:
        (key,) = spelled(self.rows.keys.take(places))
        first = str(error).strip().splitlines() or [type(error).__name__]
        halved = f", after batches were halved {self.halved} times" if self.halved else ""
        return OutOfMemoryError(
            f"teacher {self.teacher.name!r} needs more memory than there is for row {key!r} alone, a "
            f"batch of 1{halved} ({listed([first[0][:200]])}). Make the row smaller (a shorter text, a "
            "smaller image), run the teacher in half precision, give each worker more memory (fewer "
            "workers, no others on its GPU), or take a larger machine. What was finished is kept"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device.

    >>> out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    True
    """
    if isinstance(error, StillroomError):
        return isinstance(error, OutOfMemoryError)
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # By their words: torch has had one class for it and another, and other engines have their own.
    return any(word in str(error).lower() for word in _WORDS)


def _let_go() -> None:
    """Give cached blocks of a GPU back, so that smaller ones find room."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
