"""Rows: a data set with a stable key for every row, and a hash of every row's content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.arrow_columns import from_arrow
from stillroom.stages.data.row_hashes import Stored, hash_rows, hash_whole
from stillroom.storage.errors import RowsError, listed, nearest
from stillroom.storage.folder import Hashes
from stillroom.storage.keys import KeyIndex, KeyList, as_keys, check_unique
from stillroom.storage.pairs import spelled

Int64s = NDArray[np.int64]
Column = NDArray[Any] | list[str] | list[bytes]
"""A column of a batch: (n, ...) array, n texts, or n times bytes (such as encoded images)."""
Batch = dict[str, Column]


class Rows(Protocol):
    """What a data set must offer to be taught from and trained on."""

    @property
    def keys(self) -> pa.Array:
        """One unique key per row, as `as_keys` makes them, that names the row (and view) for ever."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""

    def __len__(self) -> int:
        """The number of rows."""

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order."""

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """(rows,) items of 16 bytes: the hash of each row's content in these columns."""

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Hexadecimal hash of all keys and of these columns; equal only for equal data sets."""


class ArrayRows:
    """Columns in memory: numpy or Arrow arrays, torch tensors, or lists of texts or of bytes.

    >>> rows = ArrayRows(["a", "b"], image=np.zeros((2, 28, 28)), label=np.array([3, 1]))
    >>> rows.read(np.array([1]), ["label"])
    {'label': array([1])}
    """

    def __init__(self, keys: KeyList, /, **columns: Any) -> None:
        """Keys must be unique and one per row (RowsError); columns share their first axis."""
        self.keys: pa.Array = as_keys(keys)
        check_unique(self.keys)
        if not columns:
            raise RowsError("a data set needs at least one column: ArrayRows(keys, image=...)")
        self._columns = {name: _as_column(name, value) for name, value in columns.items()}
        for name, column in self._columns.items():
            if len(column) != len(self.keys):
                raise RowsError(
                    f"column {name!r} has {len(column):,} rows, there are {len(self.keys):,} keys; "
                    "every row needs exactly one key"
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self._columns)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.keys)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places: copies, in that order."""
        batch: Batch = {}
        for name in columns:
            column = self._column(name)
            if isinstance(column, pa.Array):
                batch[name] = column.take(pa.array(places)).to_pylist()
            else:
                batch[name] = column[places]
        return batch

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row: of a column's bytes, of the columns' hashes where several."""
        return hash_rows({name: self._column(name) for name in columns})

    def fingerprint(self, columns: Sequence[str]) -> str:
        """xxh3_128 over whole columns: gigabytes a second, so an unchanged data set costs little."""
        return hash_whole([("", self.keys), *((n, self._column(n)) for n in sorted(columns))])

    def _column(self, name: str) -> Any:
        if name not in self._columns:
            raise RowsError(f"the data set has no column {name!r}; {nearest(name, self._columns)}")
        return self._columns[name]


def find_rows(rows: Rows, keys: pa.Array, of: str = "") -> Int64s:
    """The place of each key in the data set; RowsError names those that it lacks."""
    places = KeyIndex(rows.keys).find(keys)
    if len(unknown := np.flatnonzero(places < 0)):
        raise RowsError(
            f"{len(unknown):,} rows {of}are not in the data set: "
            f"{listed(spelled(keys.take(unknown)))}"
        )
    return places


def require_columns(rows: Rows, columns: Sequence[str], who: str) -> None:
    """RowsError when the data set lacks a column that `who` reads."""
    for name in columns:
        if name not in rows.columns:
            raise RowsError(
                f"{who} reads column {name!r}, which the data set lacks; {nearest(name, rows.columns)}"
            )


def _as_column(name: str, value: Any) -> Stored:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return from_arrow(name, value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        value = value.tolist()
    if not isinstance(value, list):
        return _as_array(name, value)
    kind = bytes if value and isinstance(value[0], bytes) else str
    if not all(isinstance(item, kind) or item is None for item in value):
        return _as_array(name, value)
    if missing := value.count(None):
        raise RowsError(f"column {name!r} has {missing:,} missing texts")
    try:
        return pa.array(value, pa.large_binary() if kind is bytes else pa.large_string())
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise RowsError(f"column {name!r} is no column of texts: {error}") from error


def _as_array(name: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise RowsError(f"column {name!r}: rows of different shapes ({error})") from error
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise RowsError(
            f"column {name!r} is {array.dtype} of shape {array.shape}; expected numbers, texts or "
            "bytes with one entry per row"
        )
    return array


def column_shapes(batch: Mapping[str, Column]) -> str:
    """The shapes of a batch, for messages."""
    return ", ".join(
        f"{name} {c.shape} {c.dtype}" if isinstance(c, np.ndarray) else f"{name} {len(c)} texts"
        for name, c in batch.items()
    )
