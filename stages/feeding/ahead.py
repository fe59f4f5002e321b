"""Batches made ahead on a thread, which ends with whoever takes them."""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")
NAME = "stillroom batches"
"""What the thread is called."""


def ahead(source: Generator[Item, None, None], depth: int) -> Generator[Item, None, None]:
    """What `source` gives, up to `depth` items made before they are asked for.

    An exception of the source is raised where its item would have come, with its traceback. The
    thread begins with the first item that is asked for. It ends, and the source is closed, when all
    was taken, and when this generator is closed or nobody holds it any more: then this waits for the
    one item that is being made.
    """
    room, made, over = threading.Semaphore(depth), SimpleQueue[Any](), threading.Event()
    # The thread must not hold this generator, or it would never be seen that it was abandoned.
    thread = threading.Thread(target=_fill, args=(source, room, made, over), name=NAME, daemon=True)
    thread.start()
    try:
        while True:
            item, ended = made.get()
            if ended:
                if item is not None:
                    raise item
                return
            room.release()
            yield item
    finally:
        over.set()
        room.release()
        if threading.current_thread() is not thread:  # the collector may run there
            thread.join()


def _fill(
    source: Generator[Any, None, None],
    room: threading.Semaphore,
    made: SimpleQueue[Any],
    over: threading.Event,
) -> None:
    try:
        while True:
            room.acquire()
            if over.is_set():
                return
            made.put((next(source), False))
    except StopIteration:
        made.put((None, True))
    except BaseException as error:
        made.put((error, True))
    finally:
        source.close()
