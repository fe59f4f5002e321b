"""Files that are whole or absent: written to a temporary name, synced, renamed, the folder synced."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import (
    CorruptShardError,
    FormatError,
    StoreFullError,
    StorePermissionError,
)

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]
TEMPORARY = ".tmp-"


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


def write_atomic(path: Path, buffers: Iterable[Buffer]) -> int:
    """Write the buffers to `path` so that a reader sees the whole file or none; return its bytes.

    Raises StoreFullError or StorePermissionError; the temporary file is then gone again.
    """
    parts = [np.frombuffer(b, np.uint8).data for b in buffers if len(b)]
    size = sum(part.nbytes for part in parts)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}"
    with store_errors(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb", buffering=0) as file:
                for part in parts:
                    _write_all(file.fileno(), part)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    return size


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


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value atomically: sorted keys, two-space indent, a newline at the end."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, [(text + "\n").encode()])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    FormatError names the file when it is not one, CorruptShardError when it is not there.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({error}); it was damaged or replaced") from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CorruptShardError(f"{path} is missing; restore it, or teach again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} should hold a JSON object, found {type(value).__name__}")
    return value


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files that a killed writer left in the folder; return how many.

    Call it only while holding the cache's writing lock.
    """
    found = [p for p in folder.rglob(f"{TEMPORARY}*") if p.exists()]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found)
