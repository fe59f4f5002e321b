"""Stopping at a border: what is in hand is finished and kept, nothing new is begun.

One Ctrl-C (SIGINT) or SIGTERM asks for it, a second one ends the process at once. Either way the next
run goes on where this one stopped; after one, it computes nothing twice.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
FINISHING = "finishing what is in hand (once more Ctrl-C: stop at once)"


class Stopped(KeyboardInterrupt):
    """Work ended at a border because somebody asked for it; no `except Exception` swallows it."""


class Stop:
    """Whether somebody asked for an end."""

    def __init__(self) -> None:
        """Nobody did yet."""
        # No lock and no Event: a signal's handler sets it, wherever the process is just then.
        self.asked = False

    def ask(self) -> None:
        """Ask for it, from any thread."""
        self.asked = True

    def require(self) -> None:
        """Stopped once it was asked for."""
        if self.asked:
            raise Stopped("stopped as asked; run again to go on")


class Until(Generic[Item]):
    """Items up to the one before which an end was asked for.

    >>> stop = Stop()
    >>> until = Until([1, 2, 3], stop)
    >>> next(until), stop.ask(), list(until)
    (1, None, [])
    """

    def __init__(self, items: Iterable[Item], stop: Stop | None) -> None:
        """Nothing is drawn yet; without a `stop` these are all items."""
        self._items, self._stop = iter(items), stop
        self._cut = False

    def __iter__(self) -> Iterator[Item]:
        """Itself."""
        return self

    def __next__(self) -> Item:
        """The next item, if nobody asked for an end."""
        item = next(self._items)
        if self.asked:
            self._cut = True
            raise StopIteration
        return item

    @property
    def stoppable(self) -> bool:
        """Whether anybody can ask for an end."""
        return self._stop is not None

    @property
    def asked(self) -> bool:
        """Whether an end was asked for."""
        return self._stop is not None and self._stop.asked

    def give_back(self, count: int = 1) -> None:
        """So many items that were drawn will not be done."""
        self._cut = self._cut or count > 0

    def require(self) -> None:
        """Stopped when items were left."""
        if self._cut and self._stop is not None:
            self._stop.require()


@contextmanager
def stopping(stop: Stop | None = None) -> Iterator[Stop]:
    """While the block runs, one Ctrl-C or SIGTERM asks for an end and says so, a second one raises
    KeyboardInterrupt. In a thread that is not the main one signals are left as they are.
    """
    stop = stop or Stop()

    def hear(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.ask()
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{FINISHING}\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def own_signals() -> Iterator[None]:
    """What the block does to the handlers of these signals is undone after it: Ray installs its own
    for SIGTERM when it starts, which ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
