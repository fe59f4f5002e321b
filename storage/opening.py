"""Opening stored rows wherever they lie: mapped in a folder, by the mirror from an object store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillroom.storage.books import book_place, read_book
from stillroom.storage.errors import CorruptShardError, SignalError
from stillroom.storage.files import remote
from stillroom.storage.folder import shard_format
from stillroom.storage.place import Place
from stillroom.storage.shards import RowSource, Run
from stillroom.storage.signal import Signal


def open_rows(
    cache: Place, signal: Signal, runs: Sequence[Run], *, check: bool, sharing: int = 1
) -> RowSource:
    """A reader over runs of a signal of the cache at that place (or of a segment there).

    `sharing` readers share the mirror's room. CorruptShardError for a file that is missing or of
    another size; of objects, when they are first read.
    """
    form = shard_format(signal)
    if isinstance(cache, Path):
        return form.open(signal, runs, check=check)
    from stillroom.storage.mirrored import MirroredRows

    mirror = remote(cache).mirror
    room = mirror.limit_bytes // max(sharing, 1)
    return MirroredRows(signal, runs, form, check=check, mirror=mirror, room_bytes=room)


def with_book(cache: Place, signal: Signal, *, check: bool = True) -> Signal:
    """The signal with its book at hand, as decoding needs it; itself where it has none.

    CorruptShardError when the book is missing, not as it was written, or another signal's.
    """
    if not signal.book:
        return signal
    book = read_book(cache, signal.book, check=check)
    try:
        return signal.bound(book)
    except SignalError as error:
        raise CorruptShardError(f"{book_place(cache, signal.book)}: {error}") from error
