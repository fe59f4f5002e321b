"""The loader on caches larger than memory, and in processes that begin afresh."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from stillroom.stages import ViewPlan, loader
from stillroom.stages.views.boxes import Flip
from tests.stages.builders import data, plain, taught
from tests.stages.loader_builders import equal
from tests.stages.view_builders import album, viewed

LITTLE = """
import resource, sys
import numpy as np
from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, loader, teach
from stillroom.storage import Cache, Reader

ROWS, WIDTH, LIMIT = 62_000, 2048, 24 * 2**20

def wide(x):
    feature = (x[:, None] * np.arange(1, WIDTH + 1, dtype="f4")).astype("f2")
    return {"feature": feature, "few": [row[: 3 + int(v) % 5].astype("f4") for row, v in zip(feature, x)]}

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

def epoch(feed):
    total, most = 0.0, [0, 0]
    for number, batch in enumerate(feed):
        total += float(batch["teacher.feature"].double().sum())
        if number % 50 == 0:
            half = 2 * number >= len(feed)
            most[half] = max(most[half], kilobytes("RssAnon"))
    return total, most

x = np.random.default_rng(0).random(ROWS).astype("f4") * 9
cache = Cache.at(f"{sys.argv[1]}/c")
rows = ArrayRows(range(ROWS), x=x)
encodings = {"feature": "float16"}
teacher = FunctionTeacher("wide", wide, ("x",), ("feature", "few"), encodings)
snapshot = teach(cache, rows, teacher, runner=LocalRunner(), batch_size=512, shard_rows=2048)
stored = sum(segment.bytes for segment in cache.segments())
feed = loader(snapshot, ["feature", "few"], rows=rows, columns=["x"], batch_size=128, compare=False)
part = loader(snapshot, ["feature", "few"], keys=range(2_000), batch_size=128)
_, (before, _) = epoch(part)  # threads and libraries take what they take
resource.setrlimit(
    resource.RLIMIT_DATA, (kilobytes("VmData") * 1024 + LIMIT, resource.RLIM_INFINITY)
)
total, (first, second) = epoch(feed)
blocks = (wide(x[i : i + 500])["feature"].astype("f4") for i in range(0, ROWS, 500))
expected = sum(float(block.sum(dtype="f8")) for block in blocks)
flat = second - first < 4096, first - before < 16_384
print("read", stored // LIMIT, abs(total / expected - 1) < 1e-9, *flat)
try:
    Reader(snapshot, ["feature"]).take(np.arange(ROWS))
except MemoryError:
    print("not in memory")
print("anonymous kB before, and in each half:", before, first, second, file=sys.stderr)
print("resident kB, with pages of the page cache:", kilobytes("VmRSS"), file=sys.stderr)
"""


@pytest.mark.slow
def test_memory_stays_flat_over_a_cache_ten_times_larger(tmp_path: Path) -> None:
    """Of memory that is the process's own: mapped shards are the page cache's, which gives them up."""
    script = tmp_path / "little.py"
    script.write_text(LITTLE)
    # One arena for all threads: how much of several lies idle hangs on how they take turns.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    print(ran.stderr[-3000:])
    assert ran.stdout.splitlines() == ["read 10 True True True", "not in memory"]


@pytest.mark.slow
def test_processes_may_begin_afresh(tmp_path: Path) -> None:
    """As on systems without fork, and for caches in an object store."""
    snapshot = taught(tmp_path / "c", data(60), plain())
    feed = loader(snapshot, ["logits"], rows=data(60), columns=["image"], batch_size=8)
    expected = list(feed)
    feed.set_epoch(0)
    spawned = multiprocessing.get_context("spawn")
    through: Any = DataLoader(feed, batch_size=None, num_workers=2, multiprocessing_context=spawned)
    assert all(equal(*pair) for pair in zip(through, expected, strict=True))


def test_it_is_carried_to_other_processes_with_its_place(tmp_path: Path) -> None:
    rows = album()
    snapshot = viewed(tmp_path, ViewPlan((Flip(),), seed=1), rows)
    feed = loader(snapshot, ["logits"], rows=rows, columns=["image"], views=2, batch_size=5)
    next(iter(feed))
    state = feed.state_dict()
    feed.load_state_dict(state)
    carried: Any = ForkingPickler.loads(ForkingPickler.dumps(feed))
    assert carried.state_dict() == state
    rest = list(carried)
    assert len(rest) == 2
    assert all(equal(*pair) for pair in zip(rest, feed, strict=True))
    assert np.isin(rest[0]["batch.index"], np.arange(12)).all()
