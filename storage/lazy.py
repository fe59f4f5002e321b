"""Signals out of core: a dask array of one, and passes over blocks of several, on any dask scheduler.

What goes into a graph are functions that load a block, never arrays or files, so that every
scheduler can carry it to other processes: dask on Ray cannot take Zarr arrays apart.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import SignalError
from stillroom.storage.place import Place
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.signal import Values
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]
Part = TypeVar("Part")
Scheduler = str | Callable[..., Any]
""""threads", "synchronous", or a dask `get` such as that of Ray or of a distributed client."""
_JOINED = 2
"""Partial results that are merged at once: the fewer, the fewer wait in memory for others."""
_TASKS = 64
"""More leaves are worked off in as many runs, each in one task that holds one partial result."""
_LOOKED_AT = 64
"""Rows whose decoded size tells that of the others, where rows differ in length."""


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
    load, stamp = delayed(_load, pure=True), _stamp(snapshot)
    blocks = [
        da.from_delayed(
            load(snapshot.cache, snapshot.number, stamp, name, run.start, run.start + run.rows),
            (run.rows, *one.shape[1:]),  # what is decoded may be wider than the signal
            dtype=one.dtype,
        )
        for run in sorted(snapshot.runs(name), key=lambda run: run.start)
    ]
    return da.concatenate(blocks, axis=0)


def _stamp(snapshot: Snapshot) -> str:
    """Tells the snapshot from one of the same number in a cache that was made anew at its place."""
    return snapshot.files()[1].name


@functools.lru_cache(maxsize=16)
def _reader(cache: Place, number: int, stamp: str, names: tuple[str, ...]) -> Reader:
    """One reader a process: opening one maps every shard of its signals."""
    return Reader(Snapshot(cache, number), names)


def _load(cache: Place, number: int, stamp: str, name: str, start: int, stop: int) -> Any:
    return _reader(cache, number, stamp, (name,)).take(np.arange(start, stop))[name]


class Block:
    """Rows that are read at once: where they lie, in plain values, which any process can load.

    No dataclass: dask on Ray takes those apart.
    """

    def __init__(
        self, snapshot: Snapshot, names: Sequence[str], start: int, positions: Int64s
    ) -> None:
        """Rows at these rising positions; `start` is the place of the first among all chosen ones."""
        self._where = snapshot.cache, snapshot.number, _stamp(snapshot)
        self._names, self.start, self.rows = tuple(names), start, len(positions)
        first = int(positions[0])
        dense = int(positions[-1]) - first + 1 == len(positions)
        self._at: int | Int64s = first if dense else positions

    @property
    def positions(self) -> Int64s:
        """(rows,) positions in the snapshot."""
        if isinstance(self._at, int):
            return np.arange(self._at, self._at + self.rows)
        return self._at

    def load(self) -> dict[str, Values]:
        """Decoded rows of every signal, in this process."""
        return _reader(*self._where, self._names).take(self.positions) if self._names else {}


def blocks(
    snapshot: Snapshot, names: Sequence[str], positions: Int64s, block_bytes: int
) -> list[Block]:
    """Rows at rising positions in blocks of nearly one size, none of which takes more than about
    `block_bytes` when all signals are decoded.

    UnknownRowError names rows that lack one of the signals.
    """
    count = len(positions)
    if not count or not names:
        return [Block(snapshot, names, 0, positions)] if count else []
    reader = Reader(snapshot, names, check=False)
    reader.require(positions)
    most = max(1, block_bytes // max(_row_bytes(reader, positions), 1))
    pieces = -(-count // most)
    cuts = [count * i // pieces for i in range(pieces + 1)]
    return [
        Block(snapshot, names, start, positions[start:stop])
        for start, stop in itertools.pairwise(cuts)
    ]


def _row_bytes(reader: Reader, positions: Int64s) -> int:
    """Bytes of a decoded row of all signals; of rows that differ in length, of some."""
    spread = positions[:: max(1, len(positions) // _LOOKED_AT)]
    total = 0
    for name in reader.names:
        signal = reader.snapshot.find(name)[1]
        fixed = signal.kind != "text" and not signal.ragged
        # One row of a fixed shape tells all; it may be a large one.
        rows = reader.take(spread[:1] if fixed else spread, [name])[name]
        total += _bytes(rows) // max(len(rows), 1)
    return total


def _bytes(rows: Values) -> int:
    if isinstance(rows, list):
        return sum(len(text) for text in rows)
    return int((rows.values if isinstance(rows, Ragged) else rows).nbytes)


class _Run:
    """Leaves one after another, each merged to those before; no dataclass, as `Block`."""

    def __init__(
        self, leaves: Sequence[Callable[[], Any]], merge: Callable[[Sequence[Any]], Any]
    ) -> None:
        self._leaves, self._merge = leaves, merge

    def __call__(self) -> Any:
        found = self._leaves[0]()
        for leaf in self._leaves[1:]:
            found = self._merge([found, leaf()])
        return found


def folded(
    leaves: Sequence[Callable[[], Part]],
    merge: Callable[[Sequence[Part]], Part],
    *,
    scheduler: Scheduler = "threads",
    workers: int | None = None,
) -> Part:
    """What `merge` makes of all leaves' results: a tree over them in their order.

    So the result does not depend on which leaf is done first. Each leaf loads its own block, so no
    more than one block for each worker is in memory, and beside it some ten partial results. `merge`
    must not change what it is given, which may lie in memory that processes share.
    """
    from dask.base import compute
    from dask.delayed import delayed

    if isinstance(scheduler, str) and scheduler not in ("threads", "synchronous"):
        raise ValueError(
            f"scheduler {scheduler!r}: expected 'threads', 'synchronous', or a dask get function; for "
            "Ray pass scheduler=stillroom.pipeline.dask_on_ray(runner)"
        )
    runs = min(len(leaves), _TASKS)
    cuts = [len(leaves) * i // runs for i in range(runs + 1)]
    each = (_Run(leaves[low:high], merge) for low, high in itertools.pairwise(cuts))
    level = [delayed(run, pure=False)() for run in each]
    join = delayed(merge, pure=False)
    while len(level) > 1:
        level = [join(level[i : i + _JOINED]) for i in range(0, len(level), _JOINED)]
    more = {} if workers is None else {"num_workers": workers}
    (found,) = compute(level[0], scheduler=scheduler, optimize_graph=False, **more)
    result: Part = found
    return result
