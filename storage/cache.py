"""A cache: a folder of sealed segments, and snapshots over them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from stillroom.storage.draft import Draft
from stillroom.storage.errors import BusyError, FormatError, NotACacheError
from stillroom.storage.files import (
    TEMPORARY,
    read_json,
    remove_leftovers,
    store_errors,
    write_json,
)
from stillroom.storage.folder import FORMAT, Ask, Hashes
from stillroom.storage.segment import Segment
from stillroom.storage.snapshot import Served, Snapshot, write_snapshot

_SEGMENT = re.compile(r"[0-9]{4,9}-")
_SNAPSHOT = re.compile(r"[0-9]{6,9}\.json")


def _number(segment: Path) -> int:
    return int(segment.name.partition("-")[0])


class Cache:
    """Teachers' answers at a path.

    Reading needs no lock: what is sealed never changes. Writers take `writing()`.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a cache that exists; NotACacheError or FormatError when it cannot be."""
        self.path = Path(path)
        marker = self.path / "cache.json"
        if not self.path.is_dir():
            raise NotACacheError(
                f"no cache at {self.path}: there is no such folder. Make one by teaching into it: "
                "Cache.at(path) opens or creates"
            )
        if not marker.exists():
            raise NotACacheError(
                f"{self.path} is not a cache: it has no cache.json. Name a cache's own folder, or a "
                "new one"
            )
        found = read_json(marker).get("format")
        if not isinstance(found, int) or found < 1:
            raise FormatError(f"{marker} states no format number; it was damaged or replaced")
        if found > FORMAT:
            raise FormatError(
                f"{self.path} is written in format {found}; this stillroom reads formats up to "
                f"{FORMAT}. Upgrade stillroom; nothing was changed"
            )

    @classmethod
    def at(cls, path: str | Path) -> Cache:
        """Open the cache at a path, or make an empty one where nothing is yet.

        A folder that holds something else is refused (NotACacheError).
        """
        path = Path(path)
        with store_errors(path):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise NotACacheError(
                    f"{path} is a file or below one, not a cache's folder; name another path"
                ) from error
            # A process that was killed while it made the cache may have left a temporary file.
            empty = all(p.name.startswith(TEMPORARY) for p in path.iterdir())
        if empty:
            write_json(path / "cache.json", {"format": FORMAT, "stillroom": "teacher cache"})
        return cls(path)

    def __repr__(self) -> str:
        """The path and how many snapshots there are."""
        return f"<Cache {self.path}: {len(self.snapshots())} snapshots>"

    def segments(self) -> list[Segment]:
        """Every sealed segment, oldest first."""
        return [Segment(p) for p in self._folders() if (p / "segment.json").exists()]

    def drafts(self) -> list[Draft]:
        """Every unsealed segment, oldest first."""
        return [Draft(p) for p in self._folders() if not (p / "segment.json").exists()]

    def _folders(self) -> list[Path]:
        folder = self.path / "segments"
        if not folder.is_dir():
            return []
        found = [p for p in folder.iterdir() if _SEGMENT.match(p.name) and p.is_dir()]
        return sorted(found, key=lambda p: (_number(p), p.name))

    def draft(
        self,
        teacher: str,
        identity: Mapping[str, Any],
        asked: Mapping[str, Ask],
        keys: pa.Array,
        hashes: Hashes,
        shard_rows: int,
    ) -> Draft:
        """Begin a new segment; call it inside `writing()`."""
        numbers = [_number(p) for p in self._folders()]
        return Draft.create(
            self.path / "segments",
            max(numbers, default=0) + 1,
            teacher=teacher,
            identity=identity,
            asked=asked,
            keys=keys,
            hashes=hashes,
            shard_rows=shard_rows,
        )

    def snapshots(self) -> list[int]:
        """The numbers of all snapshots, oldest first."""
        found = (self.path / "snapshots").glob("*.json")
        return sorted(int(p.stem) for p in found if _SNAPSHOT.fullmatch(p.name))

    def snapshot(self, number: int | None = None) -> Snapshot:
        """One snapshot; the newest without a number. NotACacheError when there is none."""
        known = self.snapshots()
        if not known:
            raise NotACacheError(f"{self.path} has no snapshot yet: nothing was taught to the end")
        if number is not None and number not in known:
            raise NotACacheError(
                f"{self.path} has no snapshot {number}; it has {known[0]} to {known[-1]}"
            )
        return Snapshot(self.path, known[-1] if number is None else number)

    def commit(self, served: Sequence[Served], why: str) -> Snapshot:
        """Write the next snapshot; call it inside `writing()`."""
        known = self.snapshots()
        number = (known[-1] if known else 0) + 1
        write_snapshot(self.path / "snapshots", number, served, known[-1] if known else None, why)
        return Snapshot(self.path, number)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the cache for writing; BusyError says who holds it.

        The lock is the operating system's and ends with the process that holds it, however it ends.
        Leftovers of a killed writer are removed on entry.
        """
        path = self.path / "writer.lock"
        with store_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
                raise BusyError(
                    f"{self.path} is being written by another process: {holder or 'unknown'}. Wait "
                    "for it to finish; readers are not affected"
                ) from error
            holder = json.dumps(
                {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
            )
            with store_errors(path, len(holder)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, holder.encode(), 0)
            remove_leftovers(self.path)
            yield
        finally:
            os.close(descriptor)
