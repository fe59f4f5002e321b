"""One rerun in a fresh process: `python -m benchmarks.rerun_once FOLDER KEYS CASE` prints seconds.

CASE: `first` teaches, `same` teaches again with nothing to do, `moved` and `edited` plan what there
is to do once the rows are in another order, or 1% of them have other content.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

WIDTH = 16
SHARD_ROWS = 16_384


def small() -> nn.Module:
    """A teacher of a few hundred weights."""
    from torch import nn

    return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 10))


def main(folder: Path, keys: str, case: str) -> None:
    """Time each part once."""
    marks = {"start": time.perf_counter()}

    def mark(name: str) -> None:
        marks[name] = time.perf_counter()

    import numpy as np
    import pyarrow as pa

    from stillroom.pipeline.runner import LocalRunner
    from stillroom.stages import ArrayRows, ModuleTeacher, plan_teach, teach
    from stillroom.storage import Cache

    mark("import")
    value = np.load(folder / "value.npy")
    numbers = np.arange(len(value))
    if case == "edited":
        value[::100] += 1
    if case == "moved":
        numbers = np.random.default_rng(1).permutation(len(value))
        value = value[numbers]
    names = numbers if keys == "integer" else pa.array([f"row-{n:07d}" for n in numbers.tolist()])
    mark("data")
    rows = ArrayRows(names, value=value)
    mark("rows")
    weights = folder / "small.safetensors"
    teacher = ModuleTeacher("small", partial(small), weights=weights, inputs=("value",))
    cache = Cache.at(folder / f"{keys}.cache")
    if case in ("first", "same"):
        runner = LocalRunner()
        teach(cache, rows, teacher, runner=runner, batch_size=1024, shard_rows=SHARD_ROWS)
    else:
        work = plan_teach(cache, rows, teacher).to_compute
        assert work == (len(value) // 100 if case == "edited" else 0), work
    mark("teach")
    assert ("torch" in sys.modules) == (case == "first"), "torch was loaded for nothing"
    seconds = dict(zip(list(marks)[1:], np.diff(list(marks.values())).tolist(), strict=True))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
