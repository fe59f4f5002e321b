"""Fixed-shape signals: Zarr v3 arrays with raw little-endian chunks and crc32c, one chunk a shard.

A chunk file is the shard's rows followed by four bytes of checksum, so any Zarr reader opens it and
ours maps it. The last chunk is filled up with zero rows, as Zarr demands. Chunks are written before
the metadata: zarr.json appears when the segment is complete.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.storage.encodings.part import Part
from stillroom.storage.files import crc32c, write_atomic
from stillroom.storage.gather import Extent, Extents, Int64s
from stillroom.storage.place import Place
from stillroom.storage.shards import FileTable, Run, StoredFile
from stillroom.storage.signal import Signal, Values

FOLDER = "signals"
_TRAILER = 4
_filtering = threading.Lock()


def _little(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


class ZarrShards:
    """The ShardFormat of fixed-shape signals."""

    def write(
        self, segment: Place, signal: Signal, shard: int, shard_rows: int, values: Values
    ) -> list[StoredFile]:
        """One chunk file for each part of the signal."""
        return self.write_parts(segment, signal, shard, shard_rows, signal.coded(values))

    def write_parts(
        self, segment: Place, signal: Signal, shard: int, shard_rows: int, parts: Mapping[str, Any]
    ) -> list[StoredFile]:
        """The same of parts that are already encoded, by name."""
        written = []
        for part in signal.parts:
            rows = np.ascontiguousarray(parts[part.name], _little(part.dtype))
            padding = np.zeros((shard_rows - len(rows)) * part.row_bytes, np.uint8)
            body = [rows.reshape(-1).view(np.uint8), padding]
            checksum = crc32c(body)
            trailer = checksum.to_bytes(_TRAILER, "little")
            index = "/".join([str(shard), *("0" for _ in part.shape)])
            name = signal.array_name(part)
            path = f"{FOLDER}/{name}/c/{index}"
            size = write_atomic(segment / path, [*body, trailer])
            layout = {"rows": len(rows)}
            written.append(
                StoredFile(path, (name,), size, f"{checksum:08x}", layout, trailer=_TRAILER)
            )
        return written

    def open(self, signal: Signal, runs: Sequence[Run], *, check: bool) -> ZarrRows:
        """Map every chunk that the runs need."""
        return ZarrRows(signal, runs, check)


def describe_arrays(segment: Place, signals: Sequence[Signal], rows: int, shard_rows: int) -> None:
    """Write zarr.json for the group and for each array."""
    for path, content in array_metadata(signals, rows, shard_rows).items():
        write_atomic(segment / path, [content])


def array_metadata(signals: Sequence[Signal], rows: int, shard_rows: int) -> dict[str, bytes]:
    """Place in the segment and content of every zarr.json, made by zarr-python itself."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    made: dict[str, Any] = {}
    store = MemoryStore(made)
    group = zarr.create_group(store, zarr_format=3)
    for signal in signals:
        for part in signal.parts:
            kind = np.dtype(part.dtype).kind
            group.create_array(
                signal.array_name(part),
                shape=(rows, *part.shape),
                chunks=(shard_rows, *part.shape),
                dtype=part.dtype,
                # A chunk that got lost then reads as NaN in other libraries, not as zeros.
                fill_value=float("nan") if kind == "f" else 0,
                filters=None,
                compressors=[Crc32cCodec()],
                dimension_names=_dimensions(signal, part),
                attributes={"stillroom": {"signal": signal.name, **signal.to_json()}},
            )
    # The filters are the process's own: two threads that restore them would mix them up.
    with _filtering, warnings.catch_warnings():
        # Zarr v3 does not specify consolidated metadata yet; who does not know it ignores it, and
        # xarray warns where it is absent.
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        zarr.consolidate_metadata(store)
    # The group's own metadata last: it lists the arrays.
    ordered = sorted(made.items(), key=lambda item: (item[0] == "zarr.json", item[0]))
    return {f"{FOLDER}/{name}": buffer.to_bytes() for name, buffer in ordered}


def _dimensions(signal: Signal, part: Part) -> tuple[str, ...]:
    return ("row", *(f"{signal.array_name(part)}_{axis}" for axis in range(len(part.shape))))


class ZarrRows:
    """Rows of one fixed-shape signal over any number of chunks."""

    def __init__(self, signal: Signal, runs: Sequence[Run], check: bool) -> None:
        """Map the chunk files; nothing is read yet."""
        self._signal = signal
        self._extents: dict[str, Extents] = {}
        for part in signal.parts:
            files, extents = FileTable(check), []
            for run in runs:
                stored = run.stored(signal.array_name(part))
                offset = run.slot * part.row_bytes
                extents.append(Extent(run.start, run.rows, files.add(run.segment, stored), offset))
            self._extents[part.name] = Extents(extents, files.mappings, part.row_bytes, files.touch)

    def missing(self, positions: Int64s) -> Int64s:
        """Indices into `positions` of those that are not stored."""
        return next(iter(self._extents.values())).missing(positions)

    def read(self, positions: Int64s, *, decode: bool = True) -> Any:
        """(n, *shape) decoded values, or the parts by name as they are stored."""
        parts = {
            part.name: self._extents[part.name].rows(positions, _little(part.dtype), part.shape)
            for part in self._signal.parts
        }
        return self._signal.coding.decode(parts, self._signal.inner_shape) if decode else parts
