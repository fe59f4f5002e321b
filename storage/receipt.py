"""Receipts: what a worker leaves when a shard is finished, and what all of a segment's say together."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from stillroom.storage.errors import GARBLED, FormatError, SignalError
from stillroom.storage.place import Place
from stillroom.storage.shards import StoredFile
from stillroom.storage.signal import Signal

P = TypeVar("P", bound=Place)


def receipt_name(shard: int) -> str:
    """The path of a shard's receipt, relative to its segment."""
    return f"receipts/{shard:05d}.json"


def receipt_path(segment: P, shard: int) -> P:
    """Where a shard's receipt lies."""
    return segment / receipt_name(shard)


def stored_files(receipt: Mapping[str, Any], where: Place) -> list[StoredFile]:
    """The files that a receipt lists; FormatError when it is garbled."""
    try:
        signals = receipt["signals"].values()
        return [StoredFile.from_json(file) for signal in signals for file in signal["files"]]
    except GARBLED as error:
        raise FormatError(f"{where} is no receipt: {error}") from error


def agreed_signals(
    path: Place, receipts: Mapping[int, Mapping[str, Any]], asked: Collection[str]
) -> dict[str, Signal]:
    """The signals that all shards of a segment hold; SignalError when two disagree.

    FormatError when a receipt lists other signals than were asked for.
    """
    agreed: dict[str, Signal] = {}
    for index, receipt in receipts.items():
        if set(receipt["signals"]) != set(asked):
            raise FormatError(f"{receipt_path(path, index)} does not list the signals of its plan")
        for name, described in receipt["signals"].items():
            signal = Signal.from_json(name, described)
            known = agreed.setdefault(name, signal)
            if change := known.differs(signal):
                raise SignalError(
                    f"{path.name}: signal {name!r} changed between shards: {change} in shard {index}. "
                    "Every row of a signal must have one shape and dtype; return a list of arrays "
                    "where rows differ in length"
                )
    return agreed


def merged_errors(path: Place, errors: Sequence[Any]) -> dict[str, float]:
    """The encoding's error over all shards: the largest of maxima, the mean of means."""
    for error in errors:
        if not isinstance(error, Mapping) or not all(
            isinstance(value, int | float) and math.isfinite(value) for value in error.values()
        ):
            raise FormatError(f"a receipt of {path} states an error that is no number: {error}")
    names = sorted({name for error in errors for name in error})
    merged = {}
    for name in names:
        values = np.array([error[name] for error in errors if name in error])
        if name.startswith("max"):
            merged[name] = float(values.max())
        else:
            merged[name] = float(np.sqrt((values**2).mean()) if name == "rms" else values.mean())
    return merged
