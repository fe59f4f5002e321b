"""Files that are whole or absent: written to a temporary name, synced, renamed, the folder synced."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from stillroom.storage.process import this_process

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
            free = free_bytes(path)
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


def free_bytes(path: Path) -> int:
    """Bytes free for this user where the path lies, or will lie; within `limited` also of the limit."""
    folder = path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    for root, limit in tuple(_limits.items()):
        if path.resolve().is_relative_to(root):
            free = min(free, max(limit - taken_bytes(root), 0))
    return free


_limits: dict[Path, int] = {}


@contextmanager
def limited(folder: Path, limit: int | None) -> Iterator[None]:
    """While the block runs, this process takes a folder to be full once it holds that many bytes, as
    under a quota that the disk does not tell of; None: no limit."""
    root = folder.resolve()
    if limit is None:
        yield
        return
    _limits[root] = limit
    try:
        yield
    finally:
        del _limits[root]


def taken_bytes(folder: Path) -> int:
    """Bytes of the disk that the files below a folder take, as a quota counts them."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # removed meanwhile
            total += file.lstat().st_blocks * 512
    return total


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
    name = temporary_name(place.name)
    temporary = place.parent / name
    with store_errors(place, size), finishing(name):
        make_folder(place.parent)
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


def make_folder(folder: Path) -> None:
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


def json_bytes(value: Any) -> bytes:
    """A JSON value as the files of a cache spell it."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def nan_as_none(value: Any) -> Any:
    """A JSON value with None for NaN and infinity, which JSON has not."""
    if isinstance(value, Mapping):
        return {name: nan_as_none(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [nan_as_none(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The object with the field `checksum`: the CRC-32C of its file as it would be with eight zeros."""
    blank = {**value, "checksum": "0" * 8}
    return {**blank, "checksum": f"{crc32c([json_bytes(blank)]):08x}"}


def fits_checksum(value: dict[str, Any], content: bytes | None = None) -> bool:
    """Whether the object has the field `checksum` that `with_checksum` would give it.

    With the content of its file: whether that is spelled as `write_json` does, too.
    """
    try:
        blank = json_bytes({**value, "checksum": "0" * 8})
    except ValueError:  # NaN, or half a character, which no file of a cache holds
        return False
    found = f"{crc32c([blank]):08x}"
    # The only field of that indent: no text of a JSON file holds a line break.
    spelled = blank.replace(b'\n  "checksum": "00000000"', f'\n  "checksum": "{found}"'.encode())
    return found == value.get("checksum") and content in (None, spelled)


def write_json(place: Place, value: Any, *, new: bool = False) -> None:
    """Write one JSON value as `write_atomic` does: sorted keys, two-space indent, a newline at the
    end."""
    write_atomic(place, [json_bytes(value)], new=new)


def read_json(place: Place) -> dict[str, Any]:
    """Read a JSON object.

    FormatError names the file when it is not one, CorruptShardError when it is not there.
    """
    return parse_json(read_whole(place), place)


def read_whole(place: Place) -> bytes:
    """All bytes of a file that should be there; CorruptShardError when it is not."""
    try:
        if isinstance(place, Path):
            require_regular(place)
        return place.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CorruptShardError(f"{place} is missing; restore it, or teach again") from error


def require_regular(path: Path) -> None:
    """CorruptShardError for a pipe or a device, which could be read for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CorruptShardError(f"{path} is no plain file; restore it, or teach again")


def parse_json(content: bytes, path: Place) -> dict[str, Any]:
    """The JSON object that these bytes of `path` are; FormatError when they are none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({error}); it was damaged or replaced") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} should hold a JSON object, found {type(value).__name__}")
    if _is_deeper(value, _DEEPEST):
        raise FormatError(f"{path} nests deeper than {_DEEPEST} levels; it was damaged or replaced")
    return value


_DEEPEST = 100
"""What walks a value that is nested deeper may run out of stack."""


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner = (i for v in level for i in (v.values() if isinstance(v, dict) else v))
        level = [i for i in inner if isinstance(i, dict | list)]
        if not level:
            return False
    return True


def size_of(place: Place) -> int | None:
    """Bytes of a file; None where there is none."""
    if not isinstance(place, Path):
        return remote(place).size()
    try:
        state = place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


PIECE_BYTES = 4 << 20
"""What is read at once from a file of any size."""


def pieces_of(place: Place, start: int = 0, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a file from `start` to `stop`, in order, a few MiB at a time."""
    if not isinstance(place, Path):
        yield np.frombuffer(place.read_bytes(), np.uint8)[start:stop]
        return
    with open(place, "rb", buffering=0) as file:
        file.seek(start)
        left = os.fstat(file.fileno()).st_size - start if stop is None else stop - start
        while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
            left -= len(piece)
            yield np.frombuffer(piece, np.uint8)


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


_unfinished: set[str] = set()


@contextmanager
def finishing(name: str) -> Iterator[None]:
    """While the block runs, what has this temporary name is in work; after it, it is a leftover."""
    _unfinished.add(name)
    try:
        yield
    finally:
        _unfinished.discard(name)


def in_work(name: str) -> bool:
    """Whether this process is writing what has this temporary name."""
    return name in _unfinished


def temporary_name(name: str) -> str:
    """A name for an unfinished file, which tells the process that writes it."""
    process = this_process()
    machine = digest(process["machine"])[:8]
    owner = f"{machine}-{process['pid']}-{process['started'] or 0}"
    return f"{TEMPORARY}{owner}-{secrets.token_hex(6)}-{name}"
