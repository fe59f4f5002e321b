"""A place: where something of a cache lies, in a folder or in an object store.

`pathlib.Path` is one, and so is `ObjectPlace`; storage asks no more of either than is named here.
What writes or removes is in `files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")


class Place(Protocol):
    """What of `pathlib.Path` the cache needs."""

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def parent(self) -> Self:
        """What it lies in."""

    def __truediv__(self, part: str) -> Self:
        """Something below it; `part` may hold slashes."""

    def __hash__(self) -> int:
        """Places are keys of look-ups."""

    def exists(self) -> bool:
        """Whether anything is there."""

    def is_file(self) -> bool:
        """Whether a file or an object is there."""

    def is_dir(self) -> bool:
        """Whether a folder, or a prefix of objects, is there."""

    def iterdir(self) -> Iterator[Self]:
        """What lies directly below it."""

    def read_bytes(self) -> bytes:
        """All of it; FileNotFoundError where nothing is."""


def place_of(where: str | Place) -> Place:
    """A path as it is, a URL such as s3://bucket/prefix as a place in that object store."""
    if not isinstance(where, str):
        return where
    if not _URL.match(where):
        return Path(where)
    from stillroom.storage.objects import ObjectPlace

    return ObjectPlace.at(where)


def relative(place: Place, folder: Place) -> str:
    """The path of something below a folder, with slashes."""
    return str(place).removeprefix(f"{folder}/")


def files_below(place: Place) -> Iterator[Place]:
    """Every file at any depth, folder by folder, each folder in order of names.

    A link to a folder is not followed, since it may lead back here or anywhere. A store is asked once.
    """
    if not isinstance(place, Path):
        from stillroom.storage.objects import ObjectPlace

        assert isinstance(place, ObjectPlace)
        yield from sorted(place.below(), key=lambda p: p.key.split("/"))
        return
    if not place.is_dir():
        return
    for found in sorted(place.iterdir(), key=lambda p: p.name):
        if found.is_dir() and not found.is_symlink():
            yield from files_below(found)
        else:
            yield found
