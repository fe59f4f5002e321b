"""Small Arrow files that are read whole: one record batch, checked before anything in it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.errors import GARBLED, CorruptShardError, StillroomError
from stillroom.storage.files import crc32c, read_whole, require_regular, write_atomic
from stillroom.storage.place import Place
from stillroom.storage.sealed import read_sealed


def table_bytes(batch: pa.RecordBatch) -> tuple[NDArray[np.uint8], str]:
    """The batch as an Arrow file, and its CRC-32C as eight hexadecimal digits."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = np.frombuffer(sink.getvalue(), np.uint8)
    return content, f"{crc32c([content]):08x}"


def write_table(path: Place, batch: pa.RecordBatch) -> str:
    """Write the batch atomically; return the file's CRC-32C as eight hexadecimal digits."""
    content, checksum = table_bytes(batch)
    write_atomic(path, [content])
    return checksum


def read_table(path: Place, checksum: str | None) -> pa.RecordBatch:
    """Map the file's batch; CorruptShardError when it is not what was written, or holds nulls.

    With a checksum the file is one that never changes.
    """
    try:
        content = _mapped(path) if checksum is None else read_sealed(path, checksum, _mapped)
        batch = one_batch(content)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("a value is null")
    except StillroomError:
        raise
    except (pa.ArrowException, OSError, *GARBLED) as error:
        raise CorruptShardError(f"{path} cannot be read: {error}") from error
    return batch


def one_batch(content: pa.Buffer) -> pa.RecordBatch:
    """The batch of an Arrow file as we write them: a schema, one uncompressed batch; nothing is copied.

    ValueError or an Arrow error for anything else. Compressed bytes would not tell what memory they
    take: three kilobytes can become a hundred megabytes.
    """
    messages = pa.ipc.MessageReader.open_stream(content.slice(min(_MAGIC_BYTES, content.size)))
    try:
        schema, batch = messages.read_next_message(), messages.read_next_message()
    except StopIteration:
        raise ValueError("it ends before its batch") from None
    if (schema.type, batch.type) != ("schema", "record batch"):
        raise ValueError(f"{schema.type} and {batch.type}, expected a schema and a record batch")
    if _is_compressed(bytes(batch.metadata)):
        raise ValueError("its batch is compressed")
    return pa.ipc.read_record_batch(batch, pa.ipc.read_schema(schema))


_MAGIC_BYTES = 8
"""Of an Arrow file before the stream of messages that it holds."""
_HEADER, _COMPRESSION = 2, 3
"""Fields of the tables Message and RecordBatch in Arrow's Message.fbs."""


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch's flatbuffer has the field `compression`, which pyarrow does not tell."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(metadata[at : at + size], "little", signed=size == 4)

    def field(table: int, index: int) -> int:
        """Where a field of a table lies; 0 where it is absent."""
        known = table - number(table, 4)
        at = 4 + 2 * index
        offset = number(known + at, 2) if at < number(known, 2) else 0
        return table + offset if offset else 0

    header = field(number(0, 4), _HEADER)
    return field(header + number(header, 4), _COMPRESSION) != 0


def _mapped(path: Place) -> Any:
    if not isinstance(path, Path):
        return pa.py_buffer(read_whole(path))
    require_regular(path)
    with pa.memory_map(str(path)) as mapped:
        return mapped.read_buffer()
