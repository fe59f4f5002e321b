"""Other stores of the same rows: each is written to disk and gives a function that gathers rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Gather = Callable[[Int64s], Any]
"""(n,) places -> (n, ...) rows, as a numpy array or a tensor."""
SHARD_ROWS = 4096


def rivals(folder: Path, values: NDArray[Any]) -> Iterator[tuple[str, Gather | None]]:
    """Each rival's name and its gather; None where it is not installed."""
    yield "np.memmap of one .npy file", _memmap(folder / "rows.npy", values)
    yield "zarr-python oindex, our files' layout", _zarr(folder / "a.zarr", values, None)
    yield "zarr-python oindex, chunks of 16 rows in shards", _zarr(folder / "b.zarr", values, 16)
    if find_spec("datasets"):
        stored = _datasets(folder / "datasets", values)
        for form in ("numpy", "torch"):
            yield f"HF datasets, with_format({form!r})", _formatted(stored, form)
    else:
        yield "HF datasets", None
    yield "Lance take", _lance(folder / "rows.lance", values) if find_spec("lance") else None


def _memmap(path: Path, values: NDArray[Any]) -> Gather:
    np.save(path, values)
    mapped = np.load(path, mmap_mode="r")
    return lambda places: mapped[places]


def _zarr(path: Path, values: NDArray[Any], chunk: int | None) -> Gather:
    import zarr
    from zarr.codecs import Crc32cCodec

    array: Any = zarr.create_array(
        str(path),
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk or SHARD_ROWS, values.shape[1]),
        shards=(SHARD_ROWS, values.shape[1]) if chunk else None,
        filters=None,
        compressors=None if chunk else [Crc32cCodec()],
    )
    array[:] = values
    return lambda places: array.oindex[places]


def _arrow(values: NDArray[Any]) -> pa.Table:
    flat = pa.array(values.reshape(-1))
    return pa.table({"value": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])})


def _datasets(path: Path, values: NDArray[Any]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(_arrow(values)).save_to_disk(str(path))
    return datasets.load_from_disk(str(path))


def _formatted(stored: Any, form: str) -> Gather:
    formatted = stored.with_format(form)
    return lambda places: formatted[places.tolist()]["value"]


def _lance(path: Path, values: NDArray[Any]) -> Gather:
    import lance

    stored = lance.write_dataset(_arrow(values), str(path))

    def gather(places: Int64s) -> Any:
        column = stored.take(places).column("value").combine_chunks()
        return column.flatten().to_numpy().reshape(len(places), -1)

    return gather
