"""What the bytes of a tar's member are as a value, by the ending of its name."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.images import SUFFIXES
from stillroom.storage.errors import RowsError

Kind = Literal["image", "number", "text", "json", "array", "bytes"]
_ENDINGS: dict[str, Kind] = {
    **dict.fromkeys(SUFFIXES, "image"),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), "number"),
    **dict.fromkeys(("txt", "text", "transcript"), "text"),
    **dict.fromkeys(("json", "jsn"), "json"),
    "npy": "array",
}


def kind_of_field(field: str) -> Kind:
    """By what follows the last dot, as WebDataset's own decoders do.

    >>> kind_of_field("seg.png"), kind_of_field("cls"), kind_of_field("pickle")
    ('image', 'number', 'bytes')
    """
    return _ENDINGS.get(field.rpartition(".")[2], "bytes")


def value_of(kind: Kind, content: bytes) -> Any:
    """The value; RowsError says what these bytes are not."""
    return _READERS[kind](content)


def _number(content: bytes) -> np.int64:
    try:
        return np.int64(int(content))
    except (ValueError, OverflowError) as error:
        raise RowsError(f"{_shown(content)} is no whole number of 64 bits") from error


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RowsError(f"it is no UTF-8: {error}") from error


def _json(content: bytes) -> str:
    text = _text(content)
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowsError(f"it is no JSON: {error}") from error
    return text


def read_npy(content: bytes) -> NDArray[Any]:
    """The array in the bytes of an .npy file, never unpickled, never larger than those bytes.

    RowsError for what is none.
    """
    file = io.BytesIO(content)
    shape, fortran, dtype = npy_header(file, "biuf")
    need = dtype.itemsize * math.prod(shape)
    if len(content) - file.tell() != need:
        raise RowsError(
            f"it says {dtype} of shape {shape}, {need:,} bytes, and holds {len(content) - file.tell():,}"
        )
    flat = np.frombuffer(content, dtype, offset=file.tell())
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def npy_header(file: Any, kinds: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype; the file then stands at the numbers.

    RowsError for no .npy, and for a dtype of another of numpy's kinds: Python objects are never read.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except KeyError as error:
        raise RowsError(f"it is .npy of version {error}; known are 1.0 and 2.0") from error
    except (ValueError, TypeError, SyntaxError, EOFError, RecursionError, MemoryError) as error:
        raise RowsError(f"it is no .npy: {error}") from error
    if dtype.hasobject or dtype.kind not in kinds:
        raise RowsError(
            f"it holds {dtype}; expected numbers (Python objects would have to be unpickled)"
        )
    if min(shape, default=0) < 0:
        raise RowsError(f"it says shape {shape}")
    return shape, fortran, dtype


def _shown(content: bytes) -> str:
    return f"{content[:20]!r}{'...' if len(content) > 20 else ''}"


_READERS: dict[Kind, Callable[[bytes], Any]] = {
    "image": bytes,
    "number": _number,
    "text": _text,
    "json": _json,
    "array": read_npy,
    "bytes": bytes,
}
