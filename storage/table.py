"""Small Arrow files that are read whole: one record batch, checked before anything in it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from stillroom.storage.errors import GARBLED, CorruptShardError
from stillroom.storage.files import crc32c, write_atomic


def write_table(path: Path, batch: pa.RecordBatch) -> str:
    """Write the batch atomically; return the file's CRC-32C as eight hexadecimal digits."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = np.frombuffer(sink.getvalue(), np.uint8)
    write_atomic(path, [content])
    return f"{crc32c([content]):08x}"


def read_table(path: Path, checksum: str | None) -> pa.RecordBatch:
    """Map the file's batch; CorruptShardError when it is not what was written, or holds nulls."""
    try:
        with pa.memory_map(str(path)) as source:
            content = source.read_buffer()
        if checksum is not None and f"{crc32c([np.frombuffer(content, np.uint8)]):08x}" != checksum:
            raise ValueError("its checksum is not the one that was noted when it was written")
        batch = pa.ipc.open_file(content).get_batch(0)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("a value is null")
    except (pa.ArrowException, OSError, *GARBLED) as error:
        raise CorruptShardError(f"{path} cannot be read: {error}") from error
    return batch
