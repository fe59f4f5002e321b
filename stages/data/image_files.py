"""The image files below a folder: which are taken, which are not, which are broken at first sight."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.images import SUFFIXES
from stillroom.storage.errors import RowsError

Int64s = NDArray[np.int64]


@dataclass
class Found:
    """What lies below a folder."""

    names: list[str] = field(default_factory=list)
    """Images relative to the folder, with `/`, sorted by code points."""
    sizes: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))
    """(n,) bytes."""
    times: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))
    """(n,) times of change in nanoseconds."""
    broken: dict[int, str] = field(default_factory=dict)
    """By place: what is wrong with an image that cannot be one."""
    lost: dict[str, str] = field(default_factory=dict)
    """Names that cannot even be keys, as Python prints them, and why."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Relative names that are not taken, and why."""


def find_images(root: Path) -> Found:
    """Every image below `root`, links followed.

    FileNotFoundError where nothing is, RowsError for no folder, for one without images, for a link to a
    folder that it lies in.
    """
    if not root.exists():
        raise FileNotFoundError(f"no images at {root}; name a folder of image files")
    if not root.is_dir():
        raise RowsError(f"{root} is no folder; name the folder that holds the images")
    found, states = Found(), dict[str, os.stat_result | None]()
    _walk(root, "", [_node(os.stat(root))], found, states)
    if not states and not found.lost:
        raise RowsError(
            f"the folder {root} holds no image ({', '.join(sorted(SUFFIXES))}); "
            f"{len(found.left_out):,} other names lie in it"
        )
    found.names = sorted(states)
    each = [states[name] for name in found.names]
    found.sizes = np.array([s.st_size if s else 0 for s in each], np.int64)
    found.times = np.array([s.st_mtime_ns if s else 0 for s in each], np.int64)
    for place, (name, state) in enumerate(zip(found.names, each, strict=True)):
        if state is None:
            found.broken[place] = f"a link to {os.readlink(root / name)}, where nothing is"
        elif not stat.S_ISREG(state.st_mode):
            found.broken[place] = "no plain file"
        elif state.st_size == 0:
            found.broken[place] = "an empty file, 0 bytes"
    return found


def _node(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _walk(
    folder: Path,
    prefix: str,
    above: list[tuple[int, int]],
    found: Found,
    states: dict[str, os.stat_result | None],
) -> None:
    before = len(states) + len(found.lost)
    with os.scandir(folder) as entries:
        every = sorted(entries, key=lambda entry: entry.name)
    for entry in every:
        name = prefix + entry.name
        if entry.name.startswith("."):
            found.left_out[ascii(name)[1:-1] if _odd(name) else name] = "a hidden name"
            continue
        try:
            state = entry.stat()
        except FileNotFoundError:
            state = None
        except OSError as error:
            raise RowsError(f"{entry.path} cannot be looked at: {error.strerror}") from error
        if state is not None and stat.S_ISDIR(state.st_mode):
            if _node(state) in above:
                raise RowsError(
                    f"{entry.path} is a link to a folder that it lies in; remove the link"
                )
            _walk(Path(entry.path), f"{name}/", [*above, _node(state)], found, states)
        elif entry.name.rpartition(".")[2].lower() not in SUFFIXES or "." not in entry.name:
            found.left_out[ascii(name)[1:-1] if _odd(name) else name] = "no image by its ending"
        elif _odd(name):
            found.lost[ascii(name)] = "its name is no UTF-8, so it can be no key; rename it"
        else:
            states[name] = state
    if prefix and len(states) + len(found.lost) == before:
        found.left_out[prefix] = "a folder without images"


def _odd(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False
