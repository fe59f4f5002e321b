"""A sealed segment: the rows of one teach run, immutable, each byte covered by a checksum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import GARBLED, CorruptShardError, FormatError, listed
from stillroom.storage.files import crc32c, read_json
from stillroom.storage.folder import FORMAT, Folder
from stillroom.storage.receipt import receipt_path, stored_files
from stillroom.storage.shards import Run, StoredFile, inside
from stillroom.storage.signal import Signal


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
