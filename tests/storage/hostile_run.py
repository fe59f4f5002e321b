"""Made-up and damaged caches by number: input n is the same on every run and machine.

Each input changes a small sound cache in one to three places (bytes, fields of JSON, tables, names) and
mostly makes all checksums right again, as somebody would who wants to be believed. Then everything that
reads a cache is asked about it: only our own errors may come of that.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.storage.cache import Cache
from stillroom.storage.care.compacting import compact
from stillroom.storage.care.mending import Mending
from stillroom.storage.care.pruning import prune
from stillroom.storage.care.verifying import verify
from stillroom.storage.errors import GARBLED, NotACacheError, StillroomError
from stillroom.storage.lease import active_leases
from stillroom.storage.reader import Reader
from tests.storage.hostile import Victim
from tests.storage.hostile_changes import change

SECONDS = 20
"""More than any input may take, on a busy machine."""
ROOM_BYTES = 3 * 2**30
"""Of address space that may be taken on top of what the process has."""


def watch(victim: Victim) -> Callable[[], None]:
    """Note every path that Python opens, lists, makes, moves or removes; call it to stop."""
    watching = [True]
    events = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in events:
            for given in arguments[: 2 if event == "os.rename" else 1]:
                if isinstance(given, str | bytes | os.PathLike):
                    victim.opened.add(os.fsdecode(os.fspath(given)))

    sys.addaudithook(hook)
    return watching.clear


@contextmanager
def limits() -> Iterator[None]:
    """Too much memory is a MemoryError, and what hangs an AssertionError."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)

    def hangs(*given: Any) -> None:
        raise AssertionError(f"took longer than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def look(victim: Victim, number: int | None = None) -> None:
    """What reads a cache and has no teacher: all of it, or a quarter that the number of the input draws.

    Only our errors may come up.
    """
    path, drawn = victim.path, random.Random(number)

    def cache() -> Cache:
        return Cache(path)

    actions: dict[str, Callable[[], object]] = {
        "verify": lambda: verify(path, threads=1),
        "prune": lambda: prune(cache(), keep_last=1, draft_days=0, quarantine=True, dry_run=True),
        "prune old": lambda: prune(cache(), keep_days=1, draft_days=1, dry_run=True),
        "compact": lambda: compact(cache(), dry_run=True),
        "say": lambda: [repr(cache()), cache().quarantined(), active_leases(path / "leases")],
        "leases": lambda: [str(holder) for _, holder in active_leases(path / "leases")],
        "segments": lambda: [(s.keys, s.hashes, s.problems()) for s in cache().segments()],
        "drafts": lambda: [(d.keys, d.receipts()) for d in cache().drafts()],
        "mend": lambda: _mend(cache()),
        "read": lambda: _gather(cache(), check=True),
        "read unchecked": lambda: _gather(cache(), check=False),
    }
    for name, action in actions.items():
        if number is not None and drawn.random() > 1 / 4:
            continue
        try:
            action()
        except StillroomError as error:
            # Verify is there to say what is wrong, not to fail of it.
            assert name != "verify" or isinstance(error, NotACacheError), error  # noqa: PT017
            victim.errors[f"{name}: {type(error).__name__}" if str(error) else "no words"] += 1


def _mend(cache: Cache) -> None:
    """As much of repair as needs no teacher and writes nothing."""
    for place in cache.folders():
        mending = Mending(place, set())
        with suppress(StillroomError, *GARBLED):  # as repair does
            mending.without_teacher()
            mending._own_rows()
        with suppress(StillroomError, *GARBLED):
            mending._rebuilt()


def _gather(cache: Cache, check: bool) -> None:
    snapshot = cache.snapshot()
    for name in snapshot.signals:
        with suppress(StillroomError):
            reader = Reader(snapshot, [name], check=check)
            reader.take(np.arange(min(len(snapshot), 20)))
    snapshot.positions(["k3", "k0"])


ALLOWED = ("/proc/", "/sys/", "/dev/", sys.prefix, sys.base_prefix)
"""Of the interpreter itself: modules that are imported late, and what a process knows of itself."""


def check_opened(victim: Victim) -> None:
    """Nothing but the cache was opened, listed, made or removed."""
    inside = f"{victim.path}"
    project = str(Path(__file__).parents[2])
    for name in victim.opened:
        if name.startswith((inside, *ALLOWED)) or (
            name.startswith(project) and name.endswith((".py", ".pyc"))
        ):
            continue
        raise AssertionError(f"{name} was opened, which is none of the cache's")
    victim.opened.clear()


KINDS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("x", "text"), 1),
    (("x", "rag"), 2),
    (("top",), 1),
    (("text",), 2),
)
"""Signals and shards of the caches that take turns."""


@contextmanager
def victims(folder: Path) -> Iterator[list[Victim]]:
    """The sound caches, watched."""
    made = [Victim.at(folder / str(i) / "c", *kind) for i, kind in enumerate(KINDS)]
    stops = [watch(victim) for victim in made]
    try:
        yield made
    finally:
        for stop in stops:
            stop()


def run(made: list[Victim], numbers: range) -> float:
    """Every input of these numbers; seconds. The number of one that fails is in the error."""
    began = time.monotonic()
    with limits():
        for number in numbers:
            words, victim = "nothing", made[number % len(made)]
            try:
                words = change(victim, number)
                signal.alarm(SECONDS)
                victim.opened.clear()
                look(victim, number)
                check_opened(victim)
            except Exception as error:
                raise AssertionError(f"input {number} ({words}): {error!r}") from error
            finally:
                signal.alarm(0)
                victim.restore()
    for victim in made:
        assert "no words" not in victim.errors
    return time.monotonic() - began
