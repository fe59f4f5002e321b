"""A segment: the rows of one teach run. A Draft is written shard by shard; sealing makes it a Segment.

`plan.json` and `rows.arrow` say what is to be taught and are there from the first moment; each
finished shard leaves a receipt; `segment.json` is written last and makes the segment part of the
cache. Everything but the folder `made/` is a function of the teacher and the rows alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.arrow_shards import ArrowShards
from stillroom.storage.errors import (
    GARBLED,
    CorruptShardError,
    FormatError,
    RowsError,
    SignalError,
    listed,
)
from stillroom.storage.files import (
    TEMPORARY,
    crc32c,
    read_json,
    store_errors,
    sync_folder,
    write_json,
)
from stillroom.storage.identity import digest
from stillroom.storage.receipt import (
    agreed_signals,
    merged_errors,
    receipt_path,
    stored_files,
)
from stillroom.storage.shards import Run, ShardFormat, StoredFile, inside
from stillroom.storage.signal import Signal, Values, checked_name
from stillroom.storage.table import read_table, write_table
from stillroom.storage.zarr_shards import ZarrShards, describe_arrays

FORMAT = 1
Hashes = NDArray[np.void]
"""(n,) items of 16 bytes: the content hash of each row."""


def shard_format(signal: Signal) -> ShardFormat:
    """Fixed shapes lie in Zarr, everything else in Arrow."""
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

    def to_json(self) -> dict[str, str]:
        """As plan.json holds it."""
        return {"encoding": self.encoding, "source": self.source}


def _rows_schema(key: pa.DataType) -> pa.Schema:
    return pa.schema([("key", key), ("hash", pa.binary(16)), ("view", pa.int32())])


class Folder:
    """What a draft and a sealed segment share: the plan, the rows, the receipts."""

    _sums: Mapping[str, str] = {}
    """Checksums of small files; a draft has none yet."""

    def __init__(self, path: Path) -> None:
        """Read the plan of a segment's folder."""
        self.path = path
        plan = read_json(path / "plan.json")
        try:
            self.teacher = str(plan["teacher"])
            self.identity: dict[str, Any] = dict(plan["identity"])
            self.digest = str(plan["digest"])
            self.asked = {n: Ask(a["encoding"], a["source"]) for n, a in plan["asked"].items()}
            self.rows, self.shard_rows = int(plan["rows"]), int(plan["shard_rows"])
        except GARBLED as error:
            raise FormatError(f"{path / 'plan.json'} lacks or garbles {error}") from error
        if self.rows < 1 or self.shard_rows < 1 or plan.get("format") != FORMAT:
            raise FormatError(f"{path / 'plan.json'} is not a plan of format {FORMAT}")
        stored = path / "rows.arrow"
        if not stored.is_file():
            raise CorruptShardError(f"{stored} is missing; restore it, or teach again")
        # Cheap, and bounds what a made-up number of rows can make us allocate.
        if self.rows > stored.stat().st_size:
            raise CorruptShardError(f"{stored} does not hold the {self.rows:,} rows of its plan")

    def shards(self) -> list[Shard]:
        """Every shard, finished or not."""
        starts = range(0, self.rows, self.shard_rows)
        return [Shard(i, s, min(s + self.shard_rows, self.rows)) for i, s in enumerate(starts)]

    @cached_property
    def _rows(self) -> pa.RecordBatch:
        path = self.path / "rows.arrow"
        batch = read_table(path, self._sums.get("rows.arrow"))
        known = [_rows_schema(key) for key in (pa.int64(), pa.large_string())]
        if batch.schema not in known or len(batch) != self.rows:
            raise CorruptShardError(f"{path} does not hold the {self.rows:,} rows of its plan")
        return batch

    @property
    def keys(self) -> pa.Array:
        """The key of each slot: Arrow int64 or large_string."""
        return self._rows.column("key")

    @property
    def hashes(self) -> Hashes:
        """The content hash of each slot: (rows,) items of 16 bytes."""
        column = self._rows.column("hash")
        return np.frombuffer(column.buffers()[1], "V16", self.rows, column.offset * 16)

    def receipt(self, shard: int) -> dict[str, Any] | None:
        """A shard's receipt, when it is there and its files have the sizes it states."""
        path = receipt_path(self.path, shard)
        if not path.exists():
            return None
        receipt = read_json(path)
        for file in stored_files(receipt, path):
            where = self.path / file.path
            if not where.exists() or where.stat().st_size != file.bytes:
                return None
        return receipt


class Draft(Folder):
    """An unsealed segment: its rows are fixed, its shards are being written."""

    @classmethod
    def create(
        cls,
        segments: Path,
        number: int,
        *,
        teacher: str,
        identity: Mapping[str, Any],
        asked: Mapping[str, Ask],
        keys: pa.Array,
        hashes: Hashes,
        shard_rows: int,
    ) -> Draft:
        """Make the folder with plan and rows; it appears whole or not at all."""
        checked_name(teacher, "teacher")
        for name in asked:
            checked_name(name, "signal")
        hashes = np.ascontiguousarray(hashes)
        if not len(keys) or shard_rows < 1 or hashes.nbytes != 16 * len(keys):
            raise RowsError(
                f"a segment needs rows, each with a key and a hash of 16 bytes, and shards of at least "
                f"one row; found {len(keys):,} keys, {hashes.nbytes:,} bytes of hashes and shards of "
                f"{shard_rows:,} rows"
            )
        name = digest(dict(identity))
        path = segments / f"{number:04d}-{teacher}-{name[:12]}"
        building = segments / f"{TEMPORARY}{secrets.token_hex(6)}"
        with store_errors(path):
            building.mkdir(parents=True)
        try:
            view = pa.array(np.zeros(len(keys), np.int32))
            column = pa.Array.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(hashes)])
            batch = pa.record_batch([keys, column, view], schema=_rows_schema(keys.type))
            write_table(building / "rows.arrow", batch)
            plan = {
                "format": FORMAT,
                "teacher": teacher,
                "identity": dict(identity),
                "digest": name,
                "asked": {n: a.to_json() for n, a in asked.items()},
                "rows": len(keys),
                # Balanced shards: the last chunk is padded, so it should be nearly full.
                "shard_rows": -(-len(keys) // -(-len(keys) // shard_rows)),
            }
            write_json(building / "plan.json", plan)
            with store_errors(path):
                os.rename(building, path)
                sync_folder(segments)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return cls(path)

    def write(
        self, shard: Shard, values: Mapping[str, Values], error: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Any]:
        """Write all signals of one shard, then its receipt; return the receipt."""
        described: dict[str, Any] = {}
        for name, ask in self.asked.items():
            if len(values[name]) != shard.stop - shard.start:
                raise SignalError(
                    f"signal {name!r}, shard {shard.index}: {len(values[name]):,} rows were given for "
                    f"slots {shard.start:,} to {shard.stop:,}"
                )
            signal = Signal.of(name, values[name], ask.encoding, ask.source)
            try:
                files = shard_format(signal).write(
                    self.path, signal, shard.index, self.shard_rows, values[name]
                )
            except SignalError as problem:
                raise SignalError(f"signal {name!r}, shard {shard.index}: {problem}") from problem
            described[name] = {
                **signal.to_json(),
                "error": dict(error.get(name, {})),
                "files": [file.to_json() for file in files],
            }
        receipt = {
            "shard": shard.index,
            "start": shard.start,
            "stop": shard.stop,
            "signals": described,
        }
        write_json(receipt_path(self.path, shard.index), receipt)
        return receipt

    def seal(self) -> Segment:
        """Make it part of the cache: only shards with valid receipts serve rows.

        Raises SignalError when shards disagree about a signal's shape or dtype, and
        CorruptShardError when no shard is finished.
        """
        receipts = {s.index: r for s in self.shards() if (r := self.receipt(s.index)) is not None}
        if not receipts:
            raise CorruptShardError(f"{self.path} has no finished shard; nothing to seal")
        signals = agreed_signals(self.path, receipts, self.asked)
        fixed = [signal for signal in signals.values() if signal.kind == "fixed"]
        if fixed:
            describe_arrays(self.path, fixed, self.rows, self.shard_rows)
        described: dict[str, Any] = {}
        for name, signal in signals.items():
            each = [receipt["signals"][name] for receipt in receipts.values()]
            described[name] = {
                **signal.to_json(),
                "bytes": sum(int(f["bytes"]) for s in each for f in s["files"]),
                "error": merged_errors(self.path, [s.get("error") for s in each]),
            }
        sealed = {
            "format": FORMAT,
            "teacher": self.teacher,
            "digest": self.digest,
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "shards": sorted(receipts),
            "signals": described,
            "bytes": sum(s["bytes"] for s in described.values()),
            "files": {
                str(path.relative_to(self.path)): f"{crc32c([path.read_bytes()]):08x}"
                for path in sorted(self._small_files(receipts))
            },
        }
        write_json(self.path / "segment.json", sealed)
        return Segment(self.path)

    def _small_files(self, receipts: Mapping[int, Any]) -> list[Path]:
        named = [receipt_path(self.path, i) for i in receipts]
        return [*named, self.path / "plan.json", self.path / "rows.arrow"]


class Segment(Folder):
    """A sealed segment: immutable, part of the cache."""

    def __init__(self, path: Path) -> None:
        """Read the seal; FormatError when it does not fit the plan."""
        super().__init__(path)
        sealed = read_json(path / "segment.json")
        try:
            if sealed["format"] != FORMAT:
                raise ValueError(f"format {sealed['format']!r}, expected {FORMAT}")
            if (sealed["digest"], sealed["rows"], sealed["shard_rows"]) != (
                *(self.digest, self.rows, self.shard_rows),
            ):
                raise ValueError("digest or rows: they are not those of its plan")
            self.finished = tuple(int(i) for i in sealed["shards"])
            shards = -(-self.rows // self.shard_rows)
            if not all(0 <= i < shards for i in self.finished):
                raise ValueError(f"shards: there are only {shards:,}")
            self.signals = {n: Signal.from_json(n, s) for n, s in sealed["signals"].items()}
            self.bytes = int(sealed["bytes"])
            self.errors = {n: dict(s["error"]) for n, s in sealed["signals"].items()}
            self.signal_bytes = {n: int(s["bytes"]) for n, s in sealed["signals"].items()}
            self._sums = {inside(name): str(crc) for name, crc in sealed["files"].items()}
            small = [path / "plan.json", path / "rows.arrow"]
            small += [receipt_path(path, i) for i in self.finished]
            if lacking := [p.name for p in small if str(p.relative_to(path)) not in self._sums]:
                raise ValueError(f"files: no checksum of {listed(lacking)}")
        except GARBLED as error:
            raise FormatError(f"{path / 'segment.json'} lacks or garbles {error}") from error
        self._require_unchanged(path / "plan.json")
        self._files: dict[int, dict[str, StoredFile]] = {}

    def _require_unchanged(self, path: Path) -> None:
        """A receipt says where values lie, so its own bytes are checked before it is believed."""
        if not path.is_file():
            raise CorruptShardError(f"{path} is missing from a sealed segment")
        if f"{crc32c([path.read_bytes()]):08x}" != self._sums[str(path.relative_to(self.path))]:
            raise CorruptShardError(f"{path} was changed after sealing; restore it, or teach again")

    def served(self) -> NDArray[np.bool_]:
        """(rows,) bool: slots whose shard was finished."""
        return np.isin(np.arange(self.rows) // self.shard_rows, np.array(self.finished, np.int64))

    def files(self, shard: int) -> dict[str, StoredFile]:
        """The stored files of one finished shard, by array name."""
        if shard not in self._files:
            if shard not in self.finished:
                raise CorruptShardError(f"{self.path} has no finished shard {shard}")
            path = receipt_path(self.path, shard)
            self._require_unchanged(path)
            self._files[shard] = {
                name: file for file in stored_files(read_json(path), path) for name in file.arrays
            }
        return self._files[shard]

    def runs(self, signal: str, start: int, slot: int, rows: int) -> list[Run]:
        """Positions from `start` served by slots from `slot`, cut at the borders of shards.

        CorruptShardError when the segment has no such signal, slots or finished shards.
        """
        cut, end = [], slot + rows
        if signal not in self.signals or slot < 0 or rows < 1 or end > self.rows:
            raise CorruptShardError(
                f"{self.path} does not hold slots {slot:,} to {end:,} of signal {signal!r}; the "
                "snapshot is damaged"
            )
        names = {self.signals[signal].array_name(p) for p in self.signals[signal].parts}
        while slot < end:
            shard, within = divmod(slot, self.shard_rows)
            count = min(end - slot, self.shard_rows - within)
            files = {n: f for n, f in self.files(shard).items() if n in names}
            cut.append(Run(start, count, self.path, within, files))
            start, slot = start + count, slot + count
        return cut

    def problems(self) -> list[str]:
        """What is wrong with the stored bytes: every file read and compared with its checksum."""
        found = []
        for name, expected in self._sums.items():
            path = self.path / name
            if not path.is_file():
                found.append(f"{path} is missing")
            elif f"{crc32c([path.read_bytes()]):08x}" != expected:
                found.append(f"{path} was changed after sealing")
        if found:
            return found
        for shard in self.finished:
            for file in {f.path: f for f in self.files(shard).values()}.values():
                path = self.path / file.path
                if not path.is_file():
                    found.append(f"{path} is missing")
                    continue
                try:
                    file.check(np.fromfile(path, np.uint8), self.path)
                except CorruptShardError as error:
                    found.append(str(error))
        return found
