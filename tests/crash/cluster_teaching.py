"""What is taught on the cluster that dies, and the driver: a process of its own.

python -m tests.crash.cluster_teaching CACHE ADDRESS ROWS teaches and says what it hears.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner, RayRunner, RunnerError, WorkerLost
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache

SHARDS = 200
LOG, PACE = "STILLROOM_TEST_LOG", "STILLROOM_TEST_PACE"


def said(content: NDArray[np.int64]) -> dict[str, Any]:
    """A function of the rows alone; each call is one shard, and is written down with the process."""
    if name := os.environ.get(LOG):
        time.sleep(float(os.environ[PACE]))
        with open(name, "a") as log:
            log.write(f"{content[0, 0]} {os.getpid()}\n")
    number = content[:, 0] * 100 + content[:, 1]
    return {
        "echo": content,
        "logits": (np.outer(number, np.arange(3, 11)) % 23 + np.arange(8) / 10).astype(np.float32),
        "words": [f"{key}/{version}" for key, version in content],
    }


def rows_of(count: int) -> ArrayRows:
    """Small rows."""
    keys = np.arange(count)
    return ArrayRows(keys, content=np.stack([keys, keys % 7], axis=1))


TEACHER = FunctionTeacher(
    *("slow", said, ("content",), ("echo", "logits", "words")), {"logits": "topk(3)"}
)


def teach_here(cache: Path, count: int, runner: Any = None) -> None:
    """One batch a shard, so that calls of the teacher are shards."""
    shard = -(-count // SHARDS)
    # No rows are asked twice to see whether answers agree, so that calls can be counted.
    how = {"batch_size": shard, "shard_rows": shard, "wait": 30.0, "band": float("inf")}
    runner = runner or LocalRunner()
    teach(Cache.at(cache), rows_of(count), TEACHER, runner=runner, **how)  # type: ignore[arg-type]


def hear(event: object) -> None:
    """Say what a person would be told."""
    if isinstance(event, WorkerLost):
        print("lost", event.item, event.attempt, event.reason.splitlines()[0], flush=True)
    else:
        print(event, flush=True)


if __name__ == "__main__":
    cache, address, count = sys.argv[1:]
    try:
        # A cluster whose nodes come and go; one that is gone for a minute is an error.
        runner = RayRunner(workers=(0, 3), address=address, listen=hear, worker_wait_s=90)
        teach_here(Path(cache), int(count), runner)
    except RunnerError as error:
        print("RunnerError:", str(error).replace("\n", " "), flush=True)
        sys.exit(1)
