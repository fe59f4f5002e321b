"""head(module): logits stored as the hidden state that the teacher's last layer makes them from.

The signal is the head's input, d numbers; the head's weight (V, d) and bias (V,) are the book. A row
costs d numbers, not V, and decodes to all V logits: exactly, up to the rounding of a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillroom.storage.books import Book, widened
from stillroom.storage.encodings.logits import divergence
from stillroom.storage.encodings.part import Array, Encoding, Part
from stillroom.storage.errors import SignalError

_BLOCK_BYTES = 2**26
"""Of a weight that is widened piece by piece."""
_ROWS = 64
"""Rows whose logits are at hand at once while errors are measured; and on how many they are."""


@dataclass(frozen=True)
class Head:
    """The hidden state along the last axis; decoded: float32 logits along it."""

    module: str
    """The head in the teacher, by torch's name."""
    states: Encoding
    """How the hidden state is stored."""
    book: Book | None = field(default=None, compare=False, repr=False)
    """`weight` (V, d) and, where the head has one, `bias` (V,)."""

    def bound(self, book: Book) -> Head:
        """The same with its book."""
        return Head(self.module, self.states, book)

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """A hidden state, of the width that the head reads where its book is at hand."""
        if dtype.kind != "f" or not shape:
            raise SignalError(
                f"signal {name!r} of {dtype} and row shape {shape} is no hidden state"
            )
        self.states.check(name, shape, dtype)
        if self.book is None:
            return
        arrays = self.book.arrays
        weight, bias = arrays.get("weight"), arrays.get("bias")
        if weight is None or weight.ndim != 2 or any(_is_no_float(a) for a in arrays.values()):
            raise SignalError(f"signal {name!r}: its book holds no head; it is another signal's")
        if weight.shape[1] != shape[-1] or (bias is not None and bias.shape != weight.shape[:1]):
            raise SignalError(
                f"signal {name!r} has {shape[-1]} numbers on its last axis, head {self.module!r} reads "
                f"{weight.shape[1]}; take the signal from the head's input: '{self.module}:input'"
            )

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """The hidden state."""
        return self.states.parts(shape, dtype)

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The hidden state's, with the classes on the last axis; SignalError without a book."""
        return (*shape[:-1], len(self._opened.arrays["weight"]))

    def encode(self, values: Array) -> dict[str, Array]:
        """Hidden states as they are stored; needs no book."""
        return self.states.encode(values)

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """hidden @ weight.T + bias: (n, ..., V) float32."""
        return self.logits(self.states.decode(parts, shape))

    def logits(self, hidden: Array) -> Array:
        """(..., d) to (..., V) float32; summed in float64 where hidden state or weight is float64."""
        book, flat = self._opened, widened(hidden).reshape(-1, hidden.shape[-1])
        weight = book.wide("weight")
        made = np.empty((len(flat), len(weight)), np.float32)
        for start, block in _blocks(weight):
            made[:, start : start + len(block)] = flat @ block.T
        if "bias" in book.arrays:
            made += book.wide("bias")
        return made.reshape(*hidden.shape[:-1], len(weight))

    @property
    def _opened(self) -> Book:
        if self.book is None:
            raise SignalError(f"head({self.module}) decodes with its book; read it through a cache")
        return self.book

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """Differences from the logits of these hidden states, and mean KL(exact || decoded) in nats."""
        hidden = values.reshape(-1, values.shape[-1])
        logits = decoded.reshape(-1, decoded.shape[-1])
        largest = squares = kl = 0.0
        for start in range(0, len(hidden), _ROWS):
            exact = self.logits(hidden[start : start + _ROWS]).astype(np.float64)
            gap = logits[start : start + _ROWS] - exact
            largest = max(largest, float(np.abs(gap).max()))
            squares += float((gap**2).sum())
            kl += len(exact) * divergence(exact, exact + gap)["kl"]
        rms = float(np.sqrt(squares / max(logits.size, 1)))
        return {"max_abs": largest, "rms": rms, "kl": kl / max(len(hidden), 1)}

    def loss(self, values: Array) -> dict[str, float]:
        """The error on evenly spread ones of these hidden states: V logits each are a lot of work."""
        flat = values.reshape(-1, values.shape[-1])
        count = min(_ROWS, len(flat))
        some = flat[np.arange(count) * len(flat) // max(count, 1)]
        states = self.states.decode(self.states.encode(some), some.shape[1:])
        if np.array_equal(states, some):
            return {"max_abs": 0.0, "rms": 0.0, "kl": 0.0}
        return self.error(some, self.logits(states))


def _is_no_float(array: Array) -> bool:
    return array.dtype.kind != "f" and array.dtype != np.uint16


def _blocks(weight: Array) -> Iterator[tuple[int, Array]]:
    """(first class, rows of the weight) ready for a product: whole, or piece by piece if narrow."""
    if weight.dtype.itemsize >= 4:
        yield 0, weight
        return
    step = max(_BLOCK_BYTES // (4 * weight.shape[1]), 1)
    for start in range(0, len(weight), step):
        yield start, widened(weight[start : start + step])
