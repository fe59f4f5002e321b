"""Encodings: what one row of a signal becomes on disk, and exactly how it is read back.

An encoding acts on arrays of shape (n, *shape): n rows, or n elements of ragged rows. It names
the parts that it stores, predicts their bytes, decodes exactly, and measures its own error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.storage.encodings.head import Head
from stillroom.storage.encodings.int8 import Int8
from stillroom.storage.encodings.packed import LEVELS, Packed
from stillroom.storage.encodings.part import Array, Booked, Encoding, Part, difference
from stillroom.storage.encodings.product import Product
from stillroom.storage.encodings.sampled import Sampled
from stillroom.storage.encodings.topk import TopK
from stillroom.storage.errors import FormatError, SignalError


@dataclass(frozen=True)
class Raw:
    """The values as they are; a record becomes one part for each field."""

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Everything that a signal can be is stored raw."""

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """One part, or one for each field of a record."""
        if dtype.names is None:
            return (Part("", shape, dtype.name),)
        return tuple(
            Part(name, (*shape, *dtype[name].shape), dtype[name].base.name) for name in dtype.names
        )

    def encode(self, values: Array) -> dict[str, Array]:
        """The values themselves."""
        if values.dtype.names is None:
            return {"": values}
        return {name: values[name] for name in values.dtype.names}

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """The values themselves; fields are put together into a record array again."""
        if "" in parts:
            return parts[""]
        first = next(iter(parts.values()))
        rows = first.shape[: 1 + len(shape)]
        dtype = np.dtype([(name, a.dtype, a.shape[len(rows) :]) for name, a in parts.items()])
        record = np.empty(rows, dtype)
        for name, array in parts.items():
            record[name] = array
        return record

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """Nothing is lost."""
        return {"max_abs": 0.0, "rms": 0.0}


@dataclass(frozen=True)
class Float:
    """Floating-point values in a narrower (or the same) format, read back as float32.

    bfloat16 has no numpy dtype, so its 16 bits are stored as uint16: the upper half of the
    float32, rounded to nearest even (of wider values: after they were rounded to float32, as torch
    does).
    """

    name: str
    stored: str
    largest: float
    exponent: int
    """The exponent's bits in the stored integer."""

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Only floating-point and integer values can be narrowed."""
        if dtype.names is not None or dtype.kind not in "fiu":
            raise SignalError(f"signal {name!r} is {dtype}, which {self.name} cannot hold; use raw")

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """One part of the stored dtype."""
        return (Part("", shape, self.stored),)

    def encode(self, values: Array) -> dict[str, Array]:
        """Rounded to nearest even; SignalError when a finite value would become infinite."""
        with np.errstate(over="ignore"):
            stored = _bfloat16(values) if self.name == "bfloat16" else values.astype(self.stored)
        # All exponent bits set: infinity or NaN. Cheaper than decoding everything again.
        full = stored.view(f"u{stored.itemsize}") & self.exponent == self.exponent
        lost = full & np.isfinite(values) if full.any() else full
        if lost.any():
            largest = values[lost][np.abs(values[lost].astype(np.float64)).argmax()]
            raise SignalError(
                f"value {largest:g} does not fit {self.name} (largest {self.largest:g}); "
                f"{'scale this signal down' if self.largest > 1e38 else 'use bfloat16 or float32'}"
            )
        return {"": stored}

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """float32 values, exactly those that were stored."""
        stored = parts[""]
        if self.name != "bfloat16":
            return stored.astype(np.float32, copy=False)
        return (stored.astype(np.uint32) << 16).view(np.float32)

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """Largest and root-mean-square difference, in the signal's own unit."""
        return difference(values, decoded)


def _bfloat16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # Rounding the payload of a NaN could carry into the exponent and sign: to infinity or to zero.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


_BFLOAT16_LARGEST = 3.3895313892515355e38
_PLAIN: dict[str, Callable[[], Encoding]] = {
    "raw": Raw,
    "float32": lambda: Float("float32", "float32", float(np.finfo(np.float32).max), 0x7F800000),
    "float16": lambda: Float("float16", "float16", float(np.finfo(np.float16).max), 0x7C00),
    "bfloat16": lambda: Float("bfloat16", "uint16", _BFLOAT16_LARGEST, 0x7F80),
    "int8": Int8,
}
_LOGITS = re.compile(r"(topk|sampled)\(([1-9][0-9]{0,8})\)")
_PACKED = re.compile(rf"packed\(({_LOGITS.pattern})(?:,([1-9]\d{{0,8}}))?\)")


def encoding(name: str) -> Encoding:
    """The encoding of that name; FormatError lists the known ones.

    >>> encoding("float16").parts((10,), np.dtype("float32"))
    (Part(name='', shape=(10,), dtype='float16'),)
    """
    if name in _PLAIN:
        return _PLAIN[name]()
    if match := _LOGITS.fullmatch(name):
        return _of_logits(match[1], match[2])
    match = _PACKED.fullmatch(name)
    if match and not (match[2] == "sampled" and match[4]):
        return Packed(_of_logits(match[2], match[3]), int(match[4] or LEVELS))
    if match := re.fullmatch(r"head\(([^(),\s]{0,200})(?:,(float32|float16|bfloat16))?\)", name):
        return Head(match[1], encoding(match[2] or "raw"))
    if match := re.fullmatch(r"product\(([0-9]{1,9})(?:,([0-9]{1,2}))?\)", name):
        return Product(int(match[1]), int(match[2] or 8))
    raise FormatError(
        f"no encoding {name!r}; known: {', '.join(_PLAIN)}, topk(k), sampled(k), "
        "packed(topk(k)), packed(topk(k),levels), packed(sampled(k)), head(module), "
        "head(module,float16), product(m), product(m,bits)"
    )


def _of_logits(kind: str, k: str) -> TopK | Sampled:
    return TopK(int(k)) if kind == "topk" else Sampled(int(k))


def needs_book(name: str) -> bool:
    """Whether the encoding of that name needs arrays that all rows share.

    >>> needs_book("product(8)"), needs_book("float16")
    (True, False)
    """
    return isinstance(encoding(name), Booked)
