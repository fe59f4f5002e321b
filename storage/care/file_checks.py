"""One stored file against its receipt, read piece by piece: size, checksums, values that cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.encodings.part import Part
from stillroom.storage.encodings.product import Product
from stillroom.storage.encodings.sampled import Sampled
from stillroom.storage.encodings.topk import TopK
from stillroom.storage.errors import GARBLED, CorruptShardError, StillroomError
from stillroom.storage.files import pieces_of, size_of
from stillroom.storage.mapped import Mapping as FileMapping
from stillroom.storage.place import Place
from stillroom.storage.ragged import Ragged
from stillroom.storage.shards import StoredFile
from stillroom.storage.signal import Signal
from stillroom.storage.table import one_batch

_UNPACKED_BYTES = 2**18
"""Of packed rows that are looked at together."""
_EXPONENTS = {"float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


def file_problems(segment: Place, file: StoredFile, signal: Signal) -> Iterator[str]:
    """What is wrong with one file of a shard, in words; nothing when it is as it was written."""
    place = segment / file.path
    if not place.is_file():
        yield "is missing though its receipt is there"
        return
    if (found := size_of(place)) != file.bytes:
        yield f"holds {found:,} bytes, its receipt says {file.bytes:,}"
        return
    ranges = list(_ranges(file, signal))
    checksum, offset, odd = 0, 0, set()
    body = file.bytes - file.trailer
    for piece in pieces_of(place, 0, body):
        checksum = google_crc32c.extend(checksum, piece)
        odd |= {one.array for one in ranges if one.impossible(piece, offset)}
        offset += len(piece)
    trailer = b"".join(p.tobytes() for p in pieces_of(place, body, file.bytes))
    if f"{checksum:08x}" != file.crc32c:
        yield f"checksum {checksum:08x}, its receipt says {file.crc32c}: bytes were changed"
    elif trailer and trailer[::-1].hex() != file.crc32c:
        yield f"the checksum at its end reads {trailer[::-1].hex()}, its receipt says {file.crc32c}"
    else:
        if odd:
            yield f"holds NaN, infinity or a class that cannot be in {', '.join(sorted(odd))}"
        if signal.kind != "fixed" and (problem := _unreadable(place, file, signal)):
            yield problem


def _unreadable(place: Place, file: StoredFile, signal: Signal) -> str:
    content = (
        FileMapping(place, file.bytes).bytes
        if isinstance(place, Path)
        else np.frombuffer(place.read_bytes(), np.uint8)
    )
    try:
        batch = one_batch(pa.py_buffer(content))
        batch.validate(full=True)
        if set(batch.schema.names) != set(file.arrays) or len(batch) != file.layout["rows"]:
            return f"does not hold the {file.layout['rows']} rows of {', '.join(file.arrays)}"
        if signal.kind == "packed":
            return _packed(batch.column(signal.name), signal)
    except (pa.ArrowException, StillroomError, OSError, *GARBLED) as error:
        return f"is no Arrow file as it should be: {error}"
    return ""


def _packed(column: pa.Array, signal: Signal) -> str:
    """In words what is wrong with packed rows: each is unpacked, a few of them at a time."""
    if column.type != pa.large_binary():
        return f"holds packed rows as {column.type}"
    _, offsets, content = column.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(column) + 1, 8 * column.offset)
    values = np.frombuffer(content or b"", np.uint8)
    start = 0
    while start < len(column):
        stop = int(np.searchsorted(bounds, bounds[start] + _UNPACKED_BYTES, "right")) - 1
        stop = min(max(stop, start + 1), len(column))
        some = bounds[start : stop + 1]
        try:
            signal.unpacked({"": Ragged(values[some[0] : some[-1]], some - some[0])})
        except CorruptShardError as error:
            return f"holds a row among {start:,} to {stop:,} that cannot be unpacked: {error}"
        start = stop
    return ""


@dataclass(frozen=True)
class _Range:
    """Bytes `start` to `stop` of a file, and which values in them cannot be."""

    array: str
    start: int
    stop: int
    dtype: np.dtype[np.generic]
    exponent: int
    """All of these bits set: NaN or infinity; 0 where the values are no floating point."""
    limit: int
    """Values from here on cannot be; 0 for no limit."""

    def impossible(self, piece: NDArray[np.uint8], offset: int) -> bool:
        """Whether a piece of the file that begins at `offset` holds such a value."""
        size = self.dtype.itemsize
        low = max(self.start, offset)
        low += (self.start - low) % size
        count = (min(self.stop, offset + len(piece)) - low) // size
        if count <= 0:
            return False
        values = np.frombuffer(piece, self.dtype, count, low - offset)
        if self.exponent:
            mask = values.dtype.type(self.exponent)
            return bool(((values & mask) == mask).any())
        return bool((values >= self.limit).any())


def _ranges(file: StoredFile, signal: Signal) -> Iterator[_Range]:
    for part in signal.parts:
        name = signal.array_name(part)
        bfloat16 = part.dtype == "uint16" and "bfloat16" in signal.encoding
        exponent = 0x7F80 if bfloat16 else _EXPONENTS.get(part.dtype, 0)
        classes = signal.inner_shape[-1] if isinstance(signal.coding, TopK | Sampled) else 0
        limit = classes if part.name == "indices" else 0
        if isinstance(signal.coding, Product) and signal.coding.bits not in (8, 16):
            limit = 2**signal.coding.bits
        if name not in file.arrays or not (exponent or limit):
            continue
        start, stop = _extent(file, signal, part)
        size = np.dtype(part.dtype).itemsize
        yield _Range(name, start, stop, np.dtype(f"<u{size}"), exponent, limit)


def _extent(file: StoredFile, signal: Signal, part: Part) -> tuple[int, int]:
    """First byte of a part's values and the byte behind them."""
    if signal.kind == "fixed":
        return 0, file.bytes - file.trailer
    try:
        column = file.layout["columns"][signal.array_name(part)]
        start = int(column["values"])
        return start, start + int(column["elements"]) * part.row_bytes
    except GARBLED:
        return 0, 0
