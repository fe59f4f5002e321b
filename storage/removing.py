"""Taking files out of a cache: so that at any moment what is left is whole, or invisible."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from stillroom.storage.files import (
    TEMPORARY,
    each_of,
    in_work,
    make_folder,
    remote,
    store_errors,
    sync_folder,
)
from stillroom.storage.identity import digest
from stillroom.storage.place import Place
from stillroom.storage.process import is_dead, this_process

_OWNER = re.compile(rf"{re.escape(TEMPORARY)}([0-9a-f]{{8}})-(\d+)-(\d+)-[0-9a-f]{{12}}-.+")
_ABANDONED_SECONDS = 24 * 3600


def remove(place: Place) -> None:
    """Delete a file, durably; nothing happens where there is none."""
    if not isinstance(place, Path):
        remote(place).remove()
        return
    with store_errors(place), suppress(FileNotFoundError):
        place.unlink()
        sync_folder(place.parent)


def remove_tree(place: Place, first: Iterable[str] = ()) -> None:
    """Delete everything at or below a place; the files named `first`, in that order, before all others.

    What makes the rest visible should be first, so that a kill half-way leaves nothing half true.
    """
    for name in first:
        remove(place / name)
    if not isinstance(place, Path):
        each_of(place, remove, [*remote(place).below(), remote(place)])
        return
    with store_errors(place), suppress(FileNotFoundError):
        _remove_whole(place)


def _remove_whole(path: Path) -> None:
    """A folder with all in it, or a file; of a link the link alone."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def move(place: Place, target: Place, first: Iterable[str] = ()) -> None:
    """Give a file or folder another place in the same cache; nothing may be at the target.

    In an object store it is copied, then removed as `remove_tree` does.
    """
    if not isinstance(place, Path):
        below = remote(place).below() or [remote(place)]
        names = [str(found).removeprefix(str(place)).strip("/") for found in below]
        for found, name in zip(below, names, strict=True):
            found.copy(remote(target / name if name else target))
        remove_tree(place, first)
        return
    assert isinstance(target, Path)
    with store_errors(target):
        make_folder(target.parent)
        os.rename(place, target)
        sync_folder(target.parent)
        sync_folder(place.parent)


def remove_leftovers(folder: Place) -> int:
    """Delete unfinished files below a folder that a dead process left; return how many.

    Those of other machines, whose processes nobody here can see, go when they are a day old.
    Objects are written at once, so a store has none.
    """
    if not isinstance(folder, Path):
        return 0
    count = 0
    for path in list(folder.rglob(f"{TEMPORARY}*")):
        with store_errors(path), suppress(FileNotFoundError):
            if _is_left(path):
                _remove_whole(path)
                count += 1
    return count


def _is_left(path: Path) -> bool:
    owner, here = _OWNER.fullmatch(path.name), this_process()
    if owner and owner[1] == digest(here["machine"])[:8]:
        if owner[2] == str(here["pid"]) and owner[3] == (here["started"] or "0"):
            return not in_work(path.name)
        started = owner[3] if owner[3] != "0" else ""
        return is_dead({**here, "pid": int(owner[2]), "started": started})
    return time.time() - path.lstat().st_mtime > _ABANDONED_SECONDS
