"""Rows of different lengths as one array of values and the offsets between rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Ragged:
    """`values[offsets[i]:offsets[i + 1]]` is row i.

    >>> Ragged.of([np.zeros((2, 4)), np.zeros((0, 4))]).lengths
    array([2, 0])
    """

    values: NDArray[np.generic]
    """Every row's elements one after another: (total, *inner shape)."""
    offsets: NDArray[np.int64]
    """(rows + 1,) int64, starting at 0 and never falling."""

    def __post_init__(self) -> None:
        """Refuse offsets that do not describe the values."""
        ends = self.offsets
        if (
            len(ends) == 0
            or ends[0] != 0
            or ends[-1] != len(self.values)
            or (np.diff(ends) < 0).any()
        ):
            raise ValueError(
                f"offsets must rise from 0 to the number of values ({len(self.values)})"
            )

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.generic]]) -> Ragged:
        """Join one array per row; all share the shape after the first axis, and the dtype."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return cls(np.concatenate(rows) if rows else np.zeros((0,)), offsets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(rows,) int64: the number of elements in each row."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.generic]:
        """One row's elements: (length, *inner shape), a view."""
        row = range(len(self))[row]
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.generic]]:
        """Row after row."""
        return (self[row] for row in range(len(self)))

    def padded(self, fill: float = 0) -> NDArray[np.generic]:
        """(rows, longest, *inner shape) with `fill` behind the shorter rows."""
        lengths = self.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        out = np.full((len(self), longest, *self.values.shape[1:]), fill, self.values.dtype)
        out[np.arange(longest) < lengths[:, None]] = self.values
        return out
