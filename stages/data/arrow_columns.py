"""Arrow columns as stages read them: numbers as numpy arrays, texts and bytes as Arrow arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import Stored
from stillroom.storage.errors import RowsError

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def from_arrow(name: str, column: pa.Array | pa.ChunkedArray, of: str = "") -> Stored:
    """Numbers as (n, ...), lists of one length as a further axis; texts as large_string, bytes (also
    those of a struct of `bytes` and `path`, as encoded images and sounds are kept) as large_binary.

    Without a copy where Arrow allows it. RowsError for missing values, for lists of different lengths
    and for any other type; `of` says where the column lies.
    """
    who = f"column {name!r}{of}"
    if isinstance(column, pa.ChunkedArray):
        # Joined as large texts: 32-bit offsets of several chunks can overflow.
        wide = _wide(column.type)
        column = (column if wide is None else column.cast(wide)).combine_chunks()
    return _converted(who, column, len(column))


def to_arrow(name: str, column: Any) -> pa.Array:
    """(n, ...) numbers as numbers or nested lists of one length, texts and bytes as large ones: what
    `from_arrow` makes the same column of.

    RowsError for what it could not, such as an axis of length 0.
    """
    if isinstance(column, list):
        kind = pa.large_binary() if column and isinstance(column[0], bytes) else pa.large_string()
        try:
            return pa.array(column, kind)
        except (pa.ArrowException, UnicodeEncodeError) as error:
            raise RowsError(f"column {name!r} is no column of texts: {error}") from error
    array = np.ascontiguousarray(column, column.dtype.newbyteorder("="))
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or 0 in array.shape[1:]:
        raise RowsError(
            f"column {name!r} is {array.dtype} of shape {array.shape[1:]} a row; Arrow holds numbers of "
            "up to 64 bits, and no axis of length 0"
        )
    flat = array.reshape(-1)
    # Made of a buffer: pa.array(an ndarray) would import pandas, which takes longer than all the rest.
    held = np.packbits(flat, bitorder="little") if array.dtype == bool else flat
    kind = pa.from_numpy_dtype(array.dtype)
    made = pa.Array.from_buffers(kind, len(flat), [None, pa.py_buffer(held)])
    for size in reversed(array.shape[1:]):
        made = pa.FixedSizeListArray.from_arrays(made, size)
    return made


def _converted(who: str, array: Any, rows: int) -> Stored:
    _require_all(who, array)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _converted(who, array.dictionary_decode(), rows)
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.permutation is not None and list(kind.permutation) != sorted(kind.permutation):
            raise RowsError(f"{who} is a tensor with permuted axes; store it in its own order")
        return _numbers(who, array.storage, rows).reshape(-1, *kind.shape)
    if isinstance(kind, pa.BaseExtensionType):
        return _converted(who, array.storage, rows)
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        content = array.flatten()[[field.name for field in kind].index("bytes")]
        return _converted(f"{who} (bytes; a path alone is not enough)", content, rows)
    if (wide := _wide(kind)) is not None:
        return array.cast(wide)
    return _numbers(who, array, rows)


def _wide(kind: pa.DataType) -> pa.DataType | None:
    if any(test(kind) for test in _TEXTS):
        return pa.large_string()
    return pa.large_binary() if any(test(kind) for test in _BYTES) else None


def _numbers(who: str, array: Any, rows: int) -> NDArray[Any]:
    shape: list[int] = []
    while any(test(array.type) for test in _LISTS):
        _require_all(who, array)
        shape.append(_length(who, array, rows))
        array = array.flatten()
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    _require_all(who, array)
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise RowsError(
            f"{who} is {kind}; a column that is read holds numbers, lists of numbers of one length, "
            "texts, or bytes. Cast it, or leave it out of what is read"
        )
    flat: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return (
        flat.reshape(rows, *shape)
        if rows or math.prod(shape)
        else np.zeros((0, *shape), flat.dtype)
    )


def _length(who: str, array: Any, rows: int) -> int:
    if pa.types.is_fixed_size_list(array.type):
        return int(array.type.list_size)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    if len(lengths) == 0:
        return 0
    if (lengths != lengths[0]).any():
        odd = int(np.flatnonzero(lengths != lengths[0])[0]) * rows // len(lengths)
        raise RowsError(
            f"{who} holds lists of different lengths, row {odd:,} the first of another; a column that "
            "is read needs one shape: pad them to one length"
        )
    return int(lengths[0])


def _require_all(who: str, array: Any) -> None:
    if array.null_count:
        first = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
        where = f", the first at {int(first[0]):,}" if len(first) else ""
        raise RowsError(f"{who} has {array.null_count:,} missing values{where}; fill or drop them")
