"""Row keys: int64 numbers or strings, unique, and where each one is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
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
        plain = keys if isinstance(keys, pa.Array) else _plain(keys)
        array = plain if isinstance(plain, pa.Array) else pa.array(plain)
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
        if keys.dtype.kind in "iu" and np.can_cast(keys.dtype, np.int64):
            # pa.array(an ndarray) would import pandas, which takes longer than all the rest.
            copied = np.array(keys, np.int64)
            return pa.Array.from_buffers(pa.int64(), len(copied), [None, pa.py_buffer(copied)])
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
    """Finds keys among `keys`; made at once, indexed when it is first asked for other keys."""

    def __init__(self, keys: pa.Array) -> None:
        """Index an Arrow array made by `as_keys`."""
        self._keys = keys

    def find(self, keys: KeyList) -> NDArray[np.int64]:
        """The place of each key, -1 where it is unknown: (n,) int64."""
        wanted = as_keys(keys)
        if wanted.type != self._keys.type or len(self._keys) == 0:
            return np.full(len(wanted), -1, np.int64)
        if wanted.equals(self._keys):
            return np.arange(len(wanted))
        if len(wanted) * _MANY > len(self._keys):
            # Arrow hashes all keys anew, which is the fastest way to look up most of them.
            found = pc.fill_null(pc.index_in(wanted, value_set=self._keys), -1)
            return np.asarray(found.cast(pa.int64()).to_numpy(zero_copy_only=False))
        if pa.types.is_integer(wanted.type):
            return self._numbers(wanted.to_numpy(zero_copy_only=False))
        places = self._places
        each = (places.get(key, -1) for key in wanted.to_pylist())
        return np.fromiter(each, np.int64, len(wanted))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self._keys.to_pylist())}

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self._keys.to_numpy(zero_copy_only=False), kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return np.asarray(self._keys.to_numpy(zero_copy_only=False)[self._order])

    def _numbers(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        near = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[near] == wanted, self._order[near], -1)


_MANY = 10
"""A tenth of all keys or more are many."""
