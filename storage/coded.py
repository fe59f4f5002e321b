"""Rows of a signal as they will lie on disk, gathered batch by batch.

Logits of a shard of texts are terabytes before they are encoded and gigabytes after; so each batch is
encoded when it is there, and only that is kept until the shard is whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.storage.errors import SignalError
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Signal


@dataclass(frozen=True)
class Coded:
    """Encoded rows of one signal."""

    signal: Signal
    rows: int
    parts: Mapping[str, Any]
    """By name: (rows, *shape) arrays, or Ragged, as `Signal.coded` gives them."""

    @classmethod
    def of(cls, signal: Signal, values: Any) -> Coded:
        """Encode (n, ...) values or Ragged; SignalError as `Signal.coded`."""
        return cls(signal, len(values), signal.coded(values))

    @classmethod
    def joined(cls, pieces: Sequence[Coded]) -> Coded:
        """One after another; SignalError where they are of different signals."""
        first = pieces[0]
        for piece in pieces[1:]:
            if change := first.signal.differs(piece.signal):
                raise SignalError(f"signal {first.signal.name!r}: {change}")
        parts = {name: _joined([piece.parts[name] for piece in pieces]) for name in first.parts}
        return cls(first.signal, sum(piece.rows for piece in pieces), parts)

    def __len__(self) -> int:
        """The number of rows."""
        return self.rows


def _joined(pieces: Sequence[Any]) -> Any:
    if not isinstance(pieces[0], Ragged):
        return np.concatenate(pieces)
    lengths = np.concatenate([piece.lengths for piece in pieces])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Ragged(np.concatenate([piece.values for piece in pieces]), offsets)
