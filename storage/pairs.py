"""Keys of views: pairs (key, view) as an Arrow struct array, beside plain keys.

View 0 is the row as it is, so the plain key `k` and the pair `(k, 0)` name the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Int32s = NDArray[np.int32]


def is_pairs(keys: pa.Array) -> bool:
    """Whether keys are pairs (key, view)."""
    return bool(pa.types.is_struct(keys.type))


def key_type(keys: pa.Array) -> pa.DataType:
    """int64 or large_string, of plain keys and of pairs."""
    return keys.type.field("key").type if is_pairs(keys) else keys.type


def pair_keys(keys: pa.Array, view: int | Int32s) -> pa.Array:
    """Pairs of plain keys, as `as_keys` makes them, and one view or one for each key.

    >>> pair_keys(pa.array([7, 8]), 2).to_pylist()[1]
    {'key': 8, 'view': 2}
    """
    views = np.broadcast_to(np.asarray(view, np.int32), (len(keys),))
    return pa.StructArray.from_arrays([keys, pa.array(views)], ["key", "view"])


def split_keys(keys: pa.Array) -> tuple[pa.Array, Int32s]:
    """The plain keys, and the view of each: (n,) int32, 0 for plain keys."""
    if not is_pairs(keys):
        return keys, np.zeros(len(keys), np.int32)
    views: Int32s = keys.field("view").to_numpy(zero_copy_only=False)
    return keys.field("key"), views


def join_keys(pieces: Sequence[pa.Array]) -> pa.Array:
    """Keys one after another; pairs as soon as one piece holds pairs. All share one key type."""
    if len({piece.type for piece in pieces}) > 1:
        pieces = [piece if is_pairs(piece) else pair_keys(piece, 0) for piece in pieces]
    return pa.concat_arrays(pieces)


def same_keys(one: pa.Array, other: pa.Array) -> bool:
    """Whether both name the same rows and views in the same order."""
    if one.type == other.type:
        return bool(one.equals(other))
    (a, of_a), (b, of_b) = split_keys(one), split_keys(other)
    return bool(a.equals(b)) and np.array_equal(of_a, of_b)


def spelled(keys: pa.Array) -> list[Any]:
    """Keys as Python values, for messages: pairs as tuples (key, view)."""
    if not is_pairs(keys):
        return list(keys.to_pylist())
    key, view = split_keys(keys)
    return list(zip(key.to_pylist(), view.tolist(), strict=True))
