"""A table: chosen rows of a snapshot's signals and columns, computed over in blocks, out of core."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import hash_rows
from stillroom.storage.errors import SignalError, nearest
from stillroom.storage.lazy import Block, Scheduler, blocks, folded
from stillroom.storage.pairs import split_keys
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.signal import Values
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Part = TypeVar("Part")
BLOCK_BYTES = 2**24
"""Decoded signals of a block; a pass takes about six times as much for each worker."""


def as_matrix(values: Values, name: str) -> NDArray[Any]:
    """(n, d) numbers: rows of one shape, flattened. SignalError says what is taken instead."""
    if isinstance(values, list):
        raise SignalError(f"signal {name!r} is text; this reads rows of numbers")
    if isinstance(values, Ragged):
        raise SignalError(
            f"signal {name!r} is ragged; this reads rows of one shape. Make one of each row first, such "
            "as by derive_signals(cache, snapshot, pooled(...)), and read that"
        )
    if values.dtype.names is not None:
        raise SignalError(f"signal {name!r} is a record; this reads rows of numbers")
    return values.reshape(len(values), -1)


class Batch:
    """One block of a table, loaded."""

    def __init__(
        self,
        start: int,
        values: Mapping[str, Values],
        names: Mapping[str, str],
        columns: Mapping[str, NDArray[Any]],
        codes: NDArray[np.uint64] | None,
    ) -> None:
        """`start` is the place of its first row in the table."""
        self.start, self._values, self._names = start, values, names
        self._columns, self._codes = columns, codes

    def values(self, role: str) -> Values:
        """Rows of a signal as the reader decodes them."""
        return self._values[self._names[role]]

    def matrix(self, role: str) -> Float64s:
        """(n, d) float64: rows of a signal of one shape, flattened."""
        return as_matrix(self.values(role), self._names[role]).astype(np.float64)

    def column(self, role: str) -> NDArray[Any]:
        """(n,) values of a column."""
        return self._columns[role]

    @property
    def codes(self) -> NDArray[np.uint64]:
        """(n,) hashes of the rows' keys; only where the pass asked for them."""
        assert self._codes is not None
        return self._codes


class _Leaf:
    """A block and what is to be done with it; no dataclass, which dask on Ray would take apart."""

    def __init__(self, block: Block, work: Callable[[Batch], Any], batch: tuple[Any, ...]) -> None:
        self._block, self._work, self._batch = block, work, batch

    def __call__(self) -> Any:
        return self._work(Batch(self._block.start, self._block.load(), *self._batch))


class Table:
    """Chosen rows of a snapshot. Their order is that of the snapshot's positions and has no meaning."""

    def __init__(
        self,
        snapshot: Snapshot,
        positions: Int64s,
        signals: Mapping[str, str],
        columns: Mapping[str, NDArray[Any]],
        *,
        scheduler: Scheduler = "threads",
        workers: int | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """Rows at rising positions; `columns` hold a value for each of them."""
        self.snapshot, self.positions = snapshot, positions
        self._signals, self._columns = dict(signals), dict(columns)
        self._scheduler, self._workers = scheduler, workers
        self._block_bytes = block_bytes

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.positions)

    @cached_property
    def keys(self) -> pa.Array:
        """The key of each row."""
        return self.snapshot.keys.take(pa.array(self.positions))

    @cached_property
    def codes(self) -> NDArray[np.uint64]:
        """(n,) a hash of each row's key and view: what draws of rows hang on, and not on their order."""
        plain, views = split_keys(self.keys)
        if pa.types.is_integer(plain.type):
            plain = plain.to_numpy(zero_copy_only=False)
        words = hash_rows({"key": plain}).view(np.uint64).reshape(-1, 2)[:, 0]
        return np.asarray(words + views.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))

    def name(self, role: str) -> str:
        """The signal that the function calls so; SignalError when it is given none."""
        if role not in self._signals:
            raise SignalError(f"no signal is read as {role!r}; {nearest(role, self._signals)}")
        return self._signals[role]

    def column(self, role: str) -> NDArray[Any]:
        """(n,) the column that the function calls so."""
        if role not in self._columns:
            raise SignalError(f"no column is read as {role!r}; {nearest(role, self._columns)}")
        return self._columns[role]

    def width(self, role: str) -> int:
        """Numbers in a decoded row."""
        return int(self.take(np.zeros(1, np.int64), role).shape[1])

    def classes(self, role: str, count: int | None = None) -> int:
        """How many classes a column of labels has: the largest + 1, or `count`.

        SignalError for labels that are no whole numbers from 0, or not below `count`.
        """
        labels = self.column(role)
        if labels.ndim != 1 or labels.dtype.kind not in "iub":
            raise SignalError(
                f"labels {role!r} are {labels.dtype} of shape {labels.shape}; expected one whole number "
                "from 0 for each row"
            )
        low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
        if low < 0 or (count is not None and high >= count):
            limit = "" if count is None else f" below {count:,}"
            raise SignalError(
                f"labels {role!r} run from {low:,} to {high:,}; expected whole numbers from 0{limit}. "
                "Choose the rows that have a label: keys=..."
            )
        return high + 1 if count is None else count

    def take(self, places: Int64s, role: str) -> NDArray[Any]:
        """(n, d) rows of one signal at places of the table, in that order."""
        name = self.name(role)
        return as_matrix(self._reader(name).take(self.positions[places])[name], name)

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            self._readers[name] = Reader(self.snapshot, [name])
        return self._readers[name]

    @cached_property
    def _readers(self) -> dict[str, Reader]:
        return {}

    def blocks(self, *roles: str) -> list[Block]:
        """All rows, in blocks of the signals that the function calls so."""
        names = list(dict.fromkeys(map(self.name, roles)))
        return blocks(self.snapshot, names, self.positions, self._block_bytes)

    def fold(
        self,
        work: Callable[[Batch], Part],
        merge: Callable[[Sequence[Part]], Part],
        *roles: str,
        codes: bool = False,
    ) -> Part:
        """One pass over all rows: `work` on each block, and `merge` of several results at a time.

        `roles` are the signals that are loaded, all when none are named. The tree of merges hangs on
        the blocks alone, so schedulers agree as far as a matrix product in their processes does.
        """
        chosen = {role: self.name(role) for role in (roles or self._signals)}
        leaves = []
        for block in self.blocks(*chosen):
            at = slice(block.start, block.start + block.rows)
            columns = {role: column[at] for role, column in self._columns.items()}
            batch = chosen, columns, self.codes[at] if codes else None
            leaves.append(_Leaf(block, work, batch))
        how: dict[str, Any] = {"scheduler": self._scheduler, "workers": self._workers}
        result: Part = folded(leaves, merge, **how)
        return result
