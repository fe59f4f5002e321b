"""Row keys: int64 numbers or strings, or pairs of one and a view; unique, and where each one is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillroom.storage.errors import RowsError, listed
from stillroom.storage.pairs import is_pairs, key_type, pair_keys, spelled, split_keys

KeyList = Sequence[str] | Sequence[int] | Sequence[tuple[str | int, int]] | NDArray[Any] | Any
"""What a caller may pass as keys: ints, strings, pairs (key, view), a numpy or an Arrow array."""


def as_keys(keys: KeyList) -> pa.Array:
    """Keys as an Arrow array of int64 or large_string, pairs as a struct of `key` and `view` (int32).

    RowsError when they are none of these.
    """
    if keys is None or isinstance(keys, str | bytes):
        raise RowsError(
            "a data set needs stable keys, one per row, that name the row for ever: pass keys= with "
            "ids or file names; range(n) only if rows never move"
        )
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    try:
        plain = keys if isinstance(keys, pa.Array) else _plain(keys)
        if isinstance(plain, list) and plain and isinstance(plain[0], tuple):
            return _pairs(plain)
        array = plain if isinstance(plain, pa.Array) else pa.array(plain)
        if pa.types.is_struct(array.type):
            return _struct(array)
        if pa.types.is_integer(array.type):
            array = array.cast(pa.int64())
        elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            array = array.cast(pa.large_string())
        elif len(array) == 0:
            array = array.cast(pa.int64())
        else:
            raise pa.ArrowTypeError(f"found {array.type}")
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RowsError(
            "row keys must all be integers or all be strings, or all be pairs of such a key and the "
            f"number of a view: {error}"
        ) from error
    if array.null_count:
        raise RowsError(f"{array.null_count:,} row keys are null; every row needs a key")
    return array


def _pairs(pairs: Sequence[tuple[Any, ...]]) -> pa.Array:
    """Pairs from tuples (key, view)."""
    if any(not isinstance(pair, tuple) or len(pair) != 2 for pair in pairs):
        raise TypeError("some are pairs (key, view), others are not")
    return _checked_pairs([pair[0] for pair in pairs], pa.array([pair[1] for pair in pairs]))


def _struct(array: pa.Array) -> pa.Array:
    """Pairs from a struct array of another layout."""
    if {field.name for field in array.type} != {"key", "view"} or array.type.num_fields != 2:
        raise TypeError(f"found {array.type}, expected struct<key, view>")
    if array.null_count:
        raise TypeError(f"{array.null_count:,} pairs are null")
    return _checked_pairs(array.field("key"), array.field("view"))


def _checked_pairs(keys: KeyList, views: pa.Array) -> pa.Array:
    plain = as_keys(keys)
    if not pa.types.is_integer(views.type) or views.null_count:
        raise TypeError(f"the view is a number, found {views.type} with {views.null_count:,} nulls")
    if is_pairs(plain):
        raise TypeError("a pair's key is a number or a text, found a pair")
    numbers = views.cast(pa.int32()).to_numpy(zero_copy_only=False)
    if len(numbers) and numbers.min() < 0:
        raise ValueError(f"views count from 0 (the row as it is), found {numbers.min()}")
    return pair_keys(plain, numbers)


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
    numbers = _coded(keys)[1] if is_pairs(keys) else keys
    counts = pc.value_counts(numbers)
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(doubled):
        found = keys.take(pc.index_in(doubled, value_set=numbers))
        raise RowsError(
            f"{len(doubled):,} keys stand for more than one row: {listed(spelled(found))}; "
            "a key must name one row"
        )


def _coded(pairs: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The distinct keys of pairs, and each pair as one number: a key's place among them, and the view."""
    key, view = split_keys(pairs)
    coded = key.dictionary_encode()
    places = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return coded.dictionary, pa.array(places << 32 | view)


class KeyIndex:
    """Finds keys among `keys`; made at once, indexed when it is first asked for other keys.

    A plain key and its pair with view 0 are the same.
    """

    def __init__(self, keys: pa.Array) -> None:
        """Index an Arrow array made by `as_keys`."""
        self._keys = keys

    def find(self, keys: KeyList) -> NDArray[np.int64]:
        """The place of each key, -1 where it is unknown: (n,) int64."""
        wanted = as_keys(keys)
        if key_type(wanted) != key_type(self._keys) or len(self._keys) == 0:
            return np.full(len(wanted), -1, np.int64)
        if wanted.equals(self._keys):
            return np.arange(len(wanted))
        if is_pairs(self._keys):
            return self._find_pairs(wanted)
        if is_pairs(wanted):
            key, view = split_keys(wanted)
            return np.where(view == 0, self.find(key), -1)
        if len(wanted) * _MANY > len(self._keys):
            # Arrow hashes all keys anew, which is the fastest way to look up most of them.
            found = pc.fill_null(pc.index_in(wanted, value_set=self._keys), -1)
            return np.asarray(found.cast(pa.int64()).to_numpy(zero_copy_only=False))
        if pa.types.is_integer(wanted.type):
            return self._numbers(wanted.to_numpy(zero_copy_only=False))
        places = self._places
        each = (places.get(key, -1) for key in wanted.to_pylist())
        return np.fromiter(each, np.int64, len(wanted))

    def _find_pairs(self, wanted: pa.Array) -> NDArray[np.int64]:
        """First the key among the distinct ones, then its number with the view."""
        distinct, numbers = self._coded
        key, view = split_keys(wanted)
        place = distinct.find(key)
        return numbers.find(np.where(place < 0, -1, place << 32 | view))

    @cached_property
    def _coded(self) -> tuple[KeyIndex, KeyIndex]:
        keys, numbers = _coded(self._keys)
        return KeyIndex(keys), KeyIndex(numbers)

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
