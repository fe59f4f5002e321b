"""Hashes of rows' content: xxh3_128 of each row, whatever the column lies in.

A row's hash is the same whether its column is a numpy array in memory, a Parquet file or a Hugging
Face data set, so that changing the container teaches nothing again. Python's loop over rows costs
more than hashing them: blocks of rows that the allocator serves from what it freed last are hashed by
one C-level `map`. Threads help only where a row is long enough for xxhash to let go of Python's lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from stillroom.storage.folder import Hashes

Stored: TypeAlias = NDArray[Any] | Any
"""A column at rest: (n, ...) numbers, or Arrow large_string or large_binary."""

_BLOCK_ROWS = 4096
"""Measured, 1,000,000 rows of 64 bytes: 0.10 s in blocks of 1,024 to 8,192, 0.25 s in larger ones,
0.4 s in one."""
_SHORT_ROW_BYTES = 1 << 10
"""Shorter rows are copied out of a block by one call; longer ones are hashed where they lie."""
_LONG_ROW_BYTES = 1 << 14
"""From here on blocks are hashed on threads."""
_STREAM_BYTES = 1 << 26
"""Of a column that is longer, pieces of this size are hashed on threads and then their hashes."""
THREADS = min(os.cpu_count() or 1, 16)


def kind_of(column: Stored) -> str:
    """Dtype and shape of a row, as they enter its hash."""
    if isinstance(column, np.ndarray):
        return f"{column.dtype.str}{column.shape[1:]}"
    return str(column.type)


def hash_rows(columns: Mapping[str, Stored]) -> Hashes:
    """(n,) items of 16 bytes: of a column's bytes, of the columns' hashes where there are several.

    Name, dtype and shape enter as the seed: the same bytes of another kind are another row. The order
    of columns does not matter.
    """
    return join_hashes({name: _hash_column(name, column) for name, column in columns.items()})


def join_hashes(columns: Mapping[str, Hashes]) -> Hashes:
    """The hashes of rows, from those of each column: as `hash_rows` makes them."""
    names = sorted(columns)
    if len(names) == 1:
        return columns[names[0]]
    joined = np.stack([columns[n].view(np.uint8).reshape(-1, 16) for n in names], axis=1)
    return _hash_column("+".join(names), joined)


def kind_of_one(value: Any) -> str:
    """`kind_of` of a column that holds this value of one row: a text, bytes, an array or a number."""
    if isinstance(value, str | bytes):
        return "large_string" if isinstance(value, str) else "large_binary"
    array = np.asarray(value)
    return f"{array.dtype.str}{array.shape}"


def hash_one(name: str, value: Any) -> bytes:
    """What `hash_rows` makes of one row of a column: 16 bytes."""
    seed = xxhash.xxh64_intdigest(f"{name}|{kind_of_one(value)}".encode())
    if isinstance(value, str):
        value = value.encode()
    content = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
    return xxhash.xxh3_128_digest(content, seed)


def _hash_column(name: str, column: Stored) -> Hashes:
    seed = xxhash.xxh64_intdigest(f"{name}|{kind_of(column)}".encode())

    long = column.nbytes >= _LONG_ROW_BYTES * max(len(column), 1)
    step = _BLOCK_ROWS // 64 if long else _BLOCK_ROWS

    def block(start: int) -> bytes:
        rows = _as_bytes(column[start : start + step])
        return b"".join(map(xxhash.xxh3_128_digest, rows, repeat(seed)))

    starts = range(0, len(column), step)
    if not long:
        return np.frombuffer(b"".join(map(block, starts)), "V16")
    with ThreadPoolExecutor(THREADS) as pool:
        return np.frombuffer(b"".join(pool.map(block, starts)), "V16")


def _as_bytes(block: Stored) -> Iterable[Any]:
    """The bytes of each row."""
    if not isinstance(block, np.ndarray):
        rows: list[bytes] = block.cast(pa.large_binary()).to_pylist()
        return rows
    flat = np.ascontiguousarray(block).view(np.uint8).reshape(len(block), -1)
    width = flat.shape[1]
    if width == 0:
        return repeat(b"", len(block))
    return flat.view(f"V{width}").reshape(-1).tolist() if width < _SHORT_ROW_BYTES else flat


def hash_whole(columns: Iterable[tuple[str, Stored]]) -> str:
    """xxh3_128 over whole columns, as hexadecimal: at the speed of memory."""
    hasher = xxhash.xxh3_128()
    with ThreadPoolExecutor(THREADS) as pool:
        for name, column in columns:
            hasher.update(f"{name}|{kind_of(column)}|{len(column)}|".encode())
            for buffer in _buffers(column):
                content = memoryview(buffer).cast("B")
                if len(content) <= _STREAM_BYTES:
                    hasher.update(content)
                else:
                    cuts = range(0, len(content), _STREAM_BYTES)
                    pieces = (content[i : i + _STREAM_BYTES] for i in cuts)
                    for digest in pool.map(xxhash.xxh3_128_digest, pieces):
                        hasher.update(digest)
    return hasher.hexdigest()


def _buffers(column: Stored) -> list[Any]:
    if isinstance(column, np.ndarray):
        return [np.ascontiguousarray(column).reshape(-1).view(np.uint8)]
    # Joining copies a slice, so that what lies beside it in its buffers does not count.
    return [b for b in pa.concat_arrays([column]).buffers() if b is not None]
