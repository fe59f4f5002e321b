"""Rows of a Hugging Face data set, read from the Arrow table that it maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.arrow_columns import from_arrow
from stillroom.stages.data.pieces import Pieces, joined_keys
from stillroom.stages.data.row_hashes import Stored, hash_whole
from stillroom.stages.data.rows import Batch
from stillroom.storage.errors import RowsError, nearest
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import digest
from stillroom.storage.keys import check_unique

Int64s = NDArray[np.int64]
Trust = Literal["fingerprint", "content"]


class DatasetRows:
    """A `datasets.Dataset` (one split), also a selected, filtered or shuffled one.

    Columns are read as they are stored, whatever format or transform is set on the data set: numbers,
    lists of numbers of one length, texts, and encoded images and sounds as `bytes`. Row hashes are
    those of `ArrayRows` over the same content.

    With trust="fingerprint" two states are equal when Hugging Face's own fingerprint is: an unchanged
    data set is not hashed. It follows from how a data set was made (source files with their times,
    every `map` and `select` with its function), so the same content made in another way has another
    one: its rows are then hashed once, found equal, and nothing is taught. It misses a cached Arrow
    file that was edited by hand. trust="content" always hashes.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        key: str,
        trust: Trust = "fingerprint",
        memory_bytes: int = 1 << 29,
    ) -> None:
        """`key` is the column that names each row.

        RowsError for what is no data set of one split, and for keys that are missing or not unique.
        """
        if trust not in get_args(Trust):
            raise ValueError(f"trust {trust!r}; {nearest(trust, get_args(Trust))}")
        if isinstance(dataset, dict):
            raise RowsError(f"a data set of several splits; name one of {', '.join(dataset)}")
        if not isinstance(
            table := getattr(getattr(dataset, "data", None), "table", None), pa.Table
        ):
            raise RowsError(
                f"a {type(dataset).__name__} has no rows that can be read in any order; pass a "
                "datasets.Dataset (load_dataset without streaming, one split)"
            )
        self._dataset, self._key, self._trust = dataset, key, trust
        self._memory_bytes = memory_bytes
        self._known: dict[tuple[str, ...], Hashes] = {}
        if key not in table.column_names:
            raise RowsError(
                f"the data set has no column {key!r} for keys; {nearest(key, table.column_names)}"
            )
        check_unique(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        """A data set is sent as the path of what it maps."""
        settings = ("_dataset", "_key", "_trust", "_memory_bytes")
        return {name: getattr(self, name) for name in settings} | {"_known": {}}

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        # All columns cut alike, also those of data sets that were joined side by side. No copy.
        batches: list[pa.RecordBatch] = self._dataset.data.table.to_batches()
        return batches

    @cached_property
    def _pieces(self) -> Pieces:
        counts = [len(batch) for batch in self._batches]
        return Pieces(counts, self._decoded, lambda i: f"batch {i}", self._memory_bytes)

    def _decoded(self, piece: int, name: str) -> Stored:
        return from_arrow(name, self._batches[piece].column(name), f" of batch {piece}")

    @cached_property
    def _positions(self) -> Int64s | None:
        """Positions in the table of the rows that were selected; None where all are there in order."""
        chosen = getattr(self._dataset, "_indices", None)
        if chosen is None:
            return None
        return np.asarray(chosen.column(0).to_numpy(), np.int64)

    @cached_property
    def keys(self) -> pa.Array:
        """The key column: Arrow int64 or large_string."""
        if self._positions is None:
            pieces = range(len(self._batches))
            return joined_keys(self._key, (self._decoded(piece, self._key) for piece in pieces))
        column = self._pieces.read(self._positions, [self._key])[self._key]
        return joined_keys(self._key, [pa.array(column) if isinstance(column, list) else column])

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the data set, the key's too."""
        return tuple(self._dataset.data.table.column_names)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._pieces) if self._positions is None else len(self._positions)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order."""
        chosen = self._positions
        return self._pieces.read(places if chosen is None else chosen[places], self._named(columns))

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row's content; made when first asked for."""
        asked = tuple(sorted(self._named(columns)))
        if asked not in self._known:
            self._known[asked] = self._pieces.hashes(asked, self._positions)
        return self._known[asked]

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of Hugging Face's fingerprint, the keys' column and these columns; or of the content."""
        asked = sorted(self._named(columns))
        if self._trust == "fingerprint":
            return digest([self._trust, self._dataset._fingerprint, self._key, asked])
        hashed = hash_whole([("", self.keys), ("rows", np.ascontiguousarray(self.hashes(asked)))])
        return digest([self._trust, asked, hashed])

    def _named(self, columns: Sequence[str]) -> Sequence[str]:
        for name in columns:
            if name not in self.columns:
                raise RowsError(
                    f"the data set has no column {name!r}; {nearest(name, self.columns)}"
                )
        return columns
