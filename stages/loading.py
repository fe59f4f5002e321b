"""Batches for training: the data set's columns and the cache's signals, joined by row key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows, find_rows
from stillroom.stages.views.replay import Replay
from stillroom.storage.errors import RowsError
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader

Tensors = dict[str, Any]
"""`row.COLUMN` and `teacher.SIGNAL` by name: tensors of n rows, or n texts."""


class Loader:
    """Batches of chosen rows, in an order that the seed and the epoch decide.

    Everything is checked at the start: a key that the data set or the snapshot lacks, or a row for
    which a signal was never taught, fails here and not in the middle of an epoch.
    """

    def __init__(
        self,
        rows: Rows,
        keys: KeyList,
        columns: Sequence[str],
        reader: Reader | None,
        *,
        batch_size: int,
        seed: int = 0,
        replay: Replay | None = None,
        parts: Sequence[str] = (),
    ) -> None:
        """Join `keys` with the data set and with the reader's snapshot (None: no teacher read).

        With a `replay` of the same keys and snapshot, batches are of views: epoch e of view
        1 + e mod K, with the teacher's answers to exactly that view. Signals named in `parts` come as
        `teacher.SIGNAL.PART`, as their encoding stores them.

        Raises RowsError or UnknownRowError naming the rows that are missing.
        """
        self._rows, self._columns, self._reader = rows, tuple(columns), reader
        self._batch_size, self._seed = batch_size, seed
        self.keys = as_keys(keys)
        self._places = find_rows(rows, self.keys)
        if len(self._places) == 0:
            raise RowsError("no rows were chosen; there is nothing to load")
        self._halves: dict[str, torch.dtype] = {}
        self._parts = tuple(parts)
        self._positions, self._replay = np.zeros(0, np.int64), replay
        if replay is not None:
            _require_same(replay, self.keys, reader)
            replay.require(self._columns)
        if reader is not None:
            if replay is None:
                self._positions = reader.snapshot.positions(self.keys)
            reader.require(self._positions if replay is None else replay.positions.reshape(-1))
            coded = {name: reader.snapshot.find(name)[1].encoding for name in reader.names}
            self._halves = {name: _HALVES[e] for name, e in coded.items() if e in _HALVES}

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._cuts()) + 1

    @property
    def views(self) -> int:
        """How many views it goes round; 0 where rows are as they are."""
        return 0 if self._replay is None else self._replay.views

    def epoch(self, number: int) -> Iterator[tuple[NDArray[np.int64], Tensors]]:
        """Shuffled batches: indices into `keys`, and the tensors of those rows."""
        order = np.random.default_rng([self._seed, number]).permutation(len(self._places))
        view = 1 if self._replay is None else 1 + number % self._replay.views
        for chosen in np.split(order, self._cuts()):
            yield chosen, self.batch(chosen, view)

    def ordered(self) -> Iterator[Tensors]:
        """Batches in the order of `keys`; of views the first."""
        for chosen in np.split(np.arange(len(self._places)), self._cuts()):
            yield self.batch(chosen)

    def _cuts(self) -> NDArray[np.int64]:
        cuts = np.arange(self._batch_size, len(self._places), self._batch_size)
        # A single left-over row joins the batch before it: batch norm cannot train on one row.
        return cuts[:-1] if len(cuts) and len(self._places) - cuts[-1] == 1 else cuts

    def batch(self, chosen: NDArray[np.int64], view: int = 1) -> Tensors:
        """The tensors of these rows (indices into `keys`); with a replay, of one view of them.

        ViewError for a view that is not as the teacher saw it.
        """
        tensors: Tensors = {}
        if self._replay is None:
            positions = self._positions
            read = self._rows.read(self._places[chosen], self._columns)
        else:
            positions = self._replay.positions[view - 1]
            read = self._replay.read(chosen, view, self._columns)
        for name, column in read.items():
            tensors[f"row.{name}"] = (
                column if isinstance(column, list) else torch.from_numpy(column)
            )
        if self._reader is not None:
            for name, values in self._decoded(self._reader, positions[chosen]).items():
                tensors.update(_tensors(f"teacher.{name}", values))
            for name, stored in self._reader.parts(positions[chosen], self._parts).items():
                for part, values in stored.items():
                    tensors.update(_tensors(f"teacher.{name}.{part}", values))
        return tensors

    def _decoded(self, reader: Reader, positions: NDArray[np.int64]) -> dict[str, Any]:
        """The reader's rows. Half floats are widened by torch, several times faster than by numpy
        and to the same float32."""
        others = [n for n in reader.names if n not in self._halves and n not in self._parts]
        decoded: dict[str, Any] = dict(reader.take(positions, others))
        for name, parts in reader.stored(positions, list(self._halves)).items():
            ragged = parts[""] if isinstance(parts[""], Ragged) else None
            bits = ragged.values if ragged is not None else parts[""]
            wide = torch.from_numpy(bits.view(np.int16)).view(self._halves[name]).float()
            decoded[name] = wide if ragged is None else Ragged(wide.numpy(), ragged.offsets)
        return decoded


def _require_same(replay: Replay, keys: Any, reader: Reader | None) -> None:
    """ValueError when views are of other rows, or of another snapshot, than what is read beside."""
    other = replay.snapshot if reader is None else reader.snapshot
    same = (other.cache, other.number) == (replay.snapshot.cache, replay.snapshot.number)
    if not replay.keys.equals(keys) or not same:
        raise ValueError("the replay is of other keys or of another snapshot than the loader")


_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def _tensors(name: str, values: Any) -> Tensors:
    """A signal as tensors; ragged rows are padded, with `NAME.length`; record fields by name."""
    if isinstance(values, list | torch.Tensor):
        return {name: values}
    if isinstance(values, Ragged):
        lengths = {f"{name}.length": torch.from_numpy(values.lengths)}
        return {**_tensors(name, values.padded()), **lengths}
    if values.dtype.names is not None:
        fields = {f"{name}.{field}": values[field] for field in values.dtype.names}
        return {field: torch.from_numpy(np.ascontiguousarray(a)) for field, a in fields.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(values))}
