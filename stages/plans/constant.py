"""What a run of teaching costs before any of its rows: leases, a draft, sealing, a snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.teachers.function import FunctionTeacher
from stillroom.stages.teaching import teach
from stillroom.storage.cache import Cache
from stillroom.storage.errors import StillroomError

_RUNS = 2
"""The first pays for what later ones find done."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def constant_seconds() -> float:
    """Seconds of teaching one row that costs nothing, in a temporary folder.

    Most of it is waiting for the disk, so it is too little where that folder lies on a faster one. 0
    where nothing can be written there: a plan says so of the cache's own disk.
    """
    with suppress(StillroomError, OSError), TemporaryDirectory(prefix="stillroom-") as folder:
        return min(_seconds(Path(folder) / str(run)) for run in range(_RUNS))
    return 0.0


def _seconds(path: Path) -> float:
    rows = ArrayRows([0], number=np.zeros(1, np.float32))
    teacher = FunctionTeacher("nothing", _same, inputs=("number",), signals=("number",))
    cache = Cache.at(path)
    started = time.perf_counter()
    teach(cache, rows, teacher, runner=_Here())
    return time.perf_counter() - started


def _same(number: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return {"number": number}


class _Here:
    """One worker, in this process."""

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        work = build()
        return map(work, items)
