"""What a segment will weigh before it is written: exact where rows are of fixed shape.

Rows of other kinds weigh what rows that are stored already weigh on average: receipts say how many
elements lie in a file, and so how many of its bytes grow with its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stillroom.storage.errors import GARBLED, FormatError
from stillroom.storage.files import json_bytes, with_checksum
from stillroom.storage.folder import FORMAT, Ask, rows_schema
from stillroom.storage.pairs import split_keys
from stillroom.storage.receipt import receipt_name
from stillroom.storage.signal import Signal
from stillroom.storage.table import table_bytes
from stillroom.storage.zarr_shards import array_metadata

_OFFSET_BYTES = 8
_LISTED = 1024
"""Shards of which a seal's lines are spelled out; more of them are counted."""


@dataclass(frozen=True)
class Weight:
    """What a signal weighs, from receipts of shards that hold it."""

    signal: Signal
    files: int
    """Files of one shard."""
    file_bytes: float
    """Of the files of one shard what does not grow with their rows, on average."""
    shards: tuple[tuple[int, float], ...]
    """Rows and growing bytes of each shard that was seen; none where rows are of fixed shape."""

    @property
    def fixed(self) -> bool:
        """Whether its bytes are known exactly."""
        return self.signal.kind == "fixed"

    @property
    def row_bytes(self) -> float:
        """Bytes of a row, on average."""
        if self.fixed:
            return self.signal.row_bytes
        return sum(size for _, size in self.shards) / max(sum(rows for rows, _ in self.shards), 1)


def weigh(receipts: Sequence[Mapping[str, Any]]) -> dict[str, Weight]:
    """The weight of each signal that these receipts list; FormatError for one that is garbled."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for receipt in receipts:
        for name, described in receipt["signals"].items():
            found.setdefault(name, []).append(described)
    try:
        return {name: _weight(name, each) for name, each in found.items()}
    except GARBLED as error:
        raise FormatError(f"a receipt is garbled: {error}") from error


def _weight(name: str, each: Sequence[Mapping[str, Any]]) -> Weight:
    signal = Signal.from_json(name, each[-1])
    files = len(each[-1]["files"])
    if signal.kind == "fixed":
        return Weight(signal, files, sum(int(f["trailer"]) for f in each[-1]["files"]), ())
    sizes = {signal.array_name(part): part.row_bytes for part in signal.parts}
    shards, others = [], 0.0
    for described in each:
        stored = described["files"]
        growing = sum(_growing(file["layout"], sizes) for file in stored)
        shards.append((int(stored[0]["layout"]["rows"]), float(growing)))
        others += sum(int(file["bytes"]) for file in stored) - growing
    return Weight(signal, files, others / len(each), tuple(shards))


def _growing(layout: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Bytes of a file that its rows added: an offset for each, and their elements."""
    return sum(
        int(layout["rows"]) * _OFFSET_BYTES + int(column["elements"]) * sizes.get(name, 1)
        for name, column in layout["columns"].items()
    )


@dataclass(frozen=True)
class Outline:
    """A segment that is to be written, or the rest of a draft."""

    teacher: str
    identity: Mapping[str, Any]
    asked: Mapping[str, Ask]
    why: str
    keys: pa.Array
    """Of all its rows."""
    shard_rows: int
    """Rows of a shard, balanced."""
    finished: Collection[int] = ()
    """Shards that a draft already holds."""
    begun: bool = False
    """Whether plan and rows are there already."""

    @property
    def shards(self) -> int:
        """How many there are, finished or not."""
        return -(-len(self.keys) // self.shard_rows)

    @cached_property
    def left(self) -> tuple[int, int]:
        """Shards and rows that are not finished."""
        last = len(self.keys) - (self.shards - 1) * self.shard_rows
        done = sum(last if i == self.shards - 1 else self.shard_rows for i in self.finished)
        return self.shards - len(self.finished), len(self.keys) - done

    def fixed_bytes(self, weight: Weight) -> float:
        """Bytes of a signal's files to write, but for those that grow with rows of other kinds."""
        shards, _ = self.left
        if weight.fixed:
            return shards * (self.shard_rows * weight.signal.row_bytes + weight.file_bytes)
        return shards * weight.file_bytes

    def small_bytes(self, weights: Mapping[str, Weight], receipt: Mapping[str, Any]) -> int:
        """Bytes of everything beside the signals' files: rows, plan, receipts, metadata, seal.

        `receipt` is one of a shard that holds all these signals.
        """
        shards, _ = self.left
        signals = {name: weights[name].signal for name in self.asked}
        kept = {**receipt, "signals": {name: receipt["signals"][name] for name in self.asked}}
        size = shards * len(json_bytes(kept))
        fixed = [signal for signal in signals.values() if signal.kind == "fixed"]
        if fixed:
            metadata = array_metadata(fixed, len(self.keys), self.shard_rows)
            size += sum(map(len, metadata.values()))
        size += self._seal_bytes(signals, kept)
        return size if self.begun else size + self._rows_bytes() + self._plan_bytes()

    def _seal_bytes(self, signals: Mapping[str, Signal], receipt: Mapping[str, Any]) -> int:
        def seal(shards: int) -> int:
            small = ["plan.json", "rows.arrow", *map(receipt_name, range(shards))]
            described = {
                name: {
                    **signal.to_json(),
                    "bytes": self.shard_rows * self.shards,
                    "error": receipt["signals"][name]["error"],
                }
                for name, signal in signals.items()
            }
            counts = {"rows": len(self.keys), "shard_rows": self.shard_rows, "after": 1, "bytes": 1}
            value = {**counts, "format": FORMAT, "teacher": self.teacher, "digest": "0" * 64}
            value |= {"why": self.why, "shards": list(range(shards)), "signals": described}
            return len(json_bytes({**value, "files": dict.fromkeys(small, "0" * 8)}))

        some = min(self.shards, _LISTED)
        whole = seal(some)
        return whole + round((whole - seal(0)) / some * (self.shards - some))

    def _plan_bytes(self) -> int:
        value: dict[str, Any] = {"format": FORMAT, "teacher": self.teacher, "digest": "0" * 64}
        value |= {"identity": dict(self.identity), "why": self.why, "after": 1}
        value |= {"asked": {name: ask.to_json() for name, ask in self.asked.items()}}
        counts = {"rows": len(self.keys), "shard_rows": self.shard_rows, "rows_crc32c": "0" * 8}
        return len(json_bytes(with_checksum(value | counts)))

    def _rows_bytes(self) -> int:
        plain, _ = split_keys(self.keys)
        schema = rows_schema(plain.type)
        none = pa.record_batch([pa.array([], field.type) for field in schema], schema=schema)
        size = 8 * len(plain)
        if not pa.types.is_integer(plain.type):
            size += pc.sum(pc.binary_length(plain)).as_py() or 0
        return len(table_bytes(none)[0]) + size + (16 + 4) * len(plain)

    def files(self, weights: Mapping[str, Weight]) -> int:
        """How many files are to be written."""
        shards, _ = self.left
        arrays = sum(len(w.signal.parts) for w in weights.values() if w.fixed)
        few = 1 + (0 if self.begun else 2) + (arrays + 1 if arrays else 0)
        return few + shards * (1 + sum(weights[name].files for name in self.asked))
