"""The contract of an encoding: the parts that it stores, and what it can do with values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stillroom.storage.books import Book

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """One stored array of an encoded signal."""

    name: str
    """Empty for the signal itself, else what follows the dot in `signal.part`."""
    shape: tuple[int, ...]
    """Shape of one row of the part."""
    dtype: str
    """numpy name of the stored dtype; always little endian on disk."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the part."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class Encoding(Protocol):
    """What every encoding can do. Shapes are of one row; arrays have n rows in front."""

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Raise SignalError when a signal of this shape and dtype cannot be encoded."""

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """The arrays that are stored for a signal of this row shape and dtype."""

    def encode(self, values: Array) -> dict[str, Array]:
        """(n, *shape) values to one array per part, keyed by the part's name."""

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """The values that the parts stand for: (n, *shape)."""

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """What the encoding lost, measured on these values."""


@runtime_checkable
class Booked(Encoding, Protocol):
    """An encoding that needs arrays which all rows share; without them it only checks and predicts."""

    @property
    def book(self) -> Book | None:
        """Those arrays, where they are at hand."""

    def bound(self, book: Book) -> Encoding:
        """The same encoding with its book."""

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one decoded row; SignalError where that cannot be known without the book."""


def difference(values: Array, decoded: Array) -> dict[str, float]:
    """Largest absolute and root-mean-square difference of the finite values."""
    finite = np.isfinite(values)
    gap = np.abs(values[finite].astype(np.float64) - decoded[finite])
    if gap.size == 0:
        return {"max_abs": 0.0, "rms": 0.0}
    return {"max_abs": float(gap.max()), "rms": float(np.sqrt(np.mean(gap**2)))}
