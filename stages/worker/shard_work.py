"""One worker's part of teaching: build the teacher once, then answer and store shard after shard."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.worker.answers import checked
from stillroom.stages.worker.asking import Asked, Asking
from stillroom.stages.worker.gathering import Gathering
from stillroom.stages.worker.steady import require_steady
from stillroom.storage.books import read_book
from stillroom.storage.draft import Draft
from stillroom.storage.errors import IdentityError, listed
from stillroom.storage.files import write_json
from stillroom.storage.folder import Shard
from stillroom.storage.identity import canonical, differences, without_code
from stillroom.storage.place import Place
from stillroom.storage.signal import Values


@dataclass(frozen=True)
class ShardTask:
    """A shard to compute, and the places of its rows in the data set."""

    shard: Shard
    places: NDArray[np.int64]
    look_twice: bool = False
    """Ask for some rows of the first batch again, and refuse a teacher that then says something else."""
    band: float | None = None
    """By how much of a signal's range those answers may differ; None: by what is usual."""
    sizes: tuple[int, ...] = ()
    """Rows of its batches, in turn, the last one of all others, where they were noted when it was
    first computed; otherwise the worker's."""

    def __str__(self) -> str:
        """For messages."""
        return f"shard {self.shard.index} (slots {self.shard.start} to {self.shard.stop})"


@dataclass(frozen=True)
class ShardDone:
    """What a worker says about a finished shard."""

    shard: int
    rows: int
    bytes: int
    seconds: float
    """Everything: reading, answering, encoding, writing."""
    teacher_seconds: float
    """Inside the teacher alone."""
    batch_size: int = 0
    """Rows of a batch when it was done: fewer than the run's where memory ran out."""
    halved: int = 0
    """How often memory ran out and a batch was cut in half."""
    asked_again: int = 0
    """Rows that were asked for once more, to see whether the teacher says the same."""
    worker: str = ""
    """The process that did it: host and number."""


@dataclass(frozen=True)
class ShardWork:
    """Builds a worker; small enough to be sent to one."""

    teacher: Teacher
    rows: Rows
    draft: Place
    batch_size: int
    cache: Place | None = None
    """Whose books are read; None: the cache that the draft lies in."""

    def __call__(self) -> ShardWorker:
        """Load the teacher in this process."""
        return ShardWorker(self)


class ShardWorker:
    """A loaded teacher that turns shards of rows into stored shards."""

    def __init__(self, work: ShardWork, asking: Asking | None = None) -> None:
        """Load the teacher, where it was not loaded yet, and open the draft."""
        self._work = work
        self._draft = Draft(work.draft)
        cache, asked = work.cache or work.draft.parent.parent, self._draft.asked.items()
        self._books = {n: read_book(cache, ask.book) for n, ask in asked if ask.book}
        # Lives as long as the worker, so that batches which do not fit are met once.
        self._asking = asking or Asking.of(work.teacher, work.rows, work.batch_size)
        _require_identity(work.teacher, self._draft)

    def __call__(self, task: ShardTask) -> ShardDone:
        """Compute and store one shard; a shard that already has its receipt is left alone."""
        started = time.perf_counter()
        shard, teacher_seconds = task.shard, 0.0
        if self._draft.receipt(shard.index) is not None:
            return ShardDone(shard.index, 0, 0, 0.0, 0.0)
        halved, again = self._asking.halved, 0
        gathered = {name: self._gathering(name) for name in self._draft.asked}
        sizes: list[int] = []
        for asked in self._asking.each(task.places, task.sizes):
            teacher_seconds += asked.seconds
            found = self._checked(asked)
            if task.look_twice and not sizes:
                before = time.perf_counter()
                again = require_steady(self._asking, self._checked, asked.places, found, task.band)
                started += time.perf_counter() - before  # no cost of the shard: once for a run
            sizes.append(len(asked.places))
            for name, values in found.items():
                gathered[name].add(values)
        errors = {name: each.error for name, each in gathered.items()}
        whole = {name: each.values for name, each in gathered.items()}
        receipt = self._draft.write(shard, whole, errors, self._books)
        stored = {f["path"]: f["bytes"] for s in receipt["signals"].values() for f in s["files"]}
        seconds, halved = time.perf_counter() - started, self._asking.halved - halved
        done = ShardDone(
            *(shard.index, len(task.places), sum(stored.values()), seconds, teacher_seconds),
            *(self._asking.batch_size, halved, again, f"{socket.gethostname()}:{os.getpid()}"),
        )
        cost = {"rows": done.rows, "seconds": seconds, "teacher_seconds": teacher_seconds}
        if self._asking.load_seconds is not None:
            cost["load_seconds"] = self._asking.load_seconds
        cost |= _noted(self._work.batch_size, sizes, halved)  # with it, repair gives the same bytes
        write_json(self._draft.path / "made" / f"{shard.index:05d}.json", cost)
        return done

    def _checked(self, asked: Asked) -> dict[str, Values]:
        """The signals of one batch; SignalError when one cannot be stored."""
        given = self._work.teacher, self._work.rows, asked.places, asked.shapes
        return checked(asked.answered, self._draft.asked, *given)

    def _gathering(self, name: str) -> Gathering:
        who = f"teacher {self._work.teacher.name!r}"
        return Gathering(who, name, self._draft.asked[name], self._books.get(name))


def _noted(batch_size: int, sizes: Sequence[int], halved: int) -> dict[str, Any]:
    """The batches that a shard was made of: `batch_size`, and where memory ran out, what came of it.

    `sizes` are those of the first batches; all others were as large as the last that is named.

    >>> _noted(256, [256, 256, 88], 0)
    {'batch_size': 256}
    >>> _noted(256, [256, 128, 128, 88], 1)
    {'batch_size': 128, 'halved': 1, 'sizes': [256, 128]}
    """
    whole = list(sizes)
    if len(whole) > 1 and whole[-1] < whole[-2]:
        whole.pop()  # what remained for the last batch
    while len(whole) > 1 and whole[-1] == whole[-2]:
        whole.pop()
    if len(whole) == 1 and (whole[0] == batch_size or len(sizes) == 1):
        return {"batch_size": batch_size}
    found: dict[str, Any] = {"batch_size": whole[-1]}
    if halved:
        found["halved"] = halved
    return found if len(whole) == 1 else {**found, "sizes": whole}


def _require_identity(teacher: Teacher, draft: Draft) -> None:
    """IdentityError when what was loaded here is not what was planned.

    Files may have changed since, or be others on this machine; so may the packages. After loading, so
    that no change before it is missed.
    """
    now = json.loads(canonical(teacher.identity()))
    if changed := differences(without_code(draft.identity), without_code(now)):
        raise IdentityError(
            f"teacher {teacher.name!r}, as worker {os.getpid()} on {socket.gethostname()} loaded it, is "
            f"not the one that was planned: {listed(changed, 3)}. Nothing of it was stored under the "
            "other's name. Give every worker the same files and packages, leave them alone while a "
            "teacher runs, and run again"
        )
