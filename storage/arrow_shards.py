"""Ragged, text and packed signals: one Arrow IPC file per shard, uncompressed, one record batch.

Ragged parts are large_list columns (of fixed-size lists where an element has a shape), text is a
large_string column, packed rows are a large_binary column. The receipt keeps where in the file each
column's offsets and values start, so that our reader maps the file and needs no Arrow call per batch;
other libraries read it as Arrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.encodings.packed import Packed
from stillroom.storage.encodings.part import Part
from stillroom.storage.errors import GARBLED, CorruptShardError, SignalError
from stillroom.storage.files import crc32c, write_atomic
from stillroom.storage.gather import Extent, Extents, Int64s
from stillroom.storage.place import Place
from stillroom.storage.ragged import Ragged
from stillroom.storage.shards import FileTable, Run, StoredFile
from stillroom.storage.signal import Signal, Values

FOLDER = "records"
_OFFSET = np.dtype("<i8")


class ArrowShards:
    """The ShardFormat of ragged, text and packed signals."""

    def write(
        self, segment: Place, signal: Signal, shard: int, shard_rows: int, values: Values
    ) -> list[StoredFile]:
        """One Arrow file with a column for each part."""
        if signal.kind == "text":
            return self._write(segment, signal, shard, {signal.name: _text_column(signal, values)})
        return self.write_parts(segment, signal, shard, shard_rows, signal.coded(values))

    def write_parts(
        self, segment: Place, signal: Signal, shard: int, shard_rows: int, parts: Mapping[str, Any]
    ) -> list[StoredFile]:
        """The same of parts that are already encoded: Ragged by name (text and packed: of bytes)."""
        if signal.kind in ("text", "packed"):
            return self._write(segment, signal, shard, {signal.name: _strings(signal, parts[""])})
        columns = {
            signal.array_name(part): _column(
                part, parts[part.name].values, parts[part.name].offsets
            )
            for part in signal.parts
        }
        return self._write(segment, signal, shard, columns)

    def _write(
        self, segment: Place, signal: Signal, shard: int, columns: dict[str, pa.Array]
    ) -> list[StoredFile]:
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = np.frombuffer(sink.getvalue(), np.uint8)
        path = f"{FOLDER}/{signal.name}/{shard:05d}.arrow"
        size = write_atomic(segment / path, [content])
        layout = {"rows": len(batch), "columns": _layout(content, signal)}
        return [StoredFile(path, tuple(columns), size, f"{crc32c([content]):08x}", layout)]

    def open(self, signal: Signal, runs: Sequence[Run], *, check: bool) -> ArrowRows:
        """Map every file that the runs need."""
        return ArrowRows(signal, runs, check)


def _stored(part: Part) -> np.dtype[Any]:
    """Arrow packs bools into bits, which cannot be mapped; they are kept as bytes."""
    return np.dtype("uint8" if part.dtype == "bool" else part.dtype)


def _strings(signal: Signal, rows: Ragged) -> pa.Array:
    """A column of strings, of text or of bytes, over the rows' own memory."""
    bounds, content = (pa.py_buffer(np.ascontiguousarray(a)) for a in (rows.offsets, rows.values))
    kind = pa.large_string() if signal.kind == "text" else pa.large_binary()
    return pa.Array.from_buffers(kind, len(rows), [None, bounds, content])


def _text_column(signal: Signal, values: Values) -> pa.Array:
    try:
        column = pa.array(values, pa.large_string())
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SignalError(f"signal {signal.name!r} should be text: {error}") from error
    if column.null_count:
        raise SignalError(f"signal {signal.name!r}: {column.null_count:,} texts are None")
    return column


def _column(part: Part, values: NDArray[Any], offsets: Int64s) -> pa.Array:
    native = np.ascontiguousarray(values, part.dtype)
    column = pa.array(native.view(_stored(part)).reshape(-1))
    for size in reversed(part.shape):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), column)


def _layout(content: NDArray[np.uint8], signal: Signal) -> dict[str, dict[str, int]]:
    """Byte offsets of every column's offsets and values buffers in the finished file."""
    base = content.__array_interface__["data"][0]
    batch = pa.ipc.open_file(pa.py_buffer(content)).get_batch(0)
    found, strings = {}, signal.kind in ("text", "packed")
    for name in batch.schema.names:
        column = batch.column(name)
        offsets = column.buffers()[1]
        if strings:
            values, elements = column.buffers()[2], 0
        else:
            inner, elements = column.values, len(column.values)
            while pa.types.is_fixed_size_list(inner.type):
                inner = inner.values
            values = inner.buffers()[1]
        # An empty column may have no buffer at all; nothing will be read from it.
        found[name] = {
            "offsets": offsets.address - base if offsets is not None and offsets.size else 0,
            "values": values.address - base if values is not None and values.size else 0,
            "elements": elements if not strings else (values.size if values else 0),
        }
    return found


class ArrowRows:
    """Rows of one ragged, text or packed signal over any number of files."""

    def __init__(self, signal: Signal, runs: Sequence[Run], check: bool) -> None:
        """Map the files; nothing is read yet."""
        self._signal = signal
        files = FileTable(check)
        self._columns: dict[str, _Column] = {}
        for part in signal.parts:
            name = signal.array_name(part)
            extents, layouts = [], {}
            for run in runs:
                stored = run.stored(name)
                file = files.add(run.segment, stored)
                try:
                    found = stored.layout["columns"][name]
                    layouts[file] = {k: int(found[k]) for k in ("offsets", "values", "elements")}
                except GARBLED as error:
                    raise CorruptShardError(
                        f"the receipt of {run.segment / stored.path} does not describe {name}"
                    ) from error
                place = layouts[file]["offsets"] + run.slot * _OFFSET.itemsize
                extents.append(Extent(run.start, run.rows, file, place))
            # A row's offset is read together with the next one, where the row ends.
            size = _OFFSET.itemsize
            offsets = Extents(extents, files.mappings, size, files.touch, read_bytes=2 * size)
            self._columns[part.name] = _Column(part, offsets, layouts, files)

    def missing(self, positions: Int64s) -> Int64s:
        """Indices into `positions` of those that are not stored."""
        return next(iter(self._columns.values())).offsets.missing(positions)

    def read(self, positions: Int64s, *, decode: bool = True) -> Any:
        """Ragged rows (text: a list of strings; packed rows of one shape: an array), or the parts by
        name as they are stored."""
        parts: dict[str, Any] = {n: column.read(positions) for n, column in self._columns.items()}
        if self._signal.kind == "text":
            return _texts(parts[""]) if decode else parts
        if not decode:
            return parts
        if isinstance(self._signal.coding, Packed):
            parts = self._signal.unpacked(parts)
            if not self._signal.ragged:
                return self._signal.coding.decode(parts, self._signal.inner_shape)
        some = next(iter(parts.values()))
        if any(not np.array_equal(part.offsets, some.offsets) for part in parts.values()):
            raise CorruptShardError(f"parts of signal {self._signal.name!r} differ in length")
        arrays = {name: part.values for name, part in parts.items()}
        return Ragged(self._signal.coding.decode(arrays, self._signal.inner_shape), some.offsets)


def _texts(rows: Ragged) -> list[str]:
    try:
        return [bytes(row).decode() for row in rows]
    except UnicodeDecodeError as error:
        raise CorruptShardError(f"a stored text is not UTF-8: {error}") from error


class _Column:
    """One part: the offsets of every row, then the elements between them."""

    def __init__(
        self, part: Part, offsets: Extents, layouts: dict[int, dict[str, int]], files: FileTable
    ) -> None:
        self.offsets = offsets
        self._part = part
        self._base = np.zeros(len(files.mappings), np.int64)
        self._elements = np.zeros(len(files.mappings), np.int64)
        for file, layout in layouts.items():
            end = layout["values"] + layout["elements"] * part.row_bytes
            if min(layout.values()) < 0 or end > len(files.mappings[file].bytes):
                raise CorruptShardError(f"a receipt places values of {part} outside its file")
            self._base[file] = files.mappings[file].address - offsets.low + layout["values"]
            self._elements[file] = layout["elements"]

    def read(self, positions: Int64s) -> Ragged:
        extent = self.offsets.locate(positions)
        files = self.offsets.files(extent)
        # A row's start and end are neighbours in the offsets buffer.
        places = self.offsets.offsets(positions, extent)
        bounds = self.offsets.read(places, 2 * _OFFSET.itemsize).view(_OFFSET).reshape(-1, 2)
        starts, lengths = bounds[:, 0], np.diff(bounds)[:, 0]
        if (
            (starts < 0).any()
            or (bounds[:, 1] < starts).any()  # their difference may overflow
            or (bounds[:, 1] > self._elements[files]).any()
        ):
            raise CorruptShardError("a ragged row's offsets point outside its file")
        offsets = np.zeros(len(positions) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        size = self._part.row_bytes
        first = self._base[files] + starts * size
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        items = self.offsets.read(np.repeat(first, lengths) + within * size, size)
        dtype = np.dtype(self._part.dtype).newbyteorder("<")
        return Ragged(items.view(dtype).reshape(-1, *self._part.shape), offsets)
