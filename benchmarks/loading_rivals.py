"""Other libraries' loaders over the same rows: each gives one shuffled epoch of float32 batches."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

Arrays = Mapping[str, NDArray[Any]]
"""Columns of half floats, (rows, width) each."""
Batches = Iterable[dict[str, torch.Tensor]]
Epoch = Callable[[], Batches]


@dataclass(frozen=True)
class Stored:
    """One way to the rows."""

    open: Callable[[], Epoch]
    """Opens what is stored; nothing of it is held before."""
    folder: Path | None = None
    """Where its files lie; None: its rows are in memory."""


CHUNK_BYTES = 1 << 24
"""Of LitData and MosaicML Streaming, so that each holds some chunks; both shuffle within a few."""


def loaders(folder: Path, arrays: Arrays, batch_size: int) -> Iterator[tuple[str, Stored | str]]:
    """Each rival's name and how it is opened; in words why not where it cannot be imported."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    in_memory = {
        "tensors in memory, tensor[index]": _indexed,
        "DataLoader, whole batches of tensors in memory": _batched,
        "DataLoader(TensorDataset, shuffle=True)": _plain,
    }
    for title, made in in_memory.items():
        yield title, Stored(partial(made, tensors, batch_size))
    on_disk = {
        "HF datasets, whole batches": ("datasets", _datasets),
        "WebDataset, buffer of 1,000": ("webdataset", _webdataset),
        "LitData": ("litdata", _litdata),
        "MosaicML Streaming": ("streaming", _streaming),
    }
    for title, (package, written) in on_disk.items():
        if missing := _not_importable(package):
            yield title, missing
        else:
            place = folder / package
            place.mkdir(parents=True)
            yield title, Stored(written(place, arrays, batch_size), place)


def _not_importable(package: str) -> str:
    """Why a package cannot be imported; empty where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(package)
    except ImportError as error:
        absent = getattr(error, "name", None) == package
        return "not installed" if absent else f"cannot be imported: {error}"
    return ""


def _widened(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in batch.items()}


def _indexed(tensors: Mapping[str, torch.Tensor], batch_size: int) -> Epoch:
    def epoch() -> Batches:
        rows = len(next(iter(tensors.values())))
        for at in torch.randperm(rows).split(batch_size):
            yield {name: tensor[at].float() for name, tensor in tensors.items()}

    return epoch


class _Whole:
    """A data set whose items are batches."""

    def __init__(self, read: Callable[[list[int]], dict[str, torch.Tensor]], rows: int) -> None:
        self._read, self._rows = read, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, at: list[int]) -> dict[str, torch.Tensor]:
        return self._read(at)


def _by_batch(whole: Any, batch_size: int) -> Epoch:
    sampler: Any = BatchSampler(RandomSampler(whole), batch_size, drop_last=False)
    return lambda: DataLoader(whole, batch_size=None, sampler=sampler)


def _batched(tensors: Mapping[str, torch.Tensor], batch_size: int) -> Epoch:
    rows = len(next(iter(tensors.values())))
    return _by_batch(
        _Whole(lambda at: {n: t[at].float() for n, t in tensors.items()}, rows), batch_size
    )


def _plain(tensors: Mapping[str, torch.Tensor], batch_size: int) -> Epoch:
    loader: Any = DataLoader(TensorDataset(*tensors.values()), batch_size=batch_size, shuffle=True)

    def epoch() -> Batches:
        for batch in loader:
            yield _widened(dict(zip(tensors, batch, strict=True)))

    return epoch


def _datasets(folder: Path, arrays: Arrays, batch_size: int) -> Callable[[], Epoch]:
    import datasets

    datasets.disable_progress_bars()
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(a.reshape(-1)), a.shape[1])
        for name, a in arrays.items()
    }
    datasets.Dataset(pa.table(columns)).save_to_disk(str(folder))

    def opened() -> Epoch:
        stored = datasets.load_from_disk(str(folder)).with_format("torch")
        return _by_batch(_Whole(lambda at: _widened(stored[at]), len(stored)), batch_size)

    return opened


def _webdataset(folder: Path, arrays: Arrays, batch_size: int) -> Callable[[], Epoch]:
    import webdataset

    rows = len(next(iter(arrays.values())))
    per, pattern = max(rows // 8, 1), f"{folder}/rows-%02d.tar"
    with webdataset.ShardWriter(pattern, maxcount=per, verbose=0) as sink:
        for row in range(rows):
            named = {f"{name}.npy": array[row] for name, array in arrays.items()}
            sink.write({"__key__": f"{row:07d}", **named})
    urls = sorted(map(str, folder.glob("rows-*.tar")))

    def epoch() -> Batches:
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode()
        for batch in dataset.to_tuple(*(f"{name}.npy" for name in arrays)).batched(batch_size):
            stacked = (torch.from_numpy(np.asarray(column)) for column in batch)
            yield _widened(dict(zip(arrays, stacked, strict=True)))

    return lambda: epoch


def _litdata(folder: Path, arrays: Arrays, batch_size: int) -> Callable[[], Epoch]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.cache import Cache

    writer = Cache(str(folder), chunk_bytes=CHUNK_BYTES)
    for row in range(len(next(iter(arrays.values())))):
        writer[row] = {name: torch.from_numpy(array[row]) for name, array in arrays.items()}
    writer.done()
    writer.merge()

    def opened() -> Epoch:
        loader: Any = StreamingDataLoader(
            StreamingDataset(str(folder), shuffle=True), batch_size=batch_size
        )
        return lambda: _unwarned(loader)

    return opened


def _streaming(folder: Path, arrays: Arrays, batch_size: int) -> Callable[[], Epoch]:
    from streaming import MDSWriter, StreamingDataset

    columns = {name: f"ndarray:float16:{array.shape[1]}" for name, array in arrays.items()}
    written = folder / "mds"
    with MDSWriter(out=str(written), columns=columns, size_limit=CHUNK_BYTES) as writer:
        for row in range(len(next(iter(arrays.values())))):
            writer.write({name: array[row] for name, array in arrays.items()})

    def opened() -> Epoch:
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()  # it refuses a second data set over the same files
        dataset = StreamingDataset(local=str(written), shuffle=True, batch_size=batch_size)
        loader: Any = DataLoader(dataset, batch_size=batch_size)

        return lambda: _unwarned(loader)

    return opened


def _unwarned(loader: Any) -> Batches:
    """What these two give cannot be written to, which torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from map(_widened, loader)
