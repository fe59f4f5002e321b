"""The mirror: what was fetched from an object store and never changes, kept on this machine.

A folder of files named by what they hold. Least recently used files go when there is no room for
the next one; who has one mapped keeps reading it. Several processes may share a mirror.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stillroom.storage.errors import MirrorError
from stillroom.storage.files import TEMPORARY, store_errors
from stillroom.storage.identity import digest

_USUAL_BYTES = 20 * 2**30


@dataclass(frozen=True)
class Mirror:
    """A folder with a limit on the bytes kept in it."""

    folder: Path
    limit_bytes: int = _USUAL_BYTES

    @classmethod
    def usual(cls) -> Mirror:
        """STILLROOM_MIRROR (else the user's cache folder) with STILLROOM_MIRROR_BYTES (else 20 GiB)."""
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = os.environ.get("STILLROOM_MIRROR") or Path(caches) / "stillroom"
        limit = os.environ.get("STILLROOM_MIRROR_BYTES", str(_USUAL_BYTES))
        if not limit.isdecimal():
            raise MirrorError(
                f"STILLROOM_MIRROR_BYTES is {limit!r}; expected a whole number of bytes"
            )
        return cls(Path(folder), int(limit))

    def place(self, source: str, checksum: str) -> Path:
        """Where the file of that source and checksum is kept, whether or not it is there now."""
        return self.folder / digest([source, checksum])[:40]

    def keep(
        self, source: str, checksum: str, load: Callable[[], bytes], size: int | None = None
    ) -> Path:
        """The kept file, loaded first where it is not there (or not of that size).

        Raises MirrorError for a file larger than the limit, StoreFullError for a full disk, and what
        `load` raises.
        """
        kept = self.place(source, checksum)
        with suppress(OSError):
            if size is None or kept.stat().st_size == size:
                os.utime(kept)  # used just now
                return kept
        content = load()
        if len(content) > self.limit_bytes:
            raise MirrorError(
                f"{source} has {len(content):,} bytes, the mirror {self.folder} may keep "
                f"{self.limit_bytes:,}. Raise STILLROOM_MIRROR_BYTES, or teach with fewer rows a shard"
            )
        self.make_room(len(content))
        temporary = self.folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        with store_errors(kept, len(content)):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                # Not synced: what a power cut spoils, the checksum finds, and it is fetched again.
                temporary.write_bytes(content)
                os.replace(temporary, kept)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
        return kept

    def drop(self, source: str, checksum: str) -> None:
        """Forget a file, as after it was found damaged."""
        self.place(source, checksum).unlink(missing_ok=True)

    def make_room(self, size: int) -> None:
        """Remove the least recently used files until `size` more bytes are within the limit."""
        known = []
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):  # another process removed it just now
                    state = entry.stat()
                    known.append((state.st_mtime_ns, state.st_size, entry.path))
        total = sum(bytes_ for _, bytes_, _ in known)
        for _, bytes_, path in sorted(known):
            if total + size <= self.limit_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
            total -= bytes_
