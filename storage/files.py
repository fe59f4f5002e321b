"""Files that are whole or absent: written to a temporary name, synced, renamed, the folder synced."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import (
    CorruptShardError,
    FormatError,
    StoreFullError,
    StorePermissionError,
)
from stillroom.storage.identity import digest
from stillroom.storage.place import Place
from stillroom.storage.process import is_dead, this_process

if TYPE_CHECKING:
    from stillroom.storage.objects import ObjectPlace

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]
TEMPORARY = ".tmp-"
_REQUESTS = 16
"""Sent at once to an object store, whose answers take milliseconds each."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def store_errors(path: Path, need_bytes: int = 0) -> Iterator[None]:
    """Turn a full disk or a refused write into an error that names the path and the way out."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreFullError | StorePermissionError | CorruptShardError):
            raise
        # EFBIG: the limit on one file's size, of the user or of the file system.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = _free_bytes(path)
            raise StoreFullError(
                f"no room to write {path}: needs {need_bytes:,} bytes, {free:,} free. Nothing that "
                "was stored before is harmed; make room and run the same command to go on."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorePermissionError(
                f"cannot write {path}: {error.strerror}. Give this user write permission on "
                f"{path.parent}, or choose another folder."
            ) from error
        raise


def _free_bytes(path: Path) -> int:
    folder = path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def crc32c(buffers: Iterable[Buffer]) -> int:
    """CRC-32C (Castagnoli) of the buffers one after another, as an unsigned 32-bit integer."""
    value = 0
    for buffer in buffers:
        value = google_crc32c.extend(value, buffer)
    return value


def write_atomic(place: Place, buffers: Iterable[Buffer], *, new: bool = False) -> int:
    """Write the buffers so that a reader sees all of them or nothing; return how many bytes.

    With `new`, FileExistsError where something is already there. Raises StoreFullError or
    StorePermissionError; the temporary file is then gone again.
    """
    parts = [np.frombuffer(b, np.uint8).data for b in buffers if len(b)]
    size = sum(part.nbytes for part in parts)
    if not isinstance(place, Path):
        content = b"".join(parts)
        remote(place).put_new(content) if new else remote(place).put(content)
        return size
    temporary = place.parent / temporary_name(place.name)
    with store_errors(place, size):
        _make_folder(place.parent)
        try:
            with open(temporary, "xb", buffering=0) as file:
                for part in parts:
                    _write_all(file.fileno(), part)
                os.fsync(file.fileno())
            if new:
                os.link(temporary, place)
                os.unlink(temporary)
            else:
                os.replace(temporary, place)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(place.parent)
    return size


def remote(place: Place) -> ObjectPlace:
    """The place as one in an object store, which every place is that is no path."""
    from stillroom.storage.objects import ObjectPlace

    assert isinstance(place, ObjectPlace)
    return place


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, and make their names durable."""
    missing = [folder]
    while not missing[-1].exists():
        missing.append(missing[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing[1:]:
        sync_folder(made)


def _write_all(descriptor: int, part: memoryview) -> None:
    """os.write until everything is written: the kernel may take less than it was given."""
    while part.nbytes:
        part = part[os.write(descriptor, part) :]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable (POSIX: a rename is on disk once its folder is synced)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(place: Place, value: Any, *, new: bool = False) -> None:
    """Write one JSON value as `write_atomic` does: sorted keys, two-space indent, a newline at the
    end."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(place, [(text + "\n").encode()], new=new)


def read_json(place: Place) -> dict[str, Any]:
    """Read a JSON object.

    FormatError names the file when it is not one, CorruptShardError when it is not there.
    """
    return parse_json(read_whole(place), place)


def read_whole(place: Place) -> bytes:
    """All bytes of a file that should be there; CorruptShardError when it is not."""
    try:
        return place.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CorruptShardError(f"{place} is missing; restore it, or teach again") from error


def parse_json(content: bytes, path: Place) -> dict[str, Any]:
    """The JSON object that these bytes of `path` are; FormatError when they are none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({error}); it was damaged or replaced") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} should hold a JSON object, found {type(value).__name__}")
    return value


def size_of(place: Place) -> int | None:
    """Bytes of a file; None where there is none."""
    if not isinstance(place, Path):
        return remote(place).size()
    try:
        state = place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


def children(folder: Place) -> list[Place]:
    """What lies directly below a folder; nothing where there is none."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def each_of(
    place: Place, function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    """function(item) of each; many at once where each waits for an object store."""
    if isinstance(place, Path):
        return [function(item) for item in items]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, items))


def remove(place: Place) -> None:
    """Delete a file; nothing happens where there is none."""
    if isinstance(place, Path):
        with store_errors(place):
            place.unlink(missing_ok=True)
    else:
        remote(place).remove()


def remove_tree(place: Place, first: Iterable[str] = ()) -> None:
    """Delete everything at or below a place; the files named `first`, in that order, before all others.

    What makes the rest visible should be first, so that a kill half-way leaves nothing half true.
    """
    for name in first:
        remove(place / name)
        if isinstance(place, Path) and place.is_dir():
            sync_folder(place)
    if not isinstance(place, Path):
        each_of(place, remove, [*remote(place).below(), remote(place)])
        return
    with store_errors(place), suppress(FileNotFoundError):
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def temporary_name(name: str) -> str:
    """A name for an unfinished file, which tells the process that writes it."""
    process = this_process()
    machine = digest(process["machine"])[:8]
    owner = f"{machine}-{process['pid']}-{process['started'] or 0}"
    return f"{TEMPORARY}{owner}-{secrets.token_hex(6)}-{name}"


_OWNER = re.compile(rf"{re.escape(TEMPORARY)}([0-9a-f]{{8}})-(\d+)-(\d+)-[0-9a-f]{{12}}-.+")
_ABANDONED_SECONDS = 24 * 3600


def remove_leftovers(folder: Place) -> int:
    """Delete unfinished files below a folder that a dead process left; return how many.

    Those of other machines, whose processes nobody here can see, go when they are a day old.
    Objects are written at once, so a store has none.
    """
    if not isinstance(folder, Path):
        return 0
    count = 0
    for path in list(folder.rglob(f"{TEMPORARY}*")):
        with suppress(FileNotFoundError):
            if _is_left(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                count += 1
    return count


def _is_left(path: Path) -> bool:
    owner, here = _OWNER.fullmatch(path.name), this_process()
    if owner and owner[1] == digest(here["machine"])[:8]:
        started = owner[3] if owner[3] != "0" else ""
        return is_dead({**here, "pid": int(owner[2]), "started": started})
    return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
