"""Small files that never change once they are written, believed only when their checksum fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.storage.errors import CorruptShardError
from stillroom.storage.files import crc32c, read_whole, remote
from stillroom.storage.place import Place


def _crc32c(content: Any) -> str:
    return f"{crc32c([np.frombuffer(content, np.uint8)]):08x}"


def read_sealed(
    place: Place,
    checksum: str,
    read: Callable[[Path], Any] = lambda path: read_whole(path),
    sum_of: Callable[[Any], str] = _crc32c,
) -> Any:
    """The file's content, as `read` gives it from a path: bytes, or another buffer.

    `sum_of` says how a content is summed up: as its CRC-32C, unless another way is given. Objects are
    read from the mirror; a copy that was spoilt there is fetched again. Raises CorruptShardError when
    the file is missing or not the one that was written.
    """
    if isinstance(place, Path):
        content = read(place)
    else:
        mirror = remote(place).mirror
        content = read(mirror.keep(str(place), checksum, lambda: read_whole(place)))
        if sum_of(content) != checksum:
            mirror.drop(str(place), checksum)
            content = read(mirror.keep(str(place), checksum, lambda: read_whole(place)))
    if sum_of(content) != checksum:
        raise CorruptShardError(
            f"{place} was changed after it was written: its checksum is not the one that was noted. "
            "Restore it, or repair the cache"
        )
    return content
