"""Read a whole cache under a memory limit: `python -m benchmarks.flat_once CACHE ALLOWED_BYTES`.

Prints anonymous memory in bytes at several moments, as JSON, and whether all rows fit into one array.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from stillroom.storage import Cache, Reader

WIDTH = 1024
BATCH = 512


def main(place: str, allowed: int) -> None:
    """Shuffled batches over all rows, then an attempt to hold them all."""
    reader = Reader(Cache(place).snapshot(), ["feature"])
    count = len(reader.snapshot.keys)
    order = np.random.default_rng(0).permutation(count)
    reader.take(order[:BATCH])
    data = _of("/proc/self/status", "VmData:")
    resource.setrlimit(resource.RLIMIT_DATA, (data + allowed, data + allowed))
    looks, started = [_anonymous()], time.perf_counter()
    for number, first in enumerate(range(0, count, BATCH)):
        reader.take(order[first : first + BATCH])
        if number % 100 == 99 or first + BATCH >= count:
            looks.append(_anonymous())
    seconds = time.perf_counter() - started
    try:
        held = np.ones((count, WIDTH), np.float16)
        loaded = f"{held.nbytes >> 20} MiB fitted: the limit is none"
    except MemoryError:
        loaded = "refused by the limit, as it should be"
    found = {
        "start": looks[0],
        "first": looks[1],
        "middle": looks[len(looks) // 2],
        "end": looks[-1],
        "most": max(looks),
        "rows": count,
        "seconds": seconds,
        "loaded": loaded,
    }
    print(json.dumps(found))


def _anonymous() -> int:
    return _of("/proc/self/smaps_rollup", "Anonymous:")


def _of(file: str, name: str) -> int:
    """Bytes of a line that is in kB."""
    line = next(each for each in Path(file).read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
