"""A whole file mapped into memory, without an open file behind it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import CorruptShardError
from stillroom.storage.files import require_regular

# mmap.mmap keeps a descriptor open for every mapping (Python 3.13 can be told not to), and a cache
# has more files than the usual limit of 1,024 descriptors. pyarrow's maps keep none, but ask the
# kernel to read the whole file ahead. So the system call is made directly.
_libc = ctypes.CDLL(None, use_errno=True)
_map = _libc.mmap
_map.restype = ctypes.c_void_p
_map.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_ssize_t,  # off_t is as wide as a pointer on every 64-bit system
)
_unmap = _libc.munmap
_unmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class _Pages:
    """Mapped bytes as numpy sees them; unmapped when the last array over them is gone."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._address: int | None = None
        address = _map(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address is None or address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot map {size:,} bytes: {os.strerror(number)}")
        self._address, self._size = int(address), size
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "data": (self._address, True),
            "shape": (size,),
            "typestr": "|u1",
        }

    def __del__(self, unmap: Any = _unmap) -> None:
        if self._address is not None:
            unmap(self._address, self._size)


class Mapping:
    """A whole file mapped read-only; mapped as long as this object or an array over it lives."""

    def __init__(self, path: Path, expected_bytes: int) -> None:
        """Map the file; CorruptShardError when it is missing or of another size."""
        try:
            require_regular(path)
            with open(path, "rb") as file:
                found = file.seek(0, os.SEEK_END)
                if found != expected_bytes or found == 0:
                    raise CorruptShardError(
                        f"{path} holds {found:,} bytes, its receipt says {expected_bytes:,}: it was "
                        "truncated or replaced; restore the file, or delete its segment and teach again"
                    )
                pages = _Pages(file.fileno(), found)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise CorruptShardError(
                f"{path} is missing though its receipt is there; restore the file, or delete its "
                "segment and teach again"
            ) from None
        self.bytes: NDArray[np.uint8] = np.asarray(pages)
        self.address: int = self.bytes.__array_interface__["data"][0]
