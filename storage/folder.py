"""What a draft and a sealed segment share: the plan, the rows, the receipts, and how they are cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.arrow_shards import ArrowShards
from stillroom.storage.books import checked_digest
from stillroom.storage.errors import GARBLED, CorruptShardError, FormatError
from stillroom.storage.files import each_of, fits_checksum, read_json, size_of
from stillroom.storage.pairs import pair_keys
from stillroom.storage.place import Place
from stillroom.storage.receipt import receipt_path, stored_files
from stillroom.storage.shards import ShardFormat
from stillroom.storage.signal import Signal
from stillroom.storage.table import read_table
from stillroom.storage.zarr_shards import ZarrShards

FORMAT = 2
READABLE = (1, 2)
"""1 had one writer a cache and named a snapshot's runs by its number alone."""
Hashes = NDArray[np.void]
"""(n,) items of 16 bytes: the content hash of each row."""


def shard_format(signal: Signal) -> ShardFormat:
    """Fixed shapes lie in Zarr, everything else in Arrow; packed rows also where their shape is fixed."""
    return ZarrShards() if signal.kind == "fixed" else ArrowShards()


@dataclass(frozen=True)
class Shard:
    """Slots `start` to `stop` of a segment: what one worker computes and writes at once."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Ask:
    """A signal as it is asked of a teacher, before its shape and dtype are known."""

    encoding: str
    source: str
    book: str = field(default="", compare=False)
    """Digest of the arrays that the encoding needs, once they are stored: no part of what is asked."""

    def fits(self, signal: Signal) -> bool:
        """Whether a stored signal is what is asked."""
        return (signal.encoding, signal.source) == (self.encoding, self.source)

    def to_json(self) -> dict[str, str]:
        """As plan.json holds it."""
        book = {"book": self.book} if self.book else {}
        return {"encoding": self.encoding, "source": self.source, **book}

    @classmethod
    def from_json(cls, value: Mapping[str, str]) -> Ask:
        """Read back `to_json`."""
        book = value.get("book", "")
        return cls(value["encoding"], value["source"], book and checked_digest(book))


def rows_schema(key: pa.DataType) -> pa.Schema:
    """Columns of rows.arrow for keys of this type."""
    return pa.schema([("key", key), ("hash", pa.binary(16)), ("view", pa.int32())])


def stored_keys(batch: pa.RecordBatch) -> pa.Array:
    """The keys of a batch of rows.arrow: plain where every row is stored as it is, else pairs."""
    views = batch.column("view").to_numpy()
    return pair_keys(batch.column("key"), views) if views.any() else batch.column("key")


class Folder:
    """What a draft and a sealed segment share: the plan, the rows, the receipts."""

    _sums: Mapping[str, str] = {}
    """Checksums of small files; a draft has none yet."""

    def __init__(self, path: Place) -> None:
        """Read the plan of a segment's folder."""
        self.path = path
        plan = read_json(path / "plan.json")
        try:
            self.teacher = str(plan["teacher"])
            self.identity: dict[str, Any] = dict(plan["identity"])
            self.digest = str(plan["digest"])
            self.asked = {n: Ask.from_json(a) for n, a in plan["asked"].items()}
            self.why = str(plan.get("why", ""))
            """Why these rows were taught."""
            self.after: int | None = plan.get("after")
            """The newest snapshot when this was begun."""
            self.rows_checksum: str | None = plan.get("rows_crc32c")
            self.rows, self.shard_rows = int(plan["rows"]), int(plan["shard_rows"])
        except GARBLED as error:
            raise FormatError(f"{path / 'plan.json'} lacks or garbles {error}") from error
        if self.rows < 1 or self.shard_rows < 1 or plan.get("format") not in READABLE:
            raise FormatError(f"{path / 'plan.json'} is not a plan of format {FORMAT}")
        stored = path / "rows.arrow"
        size = size_of(stored)
        if size is None:
            raise CorruptShardError(f"{stored} is missing; restore it, or teach again")
        # Cheap, and bounds what a made-up number of rows can make us allocate.
        if self.rows > size:
            raise CorruptShardError(f"{stored} does not hold the {self.rows:,} rows of its plan")

    def shards(self) -> list[Shard]:
        """Every shard, finished or not."""
        starts = range(0, self.rows, self.shard_rows)
        return [Shard(i, s, min(s + self.shard_rows, self.rows)) for i, s in enumerate(starts)]

    @cached_property
    def _rows(self) -> pa.RecordBatch:
        path = self.path / "rows.arrow"
        batch = read_table(path, self._sums.get("rows.arrow"))
        known = [rows_schema(key) for key in (pa.int64(), pa.large_string())]
        if batch.schema not in known or len(batch) != self.rows:
            raise CorruptShardError(f"{path} does not hold the {self.rows:,} rows of its plan")
        if (batch.column("view").to_numpy() < 0).any():
            raise CorruptShardError(f"{path} numbers a view below 0")
        return batch

    @cached_property
    def keys(self) -> pa.Array:
        """The key of each slot: Arrow int64 or large_string, pairs with `view` where there are views."""
        return stored_keys(self._rows)

    @property
    def hashes(self) -> Hashes:
        """The content hash of each slot: (rows,) items of 16 bytes."""
        column = self._rows.column("hash")
        return np.frombuffer(column.buffers()[1], "V16", self.rows, column.offset * 16)

    @property
    def views(self) -> NDArray[np.int32]:
        """(rows,) int32: which view of its row each slot holds; 0 is the row as it is."""
        return np.asarray(self._rows.column("view").to_numpy(), np.int32)

    def receipt(self, shard: int) -> dict[str, Any] | None:
        """A shard's receipt, when it is as it was written and its files have the sizes it states."""
        path = receipt_path(self.path, shard)
        if not path.exists():
            return None
        try:
            receipt = read_json(path)
            files = stored_files(receipt, path)
        except (FormatError, CorruptShardError):
            return None  # damaged: its shard is computed again
        if not fits_checksum(receipt) and self.rows_checksum is not None:
            return None
        if receipt.get("rows_crc32c") != self.rows_checksum:
            return None  # written by a process that outlived its own draft of this name
        whole = all(size_of(self.path / file.path) == file.bytes for file in files)
        return receipt if whole else None

    def receipts(self) -> dict[int, dict[str, Any]]:
        """The receipts of all finished shards, by shard."""
        shards = [shard.index for shard in self.shards()]
        found = each_of(self.path, self.receipt, shards)
        return {index: r for index, r in zip(shards, found, strict=True) if r is not None}
