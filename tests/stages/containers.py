"""The same rows in every container, for tests of data sets in files and in memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stillroom.stages import (
    ArrayRows,
    DatasetRows,
    NumpyRows,
    ParquetRows,
    Rows,
    TarRows,
    TorchRows,
    ZarrRows,
)

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


def npy(array: Any) -> bytes:
    """An array as the content of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT
) -> Path:
    """A plain tar with these members, in this order."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def in_tars(folder: Path, keys: Any, columns: dict[str, Any], **how: Any) -> TarRows:
    """In two tars, fields in another order in the second."""
    folder.mkdir(exist_ok=True)
    endings = {"text": "txt", "jpeg": "bin"}
    named = {name: endings.get(name, f"{name}.npy") for name in columns}

    def row(i: int) -> list[tuple[str, bytes]]:
        found = []
        for name, column in columns.items():
            value = column[i]
            encoded = value.encode() if isinstance(value, str) else value
            content = encoded if isinstance(encoded, bytes) else npy(value)
            found.append((f"{keys[i]}.{named[name]}", content))
        return found

    half = len(keys) // 2
    write_tar(folder / "a.tar", [m for i in range(half) for m in row(i)])
    write_tar(folder / "b.tar", [m for i in range(half, len(keys)) for m in row(i)[::-1]])
    return TarRows(folder, columns=named, **how)


def items(columns: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """The rows as dicts."""
    return [{name: column[i] for name, column in columns.items()} for i in range(rows)]


def in_torch(keys: Any, columns: dict[str, Any], **how: Any) -> TorchRows:
    """As the items of a map-style data set."""
    return TorchRows(items(columns, len(keys)), keys=keys, **how)


def spooled(folder: Path, keys: Any, columns: dict[str, Any], **how: Any) -> ParquetRows:
    """Written down from an iterable."""
    rows = ({**row, "id": key} for key, row in zip(keys, items(columns, len(keys)), strict=True))
    return TorchRows.from_iterable(rows, folder, key="id", **how)


def without(columns: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those that a container can hold."""
    return {name: column for name, column in columns.items() if name not in names}


def in_zarr(folder: Path, keys: Any, columns: dict[str, Any], **how: Any) -> ZarrRows:
    """In a Zarr group with chunks of seven and nine rows, cut along other axes as well."""
    import zarr

    group = zarr.open_group(folder, mode="w")
    for number, (name, column) in enumerate(without(columns, "jpeg", "text").items()):
        chunks = (7 + 2 * (number % 2), *(2 for _ in column.shape[1:]))
        made = group.create_array(name, shape=column.shape, dtype=column.dtype, chunks=chunks)
        made[:] = column
    return ZarrRows(folder, keys=keys, **how)


def in_npz(path: Path, keys: Any, columns: dict[str, Any], **how: Any) -> NumpyRows:
    """In an .npz, one array in Fortran's order."""
    arrays: dict[str, Any] = {n: np.array(c) for n, c in without(columns, "jpeg").items()}
    arrays["grid"] = np.asfortranarray(arrays["grid"])
    np.savez(path, **arrays)
    return NumpyRows(path, keys=keys, **how)


EVERY: dict[str, Callable[[Path, Any, dict[str, Any]], Rows]] = {
    "parquet": in_parquet,
    "arrow": in_arrow,
    "dataset": lambda folder, keys, columns: in_dataset(keys, columns),
    "chosen": lambda folder, keys, columns: in_chosen_dataset(keys, columns),
    "tars": in_tars,
    "torch": lambda folder, keys, columns: in_torch(keys, columns),
    "spooled": spooled,
    "zarr": in_zarr,
    "npz": lambda folder, keys, columns: in_npz(folder.with_suffix(".npz"), keys, columns),
}
"""Every container that holds rows of several columns, made in a folder."""


def _doubled(column: Any) -> Any:
    return column + column if isinstance(column, list) else np.concatenate([column, column])
