"""A snapshot's signal as a dask array: for computations over the whole cache, out of core."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from stillroom.storage.errors import SignalError
from stillroom.storage.place import Place
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot


def dask_array(snapshot: Snapshot, name: str) -> Any:
    """The decoded signal as a dask array (rows, *decoded shape), one block for each stored shard.

    Rows are in the order of `snapshot.keys`. The graph holds functions that load a block, not
    arrays, so that any dask scheduler can carry it to other processes. Raises UnknownSignalError,
    and SignalError for signals whose rows differ in length (read those with a Reader).
    """
    import dask.array as da
    from dask.delayed import delayed

    signal = snapshot.find(name)[1]
    if signal.kind == "text" or signal.ragged:
        kind = "text" if signal.kind == "text" else "ragged"
        raise SignalError(f"signal {name!r} is {kind}; dask arrays need rows of one shape")
    one = Reader(snapshot, [name], check=False).take(np.zeros(0, np.int64))[name]
    assert isinstance(one, np.ndarray)
    load = delayed(_load, pure=True)
    blocks = [
        da.from_delayed(
            load(snapshot.cache, snapshot.number, name, run.start, run.start + run.rows),
            (run.rows, *one.shape[1:]),  # what is decoded may be wider than the signal
            dtype=one.dtype,
        )
        for run in sorted(snapshot.runs(name), key=lambda run: run.start)
    ]
    return da.concatenate(blocks, axis=0)


@functools.lru_cache(maxsize=16)
def _reader(cache: Place, number: int, name: str) -> Reader:
    """One reader a process: opening one maps every shard of the signal."""
    return Reader(Snapshot(cache, number), [name])


def _load(cache: Place, number: int, name: str, start: int, stop: int) -> Any:
    return _reader(cache, number, name).take(np.arange(start, stop))[name]
