"""Signal: one named thing that a teacher says about a row, and what it becomes on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.books import Book, checked_digest
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.packed import Packed
from stillroom.storage.encodings.part import Booked, Encoding, Part
from stillroom.storage.errors import GARBLED, CorruptShardError, FormatError, SignalError
from stillroom.storage.ragged import Ragged

Values = NDArray[np.generic] | Ragged | list[str]
"""What a signal is in memory: fixed shape, ragged, or one text per row."""

TEXT = "string"
_LARGEST_ROW = 2**31
"""numpy cannot hold larger items."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SCALARS = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
}


def checked_name(name: str, what: str) -> str:
    """A name that is safe as a folder: letters, digits, _ and -, at most 64, no dot or slash."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SignalError(
            f"{what} name {name!r}: expected 1 to 64 letters, digits, '_' or '-', starting with a "
            "letter or digit, because it names a folder; rename it"
        )
    return name


@dataclass(frozen=True)
class Signal:
    """One named thing a teacher says about a row.

    >>> Signal("logits", (10,), "float32", "float16").row_bytes
    20
    """

    name: str
    """Folder name of the signal: letters, digits, _ and -."""
    shape: tuple[int | None, ...]
    """Shape of one row; None as the first axis means that rows differ in length."""
    dtype: str | tuple[tuple[str, str, tuple[int, ...]], ...]
    """numpy name, "string", or the (name, dtype, shape) fields of a record."""
    encoding: str = "raw"
    """What a row becomes on disk: raw, float16, topk(k) and others; see `encoding`."""
    source: str = ""
    """What in the teacher it is taken from (a layer's name); part of what the signal means."""
    book: str = ""
    """Digest of the arrays that the encoding needs and all rows share; empty where it needs none."""
    opened: Book | None = field(default=None, compare=False, repr=False)
    """Those arrays, where they are at hand: what needs a book is encoded and decoded only then."""

    def __post_init__(self) -> None:
        """Refuse what cannot be stored, naming the signal."""
        checked_name(self.name, "signal")
        if any(n is None for n in self.shape[1:]):
            raise SignalError(f"signal {self.name!r}: only the first axis of {self.shape} may vary")
        if any(n is not None and n < 1 for n in self.shape):
            raise SignalError(f"signal {self.name!r}: row shape {self.shape} holds no values")
        scalars = [self.dtype] if isinstance(self.dtype, str) else [f[1] for f in self.dtype]
        for scalar in scalars:
            if scalar not in _SCALARS and self.dtype != TEXT:
                raise SignalError(
                    f"signal {self.name!r}: dtype {scalar!r} cannot be stored; "
                    f"use one of {', '.join(sorted(_SCALARS))}"
                )
        if self.dtype == TEXT and (self.shape, self.encoding) != ((), "raw"):
            raise SignalError(f"signal {self.name!r} is text, which is only stored raw")
        if not isinstance(self.dtype, str):
            self._check_fields(self.dtype)
        if self.book and checked_digest(self.book) and not isinstance(self.coding, Booked):
            raise SignalError(f"signal {self.name!r}: {self.encoding} needs no book, one is named")
        self.coding.check(self.name, self.inner_shape, self.value_dtype)
        if self.row_bytes >= _LARGEST_ROW:
            raise SignalError(
                f"signal {self.name!r}: a row of {self.row_bytes:,} bytes is too large to store; the "
                f"limit is {_LARGEST_ROW:,}. Let its first axis vary: return a list of arrays"
            )

    def _check_fields(self, fields: tuple[tuple[str, str, tuple[int, ...]], ...]) -> None:
        """Each field of a record becomes an array named `signal.field`."""
        if not fields:
            raise SignalError(f"signal {self.name!r} is a record without fields")
        for name, _, shape in fields:
            checked_name(name, f"signal {self.name!r}: field")
            if any(n < 1 for n in shape):
                raise SignalError(f"signal {self.name!r}: field {name!r} holds no values")

    @property
    def kind(self) -> Literal["fixed", "ragged", "text", "packed"]:
        """How rows lie on disk: fixed in Zarr, the others in Arrow; packed as a string of bytes each."""
        if self.dtype == TEXT:
            return "text"
        if isinstance(self.coding, Packed):
            return "packed"
        return "ragged" if self.ragged else "fixed"

    @property
    def ragged(self) -> bool:
        """Whether rows differ in length, however they lie on disk."""
        return self.shape[:1] == (None,)

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of what is encoded at once: a row, or one element of a ragged row."""
        return tuple(n for n in self.shape if n is not None)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """numpy dtype of the values as the teacher gave them (text: uint8 bytes)."""
        if self.dtype == TEXT:
            return np.dtype("uint8")
        if isinstance(self.dtype, str):
            return np.dtype(self.dtype)
        return np.dtype([(name, kind, shape) for name, kind, shape in self.dtype])

    @cached_property
    def coding(self) -> Encoding:
        """The encoding object of `self.encoding`, with its book where that is at hand."""
        coding = encoding(self.encoding)
        if self.opened is not None and isinstance(coding, Booked):
            return coding.bound(self.opened)
        return coding

    def bound(self, book: Book) -> Signal:
        """The same signal with its book at hand; SignalError when the book does not fit it."""
        return replace(self, book=book.digest, opened=book)

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Shape of a decoded row (of an element, where rows differ in length).

        SignalError where that hangs on a book which is not at hand.
        """
        if isinstance(self.coding, Booked):
            return self.coding.decoded_shape(self.inner_shape)
        return self.inner_shape

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The arrays that one row, or one element of a ragged row, becomes."""
        return self.coding.parts(self.inner_shape, self.value_dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes on disk of one row (of one element, where rows differ in length)."""
        return sum(part.row_bytes for part in self.parts)

    def coded(self, values: Values) -> dict[str, Any]:
        """What these rows become on disk, by part: arrays, or Ragged where rows differ in length.

        Rows do not hang on one another, so those of two batches may be joined afterwards. SignalError
        for values that the encoding cannot hold, or that are rows of lengths where this signal's are
        of one shape, or the other way round.
        """
        if (
            self.dtype == TEXT
            or isinstance(values, list)
            or isinstance(values, Ragged) != self.ragged
        ):
            had = "rows of lengths" if self.ragged else "rows of one shape"
            raise SignalError(
                f"signal {self.name!r} has {'text' if self.dtype == TEXT else had}; "
                f"a {type(values).__name__} was given"
            )
        if isinstance(self.coding, Packed):
            lengths = (
                values.lengths if isinstance(values, Ragged) else np.ones(len(values), np.int64)
            )
            elements = values.values if isinstance(values, Ragged) else values
            return {"": self.coding.pack(elements, lengths)}
        if isinstance(values, Ragged):
            encoded = self.coding.encode(values.values)
            return {name: Ragged(array, values.offsets) for name, array in encoded.items()}
        return dict(self.coding.encode(values))

    def unpacked(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The encoding's parts of rows that were read undecoded: arrays, or Ragged, by name.

        Nothing is done but for packed signals, whose rows lie there as strings of bytes. Raises
        CorruptShardError for bytes that no row of this signal becomes.
        """
        if not isinstance(self.coding, Packed):
            return dict(stored)
        parts, lengths = self.coding.unpack(stored[""], self.inner_shape)
        if not self.ragged:
            if (lengths != 1).any():
                raise CorruptShardError(f"a packed row of signal {self.name!r} has another shape")
            return parts
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return {name: Ragged(array, offsets) for name, array in parts.items()}

    def array_name(self, part: Part) -> str:
        """Folder or column of a part: the signal's name, or `signal.part`."""
        return f"{self.name}.{part.name}" if part.name else self.name

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as segment.json and snapshots hold it."""
        fields = (
            self.dtype
            if isinstance(self.dtype, str)
            else [[*f[:2], list(f[2])] for f in self.dtype]
        )
        return {
            "shape": list(self.shape),
            "dtype": fields,
            "encoding": self.encoding,
            "source": self.source,
            # Only where there is one: what was stored before there were books reads as it did.
            **({"book": self.book} if self.book else {}),
        }

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Signal:
        """Read back `to_json`; FormatError where it is not one."""
        try:
            raw, shape = value["dtype"], tuple(value["shape"])
            if not all(
                n is None or (isinstance(n, int) and not isinstance(n, bool)) for n in shape
            ):
                raise TypeError(f"shape {shape}")
            dtype = raw if isinstance(raw, str) else tuple((n, k, tuple(s)) for n, k, s in raw)
            book = str(value.get("book", ""))
            return cls(name, shape, dtype, str(value["encoding"]), str(value["source"]), book)
        except GARBLED as error:
            raise FormatError(
                f"signal {name!r} is described wrongly in the cache: {error}"
            ) from error

    @classmethod
    def of(
        cls,
        name: str,
        values: Values,
        encoding: str = "raw",
        source: str = "",
        book: Book | None = None,
    ) -> Signal:
        """The signal that these values are, from their shape and dtype."""
        if isinstance(values, list):
            return cls(name, (), TEXT, encoding, source)
        array = values.values if isinstance(values, Ragged) else values
        inner = (None, *array.shape[1:]) if isinstance(values, Ragged) else array.shape[1:]
        signal = cls(name, inner, _described(array.dtype), encoding, source)
        return signal if book is None else signal.bound(book)

    def differs(self, other: Signal) -> str:
        """In words what makes `other` another signal; empty when they are the same."""
        pairs: Sequence[tuple[str, object, object]] = (
            ("row shape", self.shape, other.shape),
            ("dtype", self.dtype, other.dtype),
            ("encoding", self.encoding, other.encoding),
            ("source", self.source, other.source),
            ("book", self.book, other.book),
        )
        return "; ".join(f"{what} {a!r} became {b!r}" for what, a, b in pairs if a != b)


def _described(dtype: np.dtype[Any]) -> str | tuple[tuple[str, str, tuple[int, ...]], ...]:
    if dtype.names is None:
        return dtype.newbyteorder("=").name
    fields = []
    for name in dtype.names:
        field = dtype[name]
        fields.append((name, field.base.newbyteorder("=").name, tuple(field.shape)))
    return tuple(fields)
