"""Memory of a reader that goes through a cache ten times larger than the memory it is allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.flat_once import WIDTH
from benchmarks.measuring import Section, Table
from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache

TIMES = 10


def said(feature: np.ndarray) -> dict[str, np.ndarray]:
    """A teacher that repeats a column."""
    return {"feature": feature}


def measure(work: Path, quick: bool) -> Section:
    """One process under a limit that the kernel enforces."""
    allowed = (16 if quick else 64) << 20
    rows = TIMES * allowed // (WIDTH * 2)
    section = Section(
        "Memory while a cache is read",
        f"A cache of {TIMES * allowed >> 20} MiB (float16[{WIDTH}], {rows:,} rows, two segments), read "
        "in shuffled batches of 512 rows, decoded to float32, by a process that may have "
        f"{allowed >> 20} MiB more than it has when the reader is open. The limit is RLIMIT_DATA: the "
        "kernel counts private memory and refuses what is above, and leaves out files that are mapped, "
        "whose pages it drops when it needs room (RLIMIT_AS would count those). Anonymous memory is "
        "what /proc/self/smaps_rollup says, looked at after every hundred batches.",
    )
    rng = np.random.default_rng(0)
    teacher = FunctionTeacher("said", said, ("feature",), ("feature",), {"feature": "float16"})
    cache = Cache.at(work / "flat.cache")
    feature = np.concatenate(
        [rng.random((rows // TIMES, WIDTH), np.float32).astype(np.float16) for _ in range(TIMES)]
    )
    for count in (rows // 2, rows):
        data = ArrayRows(np.arange(count), feature=feature[:count])
        teach(cache, data, teacher, runner=LocalRunner())
    command = [sys.executable, "-m", "benchmarks.flat_once", str(work / "flat.cache"), str(allowed)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    names = {
        "start": "anonymous memory when the reader is open",
        "first": "after a hundred batches",
        "middle": "after half of all rows",
        "end": "after all rows",
        "most": "most of all looks",
    }
    table = [(words, f"{found[name] / 2**20:.1f} MiB") for name, words in names.items()]
    table += [
        ("rows read", f"{found['rows']:,}"),
        ("seconds", f"{found['seconds']:.2f}"),
        ("loading the same rows into one array", found["loaded"]),
    ]
    section.tables.append(Table(("", "found"), tuple(table)))
    return section
