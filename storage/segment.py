"""A sealed segment: the rows of one teach run, immutable, each byte covered by a checksum."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import GARBLED, CorruptShardError, FormatError, listed
from stillroom.storage.files import crc32c, each_of, parse_json, read_json, read_whole
from stillroom.storage.folder import FORMAT, READABLE, Folder
from stillroom.storage.place import Place
from stillroom.storage.receipt import receipt_name, receipt_path, stored_files
from stillroom.storage.sealed import read_sealed
from stillroom.storage.shards import Run, StoredFile, inside
from stillroom.storage.signal import Signal


class Segment(Folder):
    """A sealed segment: immutable, part of the cache."""

    def __init__(self, path: Place) -> None:
        """Read the seal; FormatError when it does not fit the plan."""
        super().__init__(path)
        sealed = read_json(path / "segment.json")
        try:
            if sealed["format"] not in READABLE:
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
            small = ["plan.json", "rows.arrow", *map(receipt_name, self.finished)]
            if lacking := [name for name in small if name not in self._sums]:
                raise ValueError(f"files: no checksum of {listed(lacking)}")
        except GARBLED as error:
            raise FormatError(f"{path / 'segment.json'} lacks or garbles {error}") from error
        read_sealed(path / "plan.json", self._sums["plan.json"])
        self._files: dict[int, dict[str, StoredFile]] = {}

    def without(self, shards: Collection[int]) -> Segment:
        """The segment as it would be if these shards had never been finished."""
        other = copy.copy(self)
        other.finished = tuple(i for i in self.finished if i not in shards)
        return other

    def served(self) -> NDArray[np.bool_]:
        """(rows,) bool: slots whose shard was finished."""
        return np.isin(np.arange(self.rows) // self.shard_rows, np.array(self.finished, np.int64))

    def files(self, shard: int) -> dict[str, StoredFile]:
        """The stored files of one finished shard, by array name."""
        if shard not in self._files:
            if shard not in self.finished:
                raise CorruptShardError(f"{self.path} has no finished shard {shard}")
            # Those of an object store all at once: one after another would take a minute.
            asked = [shard] if isinstance(self.path, Path) else list(self.finished)
            for index, files in zip(asked, each_of(self.path, self._read, asked), strict=True):
                self._files[index] = files
        return self._files[shard]

    def _read(self, shard: int) -> dict[str, StoredFile]:
        """A receipt says where values lie, so its own bytes are checked before it is believed."""
        path = receipt_path(self.path, shard)
        receipt = parse_json(read_sealed(path, self._sums[receipt_name(shard)]), path)
        return {name: file for file in stored_files(receipt, path) for name in file.arrays}

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
                try:
                    content = read_whole(self.path / file.path)
                    file.check(np.frombuffer(content, np.uint8), self.path)
                except CorruptShardError as error:
                    found.append(str(error))
        return found
