"""Batches for training: the data set's columns and the cache's signals, joined by row key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows, find_rows
from stillroom.stages.feeding.shaping import Lengths, as_tensors, part_tensors
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
        rows: Rows | None,
        keys: KeyList,
        columns: Sequence[str],
        reader: Reader | None,
        *,
        batch_size: int,
        seed: int = 0,
        replay: Replay | None = None,
        parts: Sequence[str] = (),
        ragged: Lengths = "padded",
    ) -> None:
        """Join `keys` with the data set (None: no columns are read) and with the reader's snapshot
        (None: no teacher is read).

        With a `replay` of the same keys and snapshot, batches are of views: epoch e of view
        1 + e mod K, with the teacher's answers to exactly that view. Signals named in `parts` come as
        `teacher.SIGNAL.PART`, as their encoding stores them. `ragged` says how rows that differ in
        length arrive.

        Raises RowsError or UnknownRowError naming the rows that are missing.
        """
        self._rows, self._columns, self._reader = rows, tuple(columns), reader
        self._batch_size, self._seed = batch_size, seed
        self.keys = as_keys(keys)
        self._places = None if rows is None else find_rows(rows, self.keys)
        if len(self.keys) == 0:
            raise RowsError("no rows were chosen; there is nothing to load")
        self._halves: dict[str, torch.dtype] = {}
        self._parts, self._ragged = tuple(parts), ragged
        self._positions, self._replay = np.zeros(0, np.int64), replay
        if replay is not None:
            _require_same(replay, self.keys, reader)
            replay.require(self._columns)
        if reader is not None:
            if replay is None:
                self._positions = reader.snapshot.positions(self.keys)
            reader.require(self._positions if replay is None else replay.positions.reshape(-1))
            coded = {name: reader.snapshot.find(name)[1].encoding for name in reader.names}
            self._halves = {
                name: _HALVES[e] for name, e in coded.items() if e in _HALVES and name not in parts
            }

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._cuts()) + 1

    @property
    def views(self) -> int:
        """How many views it goes round; 0 where rows are as they are."""
        return 0 if self._replay is None else self._replay.views

    def epoch(self, number: int) -> Iterator[tuple[NDArray[np.int64], Tensors]]:
        """Shuffled batches: indices into `keys`, and the tensors of those rows."""
        order = np.random.default_rng([self._seed, number]).permutation(len(self.keys))
        view = 1 if self._replay is None else 1 + number % self._replay.views
        for chosen in np.split(order, self._cuts()):
            yield chosen, self.batch(chosen, view)

    def ordered(self) -> Iterator[Tensors]:
        """Batches in the order of `keys`; of views the first."""
        for chosen in np.split(np.arange(len(self.keys)), self._cuts()):
            yield self.batch(chosen)

    def _cuts(self) -> NDArray[np.int64]:
        cuts = np.arange(self._batch_size, len(self.keys), self._batch_size)
        # A single left-over row joins the batch before it: batch norm cannot train on one row.
        return cuts[:-1] if len(cuts) and len(self.keys) - cuts[-1] == 1 else cuts

    def batch(self, chosen: NDArray[np.int64], view: int = 1) -> Tensors:
        """The tensors of these rows (indices into `keys`); with a replay, of one view of them.

        ViewError for a view that is not as the teacher saw it.
        """
        tensors: Tensors = {}
        if self._replay is None:
            positions, read = self._positions, {}
            if self._rows is not None and self._places is not None:
                read = dict(self._rows.read(self._places[chosen], self._columns))
        else:
            positions = self._replay.positions[view - 1]
            read = dict(self._replay.read(chosen, view, self._columns))
        for name, column in read.items():
            tensors[f"row.{name}"] = (
                column if isinstance(column, list) else torch.from_numpy(column)
            )
        if self._reader is not None:
            for name, values in self._decoded(self._reader, positions[chosen]).items():
                tensors.update(as_tensors(f"teacher.{name}", values, self._ragged))
            for name, stored in self._reader.parts(positions[chosen], self._parts).items():
                signal = self._reader.snapshot.find(name)[1]
                tensors.update(part_tensors(f"teacher.{name}", signal, stored, self._ragged))
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
