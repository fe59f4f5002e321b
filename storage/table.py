"""Small Arrow files that are read whole: one record batch, checked before anything in it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.errors import GARBLED, CorruptShardError, StillroomError
from stillroom.storage.files import crc32c, read_whole, write_atomic
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
        batch = pa.ipc.open_file(content).get_batch(0)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("a value is null")
    except StillroomError:
        raise
    except (pa.ArrowException, OSError, *GARBLED) as error:
        raise CorruptShardError(f"{path} cannot be read: {error}") from error
    return batch


def _mapped(path: Place) -> Any:
    if not isinstance(path, Path):
        return pa.py_buffer(read_whole(path))
    with pa.memory_map(str(path)) as mapped:
        return mapped.read_buffer()
