"""Row keys: int64 numbers or strings, unique, and where each one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillroom.storage.errors import RowsError, listed

KeyList = Sequence[str] | Sequence[int] | NDArray[Any] | Any
"""What a caller may pass as keys: ints, strings, a numpy or an Arrow array."""


def as_keys(keys: KeyList) -> pa.Array:
    """Keys as an Arrow array of int64 or large_string; RowsError when they are neither."""
    if keys is None or isinstance(keys, str | bytes):
        raise RowsError(
            "a data set needs stable keys, one per row, that name the row for ever: pass keys= with "
            "ids or file names; range(n) only if rows never move"
        )
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    try:
        array = keys if isinstance(keys, pa.Array) else pa.array(_plain(keys))
        if pa.types.is_integer(array.type):
            array = array.cast(pa.int64())
        elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            array = array.cast(pa.large_string())
        elif len(array) == 0:
            array = array.cast(pa.int64())
        else:
            raise pa.ArrowTypeError(f"found {array.type}")
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RowsError(f"row keys must all be integers or all be strings: {error}") from error
    if array.null_count:
        raise RowsError(f"{array.null_count:,} row keys are null; every row needs a key")
    return array


def _plain(keys: KeyList) -> Any:
    if isinstance(keys, np.ndarray):
        if keys.ndim != 1:
            raise TypeError(f"found an array of shape {keys.shape}")
        return keys.astype(object if keys.dtype.kind == "U" else keys.dtype.newbyteorder("="))
    return list(keys)


def check_unique(keys: pa.Array) -> None:
    """RowsError names duplicates: a key that stands for two rows would serve the wrong one."""
    counts = pc.value_counts(keys)
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(doubled):
        raise RowsError(
            f"{len(doubled):,} keys stand for more than one row: {listed(doubled.to_pylist())}; "
            "a key must name one row"
        )


class KeyIndex:
    """Finds keys among `keys`; built once, then asked often."""

    def __init__(self, keys: pa.Array) -> None:
        """Index an Arrow array made by `as_keys`."""
        self._type = keys.type
        self._places: dict[str, int] | None = None
        if pa.types.is_integer(keys.type):
            numbers = keys.to_numpy(zero_copy_only=False)
            self._order: NDArray[np.int64] = np.argsort(numbers, kind="stable")
            self._sorted = numbers[self._order]
        else:
            self._places = {key: place for place, key in enumerate(keys.to_pylist())}

    def find(self, keys: KeyList) -> NDArray[np.int64]:
        """The place of each key, -1 where it is unknown: (n,) int64."""
        wanted = as_keys(keys)
        if wanted.type != self._type:
            return np.full(len(wanted), -1, np.int64)
        if self._places is not None:
            places = self._places
            found = (places.get(key, -1) for key in wanted.to_pylist())
            return np.fromiter(found, np.int64, len(wanted))
        numbers = wanted.to_numpy(zero_copy_only=False)
        if len(self._sorted) == 0:
            return np.full(len(numbers), -1, np.int64)
        near = np.minimum(np.searchsorted(self._sorted, numbers), len(self._sorted) - 1)
        return np.where(self._sorted[near] == numbers, self._order[near], -1)
