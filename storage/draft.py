"""A draft: a segment that is being written, shard by shard, until it is sealed.

`plan.json` and `rows.arrow` say what is to be taught and are there from the first moment; each
finished shard leaves a receipt; `segment.json` is written last and makes the segment part of the
cache. Everything but the folder `made/` is a function of the teacher and the rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.storage.books import Book
from stillroom.storage.coded import Coded
from stillroom.storage.encodings.part import Booked
from stillroom.storage.errors import CorruptShardError, RowsError, SignalError
from stillroom.storage.files import crc32c, each_of, pieces_of, with_checksum, write_json
from stillroom.storage.folder import FORMAT, Ask, Folder, Hashes, Shard, rows_schema, shard_format
from stillroom.storage.identity import digest
from stillroom.storage.pairs import same_keys, split_keys
from stillroom.storage.place import Place
from stillroom.storage.receipt import agreed_signals, merged_errors, receipt_name, receipt_path
from stillroom.storage.removing import remove_tree
from stillroom.storage.segment import Segment
from stillroom.storage.signal import Signal, Values, checked_name
from stillroom.storage.table import write_table
from stillroom.storage.zarr_shards import describe_arrays


class Draft(Folder):
    """An unsealed segment: its rows are fixed, its shards are being written."""

    @classmethod
    def create(
        cls,
        segments: Place,
        number: int,
        *,
        teacher: str,
        identity: Mapping[str, Any],
        asked: Mapping[str, Ask],
        keys: pa.Array,
        hashes: Hashes,
        shard_rows: int,
        why: str = "",
        after: int | None = None,
    ) -> Draft:
        """Write rows and plan; the draft is there once its plan is."""
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
        plain, views = split_keys(keys)
        column = pa.Array.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(hashes)])
        schema = rows_schema(plain.type)
        batch = pa.record_batch([plain, column, pa.array(views)], schema=schema)
        if path.is_dir():
            # What is left of one whose making or removal was cut off; its receipts are of other rows.
            remove_tree(path)
        rows_checksum = write_table(path / "rows.arrow", batch)
        plan = {
            "format": FORMAT,
            "teacher": teacher,
            "identity": dict(identity),
            "digest": name,
            "asked": {n: a.to_json() for n, a in asked.items()},
            "why": why,
            "after": after,
            "rows": len(keys),
            "rows_crc32c": rows_checksum,
            "shard_rows": balanced(len(keys), shard_rows),
        }
        # Last: a folder without a plan is no segment, whatever a killed process left in it.
        write_json(path / "plan.json", with_checksum(plan))
        return cls(path)

    def write(
        self,
        shard: Shard,
        values: Mapping[str, Values | Coded],
        error: Mapping[str, Mapping[str, float]],
        books: Mapping[str, Book] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Write all signals of one shard, then its receipt; return the receipt.

        Values may be encoded already, as the plan asks. `books` are those that the plan names, by
        signal.
        """
        described: dict[str, Any] = {}
        for name, ask in self.asked.items():
            given = values[name]
            if len(given) != shard.stop - shard.start:
                raise SignalError(
                    f"signal {name!r}, shard {shard.index}: {len(given):,} rows were given for "
                    f"slots {shard.start:,} to {shard.stop:,}"
                )
            signal = (
                given.signal
                if isinstance(given, Coded)
                else Signal.of(name, given, ask.encoding, ask.source, books.get(name))
            )
            if (signal.encoding, signal.source) != (ask.encoding, ask.source):
                raise SignalError(
                    f"signal {name!r}: {ask.encoding} of {ask.source!r} is asked for, {signal.encoding} "
                    f"of {signal.source!r} was given"
                )
            if signal.book != ask.book or (isinstance(signal.coding, Booked) and not ask.book):
                raise SignalError(
                    f"signal {name!r}: {ask.encoding} is written with book {ask.book!r} of its plan, "
                    f"{signal.book!r} was given"
                )
            try:
                where = self.path, signal, shard.index, self.shard_rows
                if isinstance(given, Coded):
                    files = shard_format(signal).write_parts(*where, given.parts)
                else:
                    files = shard_format(signal).write(*where, given)
            except SignalError as problem:
                raise SignalError(f"signal {name!r}, shard {shard.index}: {problem}") from problem
            described[name] = {
                **signal.to_json(),
                "error": dict(error.get(name, {})),
                "files": [file.to_json() for file in files],
            }
        return self.finish(shard, described)

    def finish(self, shard: Shard, described: Mapping[str, Any]) -> dict[str, Any]:
        """Write the receipt of a shard whose files are written; `described` says which, by signal."""
        receipt = with_checksum(
            {
                "shard": shard.index,
                "start": shard.start,
                "stop": shard.stop,
                "rows_crc32c": self.rows_checksum,
                "signals": dict(described),
            }
        )
        write_json(receipt_path(self.path, shard.index), receipt)
        return receipt

    def holds(self, digest: str, asked: Mapping[str, Ask], keys: pa.Array, hashes: Hashes) -> bool:
        """Whether it is of that identity's signals and of exactly these rows, in their order."""
        if self.digest != digest or self.asked != dict(asked) or self.rows != len(keys):
            return False
        return same_keys(self.keys, keys) and bool((self.hashes == hashes).all())

    def seal(self) -> Segment:
        """Make it part of the cache: only shards with valid receipts serve rows.

        Raises SignalError when shards disagree about a signal's shape or dtype, and
        CorruptShardError when no shard is finished.
        """
        receipts = self.receipts()
        if not receipts:
            raise CorruptShardError(f"{self.path} has no finished shard; nothing to seal")
        signals = agreed_signals(self.path, receipts, self.asked)
        fixed = [signal for signal in signals.values() if signal.kind == "fixed"]
        if fixed:
            describe_arrays(self.path, fixed, self.rows, self.shard_rows)
        write_json(self.path / "segment.json", seal_of(self, receipts))
        return Segment(self.path)


def balanced(rows: int, shard_rows: int) -> int:
    """Rows of each shard, so that the last, whose chunk is padded, is nearly full.

    >>> balanced(5000, 4096)
    2500
    """
    return -(-rows // -(-rows // shard_rows))


def seal_of(folder: Folder, receipts: Mapping[int, Any]) -> dict[str, Any]:
    """What segment.json says when these shards are finished: a function of the other files alone."""
    described: dict[str, Any] = {}
    for name, signal in agreed_signals(folder.path, receipts, folder.asked).items():
        each = [receipt["signals"][name] for receipt in receipts.values()]
        described[name] = {
            **signal.to_json(),
            "bytes": sum(int(f["bytes"]) for s in each for f in s["files"]),
            "error": merged_errors(folder.path, [s.get("error") for s in each]),
        }
    small = ["plan.json", "rows.arrow", *map(receipt_name, receipts)]

    def checksum(name: str) -> str:
        try:
            return f"{crc32c(pieces_of(folder.path / name)):08x}"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise CorruptShardError(f"{folder.path / name} is missing; repair the cache") from error

    return {
        "format": FORMAT,
        "teacher": folder.teacher,
        "digest": folder.digest,
        "why": folder.why,
        "after": folder.after,
        "rows": folder.rows,
        "shard_rows": folder.shard_rows,
        "shards": sorted(receipts),
        "signals": described,
        "bytes": sum(s["bytes"] for s in described.values()),
        "files": dict(zip(small, each_of(folder.path, checksum, small), strict=True)),
    }
