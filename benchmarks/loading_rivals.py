"""Other libraries' loaders over the same rows: each gives one shuffled epoch of float32 batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
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


def loaders(folder: Path, arrays: Arrays, batch_size: int) -> Iterator[tuple[str, Epoch | None]]:
    """Each rival's name and what gives an epoch; None where it is not installed."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    folder.mkdir(parents=True)
    yield "tensors in memory, tensor[index]", _indexed(tensors, batch_size)
    yield "DataLoader, whole batches of tensors in memory", _batched(tensors, batch_size)
    yield "DataLoader(TensorDataset, shuffle=True)", _plain(tensors, batch_size)
    known = find_spec("datasets") is not None
    yield "HF datasets, whole batches", _datasets(folder, arrays, batch_size) if known else None
    known = find_spec("webdataset") is not None
    yield "WebDataset, buffer of 1,000", _webdataset(folder, arrays, batch_size) if known else None


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


def _datasets(folder: Path, arrays: Arrays, batch_size: int) -> Epoch:
    import datasets

    datasets.disable_progress_bars()
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(a.reshape(-1)), a.shape[1])
        for name, a in arrays.items()
    }
    datasets.Dataset(pa.table(columns)).save_to_disk(str(folder / "datasets"))
    stored = datasets.load_from_disk(str(folder / "datasets")).with_format("torch")
    return _by_batch(_Whole(lambda at: _widened(stored[at]), len(stored)), batch_size)


def _webdataset(folder: Path, arrays: Arrays, batch_size: int) -> Epoch:
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

    return epoch
