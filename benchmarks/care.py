"""What care for a cache costs: verify against plain reading, repair and compaction against teaching."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Line, Section, Timing, interleaved, timed
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, audit, repair, teach
from stillroom.storage import Cache, compact, verify

WIDTH, SHARD_ROWS, SEGMENTS = 1024, 4096, 8
PIECE_BYTES = 4 << 20


def said(value: NDArray[np.float32]) -> dict[str, Any]:
    """A layer of a network: a product that costs about what a small teacher's layer does."""
    return {"feature": value @ _matrix(value.shape[1])}


def _matrix(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, size**-0.5, (size, size)).astype(np.float32)


TEACHER = FunctionTeacher("said", said, ("value",), ("feature",), {"feature": "float16"})


def measure(work: Path, quick: bool) -> Section:
    """One cache of float16[1024], taught in eight steps."""
    rows, rounds = (16_384, 2) if quick else (131_072, 5)
    section = Section(
        "Care",
        f"{rows:,} rows of float16[{WIDTH}] in {SEGMENTS} segments and shards of {SHARD_ROWS:,} rows, "
        "page cache warm. Plain reading opens every file of the cache in pieces of 4 MiB with as many "
        "threads as verify uses, and does nothing with them.",
    )
    cache, data, first = _cache(work, rows)
    path = Path(str(cache.path))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    ways = {
        "verify": timed(partial(verify, path)),
        "read": timed(partial(_read_all, path)),
        "audit": timed(partial(audit, cache, data, TEACHER, runner=LocalRunner())),
    }
    times = interleaved(ways, rounds)
    section.lines.append(
        Line(f"verify, {size / 2**20:,.0f} MiB", "plain reading", times["verify"], times["read"])
    )
    taught = Timing((first,))
    section.lines.append(
        Line("audit, 4 rows of each shard", "teaching (once)", times["audit"], taught)
    )
    section.lines.append(
        Line("repair of one shard", "teaching (once)", _repaired(cache, data), taught)
    )
    before = time.perf_counter()
    compact(cache, shard_rows=SHARD_ROWS)
    joined = Timing((time.perf_counter() - before,))
    section.lines.append(Line(f"compact {SEGMENTS} segments", "teaching (once)", joined, taught))
    section.notes.append(
        f"Verify reads {size / 2**20 / times['verify'].median:,.0f} MiB/s here, plain reading "
        f"{size / 2**20 / times['read'].median:,.0f} MiB/s; both from memory, so a disk is slower "
        "than either."
    )
    return section


def _cache(work: Path, rows: int) -> tuple[Cache, ArrayRows, float]:
    value = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
    cache, seconds = Cache.at(work / "cache"), 0.0
    for step in range(1, SEGMENTS + 1):
        count = rows * step // SEGMENTS
        data = ArrayRows(np.arange(count), value=value[:count])
        started = time.perf_counter()
        teach(cache, data, TEACHER, runner=LocalRunner(), shard_rows=SHARD_ROWS)
        seconds += time.perf_counter() - started
    return cache, data, seconds


def _read_all(path: Path) -> None:
    def read(file: Path) -> None:
        with open(file, "rb", buffering=0) as content:
            while content.read(PIECE_BYTES):
                pass

    files = [Path(root) / name for root, _, names in os.walk(path) for name in names]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, files))


def _repaired(cache: Cache, data: ArrayRows) -> Timing:
    chunk = next(Path(str(cache.path)).glob("segments/*/signals/feature/c/0/0"))
    content = bytearray(chunk.read_bytes())
    content[99] ^= 1
    chunk.write_bytes(content)
    problems = verify(str(cache.path)).problems
    started = time.perf_counter()
    done = repair(cache, data, TEACHER, problems, runner=LocalRunner())
    seconds = time.perf_counter() - started
    if done.rows > SHARD_ROWS or verify(str(cache.path)).problems:
        raise RuntimeError(f"repair did not mend one shard: {done}")
    return Timing((seconds,))
