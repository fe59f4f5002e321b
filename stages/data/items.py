"""Items of other people's data sets (tuples, dicts, tensors) as values of named columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.storage.errors import RowsError, listed

Names = Sequence[str | None]
"""Names for the parts of a tuple, None for a part that is left out; or the entries of a dict."""


def values_of(item: Any, names: Names | None) -> dict[str, Any]:
    """The values of an item by column: arrays or numbers, texts, bytes.

    Tensors become arrays, Python's numbers int64, float64 or bool. RowsError says what cannot be a
    value, or how the item differs from what the names say.
    """
    if isinstance(item, Mapping):
        chosen = [name for name in (item if names is None else names) if name is not None]
        if missing := [name for name in chosen if name not in item]:
            raise RowsError(
                f"it has no entry {listed(map(repr, missing))}; it has {listed(map(repr, item))}"
            )
        if odd := [name for name in chosen if not isinstance(name, str)]:
            raise RowsError(f"its entry {odd[0]!r} is no text, so it can name no column")
        return {name: _value(name, item[name]) for name in chosen}
    parts = item if isinstance(item, tuple | list) else (item,)
    if names is None:
        raise RowsError(
            f"it is a {type(item).__name__} of {len(parts)} parts, which have no names; pass "
            "columns=('image', 'label'), with None for a part that is left out"
        )
    if len(parts) != len(names):
        raise RowsError(f"it has {len(parts)} parts, columns= names {len(names)}")
    pairs = zip(names, parts, strict=True)
    return {name: _value(name, part) for name, part in pairs if name is not None}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
    except Exception as error:  # tensors of no numpy dtype, lists of several lengths
        raise RowsError(f"column {name!r} is no array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise RowsError(
            f"column {name!r} is a {type(value).__name__}; expected numbers, an array, a text or bytes"
        )
    return array
