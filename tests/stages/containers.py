"""The same rows in every container, for tests of data sets in files and in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stillroom.stages.data.hf_rows import DatasetRows
from stillroom.stages.data.parquet_rows import ParquetRows
from stillroom.stages.data.rows import ArrayRows

COLUMNS = ("image", "grid", "label", "flag", "half", "text", "jpeg")


def contents(rows: int, seed: int = 0) -> dict[str, Any]:
    """One column of each kind that a data set may have."""
    draw = np.random.default_rng(seed)
    return {
        "image": draw.standard_normal((rows, 6)).astype("f4"),
        "grid": draw.integers(-9, 9, (rows, 2, 3)),
        "label": draw.integers(0, 200, rows).astype("u1"),
        "flag": draw.integers(0, 2, rows).astype(bool),
        "half": draw.standard_normal(rows).astype("f2"),
        "text": [f"row {i} é" * (i % 3) for i in range(rows)],
        "jpeg": [b"\xff\x00" * (i % 4) + bytes([i % 7]) for i in range(rows)],
    }


def arrow(name: str, column: Any) -> pa.Array:
    """A column as Arrow would hold it; `grid` in lists of any length that all have one."""
    if isinstance(column, list):
        return pa.array(column)
    inner: pa.Array = pa.array(column.reshape(-1).tolist(), pa.from_numpy_dtype(column.dtype))
    for axis in range(column.ndim - 1, 0, -1):
        size = column.shape[axis]
        if name == "grid":
            offsets = pa.array(range(0, len(inner) + 1, size), pa.int32())
            inner = pa.ListArray.from_arrays(offsets, inner)
        else:
            inner = pa.FixedSizeListArray.from_arrays(inner, size)
    return inner


def table(keys: Any, columns: dict[str, Any]) -> pa.Table:
    """The rows as an Arrow table with the keys in `id`."""
    return pa.table({"id": pa.array(keys), **{n: arrow(n, c) for n, c in columns.items()}})


@dataclass(frozen=True)
class Dataset:
    """What of a Hugging Face data set is read, without the package."""

    table: pa.Table
    chosen: NDArray[np.int64] | None = None
    _fingerprint: str = "made"

    @property
    def data(self) -> Any:
        return SimpleNamespace(table=self.table)

    @property
    def _indices(self) -> pa.Table | None:
        if self.chosen is None:
            return None
        return pa.table({"indices": pa.array(self.chosen.tolist(), pa.uint64())})


def in_memory(keys: Any, columns: dict[str, Any]) -> ArrayRows:
    """In memory."""
    return ArrayRows(keys, **columns)


def in_parquet(folder: Path, keys: Any, columns: dict[str, Any], **how: Any) -> ParquetRows:
    """In two Parquet files with row groups of seven."""
    whole, half = table(keys, columns), len(keys) // 2
    folder.mkdir(exist_ok=True)
    pq.write_table(whole[:half], folder / "a.parquet", row_group_size=7)
    pq.write_table(whole[half:], folder / "b.parquet", row_group_size=7)
    return ParquetRows(folder, key="id", **how)


def in_arrow(folder: Path, keys: Any, columns: dict[str, Any], **how: Any) -> ParquetRows:
    """In an Arrow file with record batches of five, and in a stream."""
    whole, half = table(keys, columns), len(keys) // 2
    folder.mkdir(exist_ok=True)
    for name, new, some in (
        ("a.arrow", pa.ipc.new_file, whole[:half]),
        ("b.arrow", pa.ipc.new_stream, whole[half:]),
    ):
        with new(folder / name, whole.schema) as writer:
            writer.write_table(some, max_chunksize=5)
    return ParquetRows([folder / "a.arrow", folder / "b.arrow"], key="id", **how)


def in_dataset(keys: Any, columns: dict[str, Any], **how: Any) -> DatasetRows:
    """As a Hugging Face data set of batches of six."""
    whole = pa.Table.from_batches(table(keys, columns).to_batches(max_chunksize=6))
    return DatasetRows(Dataset(whole), key="id", **how)


def in_chosen_dataset(keys: Any, columns: dict[str, Any]) -> DatasetRows:
    """As a selection, in another order, of a larger data set."""
    rows = len(keys)
    order = np.random.default_rng(1).permutation(2 * rows)
    places = np.argsort(order)[:rows]  # where each of the wanted rows came to lie
    more = [f"other {i}" if isinstance(keys[0], str) else -1 - i for i in range(rows)]
    wide = table([*keys, *more], {n: _doubled(c) for n, c in columns.items()})
    moved = wide.take(pa.array(order.tolist()))
    whole = pa.Table.from_batches(moved.to_batches(max_chunksize=6))
    return DatasetRows(Dataset(whole, places), key="id")


def _doubled(column: Any) -> Any:
    return column + column if isinstance(column, list) else np.concatenate([column, column])
