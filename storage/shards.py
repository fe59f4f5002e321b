"""What every shard format does: write one shard of a signal, and read rows from many of them.

A segment's rows are cut into shards of `shard_rows`; shard i holds slots i * shard_rows and on. One
worker writes one whole shard, so two writers never share a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import CorruptShardError
from stillroom.storage.files import crc32c
from stillroom.storage.gather import Int64s
from stillroom.storage.mapped import Mapping as FileMapping
from stillroom.storage.place import Place
from stillroom.storage.signal import Signal, Values

_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199}){0,99}")


def inside(path: str) -> str:
    """A relative path as we write them; ValueError for one that could leave its folder.

    >>> inside("signals/logits/c/0/0")
    'signals/logits/c/0/0'
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"path {path!r} leaves the segment")
    return path


@dataclass(frozen=True)
class StoredFile:
    """One file of a shard, as its receipt describes it."""

    path: str
    """Relative to the segment."""
    arrays: tuple[str, ...]
    """The arrays or columns that it holds."""
    bytes: int
    crc32c: str
    """Of all bytes before the trailer, eight hexadecimal digits."""
    layout: Mapping[str, Any]
    """Where in the file the values start; each format says how."""
    trailer: int = 0
    """Bytes at the end (0 or 4) that repeat the checksum, little endian. They cannot be part of it:
    the CRC of anything followed by its own CRC is one and the same number for every file."""

    def to_json(self) -> dict[str, Any]:
        """As the receipt holds it."""
        return {
            "path": self.path,
            "arrays": list(self.arrays),
            "bytes": self.bytes,
            "crc32c": self.crc32c,
            "layout": dict(self.layout),
            "trailer": self.trailer,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StoredFile:
        """Read back `to_json`; ValueError when a path would leave the segment."""
        path = inside(value["path"])
        arrays = tuple(str(name) for name in value["arrays"])
        size, trailer = int(value["bytes"]), int(value["trailer"])
        if trailer not in (0, 4):
            raise ValueError(f"trailer of {trailer} bytes")
        return cls(path, arrays, size, str(value["crc32c"]), dict(value["layout"]), trailer)

    def check(self, content: NDArray[np.uint8], where: Place) -> None:
        """Raise CorruptShardError when the content is not what was written."""
        body, trailer = np.split(content, [len(content) - self.trailer])
        found = f"{crc32c([body]):08x}"
        repeated = trailer[::-1].tobytes().hex() or found
        if found != self.crc32c or repeated != self.crc32c:
            raise CorruptShardError(
                f"{where / self.path}: checksum {found}, its receipt says {self.crc32c}: bytes were "
                f"changed after they were written. Move {where} away and teach again: only its rows "
                "are computed"
            )


@dataclass(frozen=True)
class Run:
    """Consecutive positions served by consecutive slots of one shard."""

    start: int
    rows: int
    segment: Place
    slot: int
    """Slot of the first row within its shard."""
    files: Mapping[str, StoredFile]
    """The shard's files of one signal, by array name."""

    def stored(self, array: str) -> StoredFile:
        """The file that holds an array; CorruptShardError when it lacks the array or these rows."""
        file = self.files.get(array)
        if file is None:
            raise CorruptShardError(f"a receipt of {self.segment} lists no file for {array!r}")
        rows = file.layout.get("rows")
        if not isinstance(rows, int) or self.slot + self.rows > rows:
            raise CorruptShardError(
                f"{self.segment / file.path} holds {rows} rows, slots to {self.slot + self.rows} "
                "were asked for; the snapshot or the receipt is damaged"
            )
        return file


class RowSource(Protocol):
    """Reads rows of one signal by position."""

    def missing(self, positions: Int64s) -> Int64s:
        """Indices into `positions` of those that are not stored."""

    def read(self, positions: Int64s, *, decode: bool = True) -> Any:
        """The rows in that order; with decode=False the stored parts by name."""


class ShardFormat(Protocol):
    """How one kind of signal lies in a segment's folder."""

    def write(
        self, segment: Place, signal: Signal, shard: int, shard_rows: int, values: Values
    ) -> list[StoredFile]:
        """Write one whole shard, durable when this returns."""

    def write_parts(
        self, segment: Place, signal: Signal, shard: int, shard_rows: int, parts: Mapping[str, Any]
    ) -> list[StoredFile]:
        """The same of parts by name as `RowSource.read(..., decode=False)` gives them."""

    def open(self, signal: Signal, runs: Sequence[Run], *, check: bool) -> RowSource:
        """A reader over runs of many shards; `check` verifies checksums on first touch."""


class FileTable:
    """The mapped files behind a reader: each opened once, checked at most once."""

    def __init__(self, check: bool) -> None:
        """`check` False trusts the stored bytes."""
        self.mappings: list[FileMapping] = []
        self._stored: list[tuple[Place, StoredFile]] = []
        self._index: dict[tuple[Place, str], int] = {}
        self._sound: set[int] = set()
        self.touch = self._verify if check else None

    def add(self, segment: Place, file: StoredFile) -> int:
        """Map a file (or find it mapped) and return its index."""
        known = self._index.get((segment, file.path))
        if known is None:
            known = self._index[segment, file.path] = len(self.mappings)
            path = segment / file.path
            # Objects are fetched first, see MirroredRows; then they are files as well.
            assert isinstance(path, Path)
            self.mappings.append(FileMapping(path, file.bytes))
            self._stored.append((segment, file))
        return known

    def _verify(self, index: int) -> None:
        if index in self._sound:
            return
        segment, file = self._stored[index]
        file.check(self.mappings[index].bytes, segment)
        self._sound.add(index)
