"""product(m), product(m,bits): product quantisation of feature vectors.

Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", PAMI 2011. The last axis
is cut into m equal pieces, and each piece is stored as the number of the nearest of at most 2**bits
centroids, which k-means found for that piece: m bytes for a vector (2 m with more than 8 bits). The
centroids are the book, so that rows which come later are stored by the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from stillroom.storage.books import Book
from stillroom.storage.encodings.clusters import centroids, nearest
from stillroom.storage.encodings.part import Array, Part
from stillroom.storage.errors import CorruptShardError, SignalError

FITTED_VECTORS = 16_384
"""How many vectors centroids are fitted to: 64 for each of 256."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Product:
    """Codes of the nearest centroids; decoded: those centroids, float32."""

    m: int
    """Pieces of a vector."""
    bits: int = 8
    """Of a code, 1 to 16."""
    book: Book | None = field(default=None, compare=False, repr=False)
    """`centroids` (m, k, d / m) float32; a piece with fewer than k has its last one repeated."""

    def bound(self, book: Book) -> Product:
        """The same with its book."""
        return Product(self.m, self.bits, book)

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Vectors of numbers that m pieces of one size make up."""
        if dtype.names is not None or dtype.kind not in "fiu" or not shape:
            raise SignalError(
                f"signal {name!r} of {dtype} and row shape {shape} has no vectors to quantise"
            )
        if not 1 <= self.bits <= 16 or self.m < 1 or shape[-1] % self.m:
            raise SignalError(
                f"signal {name!r}: product({self.m},{self.bits}) needs 1 to 16 bits, and a last axis "
                f"that {self.m} divides; found {shape[-1]}"
            )
        if self.book is None:
            return
        known = self.book.arrays.get("centroids")
        if (
            known is None
            or known.dtype != np.float32
            or known.ndim != 3
            or (len(known), known.shape[2]) != (self.m, shape[-1] // self.m)
            or known.shape[1] > 2**self.bits
        ):
            raise SignalError(
                f"signal {name!r}: its book does not hold centroids of {self.m} pieces of "
                f"{shape[-1] // self.m} numbers; it is another signal's"
            )

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """codes."""
        return (Part("codes", (*shape[:-1], self.m), "uint8" if self.bits <= 8 else "uint16"),)

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As it was."""
        return shape

    def fitted(self, vectors: Array) -> dict[str, Array]:
        """The book's arrays for (n, d) vectors; SignalError when there is none.

        Where a piece has no more than 2**bits distinct values, they are its centroids.
        """
        if len(vectors) == 0:
            raise SignalError(f"product({self.m}) finds its centroids from vectors; there is none")
        pieces = _pieces(_single(vectors), self.m)
        found = [centroids(pieces[:, j], 2**self.bits) for j in range(self.m)]
        most = max(map(len, found))
        padded = [np.concatenate([c, np.repeat(c[-1:], most - len(c), axis=0)]) for c in found]
        return {"centroids": np.stack(padded)}

    def encode(self, values: Array) -> dict[str, Array]:
        """The nearest centroid of each piece, of equally near ones the first."""
        known, pieces = self._distinct, _pieces(_single(values), self.m)
        codes = np.empty((len(pieces), self.m), "uint8" if self.bits <= 8 else "uint16")
        for j, some in enumerate(known):
            codes[:, j] = nearest(pieces[:, j], some)[0]
        return {"codes": codes.reshape(*values.shape[:-1], self.m)}

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """(n, *shape) float32; CorruptShardError for a code that is no centroid's."""
        codes, known = parts["codes"], self._opened.arrays["centroids"]
        m, k, size = known.shape
        if codes.size and k <= np.iinfo(codes.dtype).max and codes.max() >= k:
            raise CorruptShardError(f"a stored code {codes.max()} is none of {k} centroids")
        places = codes + np.arange(m) * k
        found: Array = known.reshape(m * k, size)[places]
        return found.reshape(*codes.shape[:-1], m * size)

    @property
    def _opened(self) -> Book:
        if self.book is None:
            raise SignalError(f"product({self.m}) needs its book of centroids; go through a cache")
        return self.book

    @cached_property
    def _distinct(self) -> list[Array]:
        """The centroids of each piece without what repeats the last one."""
        found = []
        for piece in self._opened.arrays["centroids"]:
            other = np.flatnonzero((piece != piece[-1]).any(axis=1))
            found.append(piece[: int(other[-1]) + 2 if len(other) else 1])
        return found

    def excess(self, parts: Mapping[str, Array], values: Array) -> float:
        """How much farther than the nearest centroid the stored one is from these values, at most.

        The difference of the two distances over the root of a piece's numbers: in the signal's unit.
        """
        shape = values.shape[1:]
        stored, best = (self.decode(p, shape) for p in (parts, self.encode(values)))
        far, near = (
            np.sqrt(((_pieces(values.astype(np.float64) - c, self.m)) ** 2).mean(-1))
            for c in (stored, best)
        )
        return float((far - near).max(initial=0.0))

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """Largest and root-mean-square difference, the latter also relative to the values' own root
        mean square, and the mean cosine between vectors."""
        if values.size == 0:
            return {"max_abs": 0.0, "rms": 0.0, "relative": 0.0, "cosine": 1.0}
        exact, found = (a.astype(np.float64).reshape(-1, a.shape[-1]) for a in (values, decoded))
        gap = exact - found
        rms, size = (float(np.sqrt(np.mean(a**2))) for a in (gap, exact))
        lengths = np.sqrt((exact**2).sum(1) * (found**2).sum(1))
        same = (exact == found).all(axis=1)
        cosine = np.where(same, 1.0, (exact * found).sum(1) / np.where(lengths > 0, lengths, 1.0))
        return {
            "max_abs": float(np.abs(gap).max()),
            "rms": rms,
            "relative": rms / size if size else 0.0,
            "cosine": float(cosine.mean()),
        }


def _pieces(values: Array, m: int) -> Array:
    """(..., d) to (n, m, d / m)."""
    return values.reshape(-1, m, values.shape[-1] // m)


def _single(values: Array) -> Array:
    """float32; SignalError for a value that it cannot hold."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    lost = ~np.isfinite(single)
    if lost.any():
        raise SignalError(f"value {values[lost][0]:g} has no place among centroids of float32")
    return single
