"""A draft: a segment that is being written, shard by shard, until it is sealed.

`plan.json` and `rows.arrow` say what is to be taught and are there from the first moment; each
finished shard leaves a receipt; `segment.json` is written last and makes the segment part of the
cache. Everything but the folder `made/` is a function of the teacher and the rows alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.storage.errors import CorruptShardError, RowsError, SignalError
from stillroom.storage.files import TEMPORARY, crc32c, store_errors, sync_folder, write_json
from stillroom.storage.folder import FORMAT, Ask, Folder, Hashes, Shard, rows_schema, shard_format
from stillroom.storage.identity import digest
from stillroom.storage.receipt import agreed_signals, merged_errors, receipt_path
from stillroom.storage.segment import Segment
from stillroom.storage.signal import Signal, Values, checked_name
from stillroom.storage.table import write_table
from stillroom.storage.zarr_shards import describe_arrays


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
            batch = pa.record_batch([keys, column, view], schema=rows_schema(keys.type))
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
