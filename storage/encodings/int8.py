"""int8: whole numbers from -127 to 127 and one scale for each row.

Stored: the numbers, rounded to nearest even, and `scale` (float32), the row's largest absolute value
divided by 127. Decoded: number * scale in float32, so that no value is off by more than half a scale
(and its rounding). A scale for each row, because one for all would be that of the largest row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.storage.encodings.part import Array, Part, difference
from stillroom.storage.errors import CorruptShardError, SignalError

_MOST = 127


@dataclass(frozen=True)
class Int8:
    """Symmetric: zero stays zero, and the scale is of one row (one element, where they vary)."""

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Real numbers, several to a row: a scale costs four bytes."""
        if dtype.names is not None or dtype.kind not in "fiu":
            raise SignalError(f"signal {name!r} is {dtype}, which int8 cannot hold; use raw")
        if not shape:
            raise SignalError(
                f"signal {name!r} holds single numbers, and int8 stores a scale for each; use float16"
            )

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """The numbers, and a scale."""
        return (Part("", shape, "int8"), Part("scale", (), "float32"))

    def encode(self, values: Array) -> dict[str, Array]:
        """Rounded to the nearest; SignalError for NaN, infinity and what float32 cannot hold."""
        given = values.astype(np.float64)
        largest = np.abs(given).max(axis=tuple(range(1, values.ndim)))
        if not (largest <= np.finfo(np.float32).max).all():
            raise SignalError(
                "NaN, infinity or a value beyond float32 has no place in int8; use raw"
            )
        scale = (largest / _MOST).astype(np.float32)
        # Among the smallest numbers that float32 has, the nearest scale may be far too small.
        short = scale * (_MOST + 0.5) < largest
        scale = np.where(short, np.nextafter(scale, np.float32(np.inf)), scale)
        step = np.where(scale == 0, 1, scale).astype(np.float64)
        stored = np.clip(np.rint(given / _beside(step, given)), -_MOST, _MOST)
        return {"": stored.astype(np.int8), "scale": scale}

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """float32 values; CorruptShardError for a scale that cannot be."""
        stored, scale = parts[""], parts["scale"]
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise CorruptShardError("a stored scale is negative or no number")
        return np.asarray(stored.astype(np.float32) * _beside(scale.astype(np.float32), stored))

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """Largest and root-mean-square difference, in the signal's own unit."""
        return difference(values, decoded)


def _beside(scale: Array, values: Array) -> Array:
    """(n,) scales in the shape in which each meets its own row."""
    return scale.reshape(len(values), *(1 for _ in values.shape[1:]))
