"""Books: arrays that an encoding needs and all rows share, such as a head's matrix or a codebook.

A book is one Arrow file of one row, `books/<digest>.arrow`, with a column for each array. Its name is
the SHA-256 of its bytes, so it is its own checksum, never changes, and equal books are one file. It
is written before anything that names it.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa

from stillroom.storage.encodings.part import Array
from stillroom.storage.errors import GARBLED, CorruptShardError, FormatError, SignalError
from stillroom.storage.files import children, pieces_of, size_of, write_atomic
from stillroom.storage.place import Place
from stillroom.storage.sealed import read_sealed
from stillroom.storage.table import one_batch, table_bytes

FOLDER = "books"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[0-9a-f]{64}\.arrow")
_KEPT_BYTES = 2**28
"""A narrower array that is no larger than this as float32 is converted once, not at every use."""


@dataclass(frozen=True, eq=False)
class Book:
    """Named arrays, as they are stored: bfloat16 as uint16. Those of a folder are memory-mapped."""

    digest: str
    """SHA-256 of the file, 64 hexadecimal digits."""
    arrays: Mapping[str, Array]
    _kept: dict[str, Array] = field(default_factory=dict, repr=False)

    def wide(self, name: str) -> Array:
        """An array for computing: `widened` once for all where that is not too large."""
        array = self.arrays[name]
        if array.size * 4 > _KEPT_BYTES:
            return array
        return self._kept.setdefault(name, widened(array))


def widened(array: Array) -> Array:
    """Floating point of at least 32 bits with the same values; uint16 is bfloat16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def checked_digest(digest: str) -> str:
    """A digest that is safe as a file's name; FormatError for anything else."""
    if not _DIGEST.fullmatch(digest):
        raise FormatError(f"{digest!r} names no book; expected 64 hexadecimal digits")
    return digest


def book_place(cache: Place, digest: str) -> Place:
    """Where a book of the cache at that place lies."""
    return cache / FOLDER / f"{checked_digest(digest)}.arrow"


def book_of(place: Place) -> str | None:
    """The digest that a file's name states; None where it is no book's name."""
    return place.name.partition(".")[0] if _NAME.fullmatch(place.name) else None


def books(cache: Place) -> list[str]:
    """The digests of all books of a cache, in order."""
    found = [book_of(place) for place in children(cache / FOLDER)]
    return sorted(digest for digest in found if digest is not None)


def file_digest(place: Place) -> str:
    """SHA-256 of a file, read piece by piece."""
    hasher = hashlib.sha256()
    for piece in pieces_of(place):
        hasher.update(piece.data)
    return hasher.hexdigest()


def write_book(cache: Place, arrays: Mapping[str, Array]) -> str:
    """Store arrays as a book, durable when this returns; its digest.

    A function of names, dtypes, shapes and values alone. SignalError for an array without a value, or
    of a dtype that is no number's.
    """
    columns = {name: _column(name, np.asarray(arrays[name])) for name in sorted(arrays)}
    content, _ = table_bytes(pa.record_batch(list(columns.values()), names=list(columns)))
    digest = hashlib.sha256(content.data).hexdigest()
    place = book_place(cache, digest)
    if size_of(place) != len(content) or file_digest(place) != digest:
        write_atomic(place, [content])
    return digest


def _column(name: str, array: Array) -> pa.Array:
    if array.size == 0 or array.ndim == 0 or array.dtype.kind not in "iuf":
        raise SignalError(
            f"array {name!r} of a book is {array.dtype} of shape {array.shape}; expected numbers, at "
            "least one, in at least one axis"
        )
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    kind = pa.from_numpy_dtype(array.dtype.newbyteorder("="))
    column = pa.Array.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
    for size in reversed(array.shape):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


_open: WeakValueDictionary[tuple[Any, ...], Book] = WeakValueDictionary()
_lock = threading.Lock()


def read_book(cache: Place, digest: str, *, check: bool = True) -> Book:
    """A book of the cache at that place; opened once a process, as long as somebody holds it.

    Raises CorruptShardError when it is missing or not what was written, FormatError for a digest that
    is none. `check=False` trusts the stored bytes.
    """
    place = book_place(cache, digest)
    key = (str(place), _stamp(place), check)
    with _lock:
        book = _open.get(key)
        if book is None:
            book = _open[key] = Book(digest, _arrays(place, digest, check))
    return book


def _stamp(place: Place) -> Any:
    """What changes when somebody writes to the file, so that it is looked at anew."""
    if not isinstance(place, Path):
        return None
    try:
        state = place.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _arrays(place: Place, digest: str, check: bool) -> dict[str, Array]:
    if isinstance(place, Path) and not place.is_file():
        raise CorruptShardError(
            f"{place} is missing, without which rows that were encoded with it cannot be read; "
            "restore it, or repair the cache"
        )
    try:
        sum_of = _sha256 if check else lambda content: digest
        batch = one_batch(read_sealed(place, digest, _mapped, sum_of))
        batch.validate(full=True)
        if len(batch) != 1:
            raise ValueError(f"it holds {len(batch):,} rows, expected one")
        return {name: _array(batch.column(name)) for name in batch.schema.names}
    except CorruptShardError:
        raise
    except (pa.ArrowException, OSError, *GARBLED) as error:
        raise CorruptShardError(f"{place} is no book: {error}") from error


def _mapped(path: Path) -> pa.Buffer:
    with pa.memory_map(str(path)) as mapped:
        return mapped.read_buffer()


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def _array(column: pa.Array) -> Array:
    """The values of a column of one row: no copy, and nothing but numbers."""
    shape: list[int] = []
    while pa.types.is_fixed_size_list(column.type):
        if column.null_count or column.offset:
            raise ValueError("a list is null, or does not begin at the first value")
        shape.append(column.type.list_size)
        column = column.values
    if not shape or column.null_count:
        raise ValueError(f"a column of {column.type} is no array")
    values: Array = column.to_numpy(zero_copy_only=True)
    if values.dtype.kind not in "iuf" or values.size == 0:
        raise ValueError(f"a column of {values.size} values of {values.dtype}")
    return values.reshape(shape)
