"""Loading with none of the files in the page cache."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.loading_rivals import Stored
from benchmarks.measuring import Line, Section, Timing, Way, interleaved

STAYED = 0.01
"""The share of its pages from which a way was not cold: what is mapped is not dropped."""
SLOW_S = 2.0
"""What takes longer in its first round gets only one that counts."""


def cold(
    section: Section, what: str, ways: Mapping[str, Stored | str], rounds: int
) -> dict[str, Timing]:
    """Each way's time from opening to the last batch of one epoch, its files' pages dropped before.

    A note says how many of the pages were still there, as the kernel is asked and not made to.
    """
    left: dict[str, float] = {}
    each: dict[str, Way] = {
        name: partial(_epoch, name, way, way.folder, left)
        for name, way in ways.items()
        if isinstance(way, Stored) and way.folder is not None
    }
    first = {name: way() for name, way in each.items()}
    slow = [name for name, seconds in first.items() if seconds > SLOW_S]
    times = interleaved({n: w for n, w in each.items() if n not in slow}, rounds, warm=False)
    times |= {name: Timing((first[name],)) for name in slow}
    for name, timing in times.items():
        if name != "loader":
            title = f"{name}, which kept its files in memory" if left[name] > STAYED else name
            section.lines.append(Line(f"{what}, cold", title, times["loader"], timing))
    stayed = [f"{share:.0%} for {name}" for name, share in left.items() if share > STAYED]
    section.notes.append(
        f"{what}, cold: of the files' pages there were still in memory when an epoch began (mincore): "
        f"{', '.join(stayed) or 'none'}."
    )
    return times


def _epoch(name: str, way: Stored, folder: Path, left: dict[str, float]) -> float:
    gc.collect()  # pages that something still maps stay where they are
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        _drop(path)
    left[name] = max(_resident(files), left.get(name, 0.0))
    started = perf_counter()
    for _ in way.open()():
        pass
    return perf_counter() - started


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # dirty pages are not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _resident(files: list[Path]) -> float:
    """The share of the files' pages that lie in memory."""
    there = pages = 0
    for path in files:
        if size := path.stat().st_size:
            seen = _pages(path, size)
            there, pages = there + int((seen & 1).sum()), pages + len(seen)
    return there / max(pages, 1)


def _pages(path: Path, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """(pages,) uint8 whose last bit says that the page is in memory: mincore(2)."""
    seen = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        start = np.frombuffer(mapped, np.uint8)
        address = start.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        given = ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(seen.ctypes.data)
        if libc.mincore(*given):
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
        del start
    return seen
