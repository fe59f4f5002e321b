"""The life of a small cache, step by step: what the harnesses kill, starve and resume.

Every step may be run again from anywhere in its middle, as a scheduler would.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.stages.care.repairing import repair
from stillroom.storage import Cache, Ragged, Reader
from stillroom.storage.care.compacting import compact
from stillroom.storage.care.pruning import prune
from stillroom.storage.care.verifying import verify

SHARD_ROWS, BATCH_ROWS = 6, 3
LOG = "STILLROOM_TEST_LOG"


def said(content: NDArray[np.int64]) -> dict[str, Any]:
    """What the teacher answers, as a function of the rows alone; who is asked is written down."""
    if name := os.environ.get(LOG):
        with open(name, "a") as log:
            log.write("".join(f"{key}\n" for key in content[:, 0]))
    number = content[:, 0] * 100 + content[:, 1] + 1
    return {
        "echo": content,
        "logits": (np.outer(number, np.arange(3, 11)) % 23 + np.arange(8) / 10).astype(np.float32),
        "tokens": [np.arange(n % 4) + n for n in number],
        "words": [f"{key}/{version}" for key, version in content],
    }


def other(content: NDArray[np.int64]) -> dict[str, Any]:
    """Another teacher's answer; `place` is stored by centroids, in a book."""
    number = content.astype(np.float32)
    return {"negative": -number, "place": np.concatenate([number % 4, number % 3], axis=1)}


def rows_of(version: int) -> ArrayRows:
    """The data set as it is at a time: rows come, change and go."""
    keys = [k for k in range(40 + 5 * version) if version == 0 or k % 11 != version]
    changed = [sum(k % 13 == v for v in range(1, version + 1)) for k in keys]
    return ArrayRows(keys, content=np.stack([keys, changed], axis=1))


FIRST = FunctionTeacher(
    *("first", said, ("content",), ("echo", "logits", "tokens", "words")), {"logits": "topk(3)"}
)
SECOND = FunctionTeacher(
    *("second", other, ("content",), ("negative", "place")),
    {"negative": "float16", "place": "product(2,4)"},
)


def _taught(version: int, teacher: FunctionTeacher, workers: int = 0) -> Callable[[Path], object]:
    def step(cache: Path) -> object:
        runner = RayRunner(workers=workers) if workers else LocalRunner()
        rows = rows_of(version)
        how = {"batch_size": BATCH_ROWS, "shard_rows": SHARD_ROWS, "wait": 30.0}
        return teach(Cache.at(cache), rows, teacher, runner=runner, **how)  # type: ignore[arg-type]

    return step


def _repaired(cache: Path) -> object:
    problems = verify(cache).problems
    return repair(Cache(cache), rows_of(1), FIRST, problems, runner=LocalRunner())


def damage(cache: Path) -> None:
    """Flip a bit of one shard of the first teacher, the same one in every life."""
    path = sorted((cache / "segments").glob("*-first-*/signals/echo/c/*/0"))[1]
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


STEPS: dict[str, Callable[[Path], object]] = {
    "teach": _taught(0, FIRST),
    "teach another": _taught(0, SECOND),
    "teach what changed": _taught(1, FIRST),
    "repair": _repaired,
    "compact": lambda cache: compact(Cache(cache), shard_rows=SHARD_ROWS),
    "prune": lambda cache: prune(Cache(cache), keep_last=1, draft_days=0),
    "teach what changed again": _taught(2, FIRST),
    "prune to the last": lambda cache: prune(Cache(cache), keep_last=1, draft_days=0),
}
"""In the order of a life; `damage` comes before "repair"."""


def content_of(cache: Path) -> dict[str, bytes]:
    """Every file that is a function of teachers, rows and history."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and not {"made", "leases"} & set(path.relative_to(cache).parts)
    }


def check_readable(cache: Path) -> int:
    """Read every row of the newest snapshot by key and require that it is what its teacher says."""
    if not (cache / "cache.json").exists() or not Cache(cache).snapshots():
        return 0
    snapshot = Cache(cache).snapshot()
    read = Reader(snapshot, ["echo", "logits", "tokens", "words"]).gather(snapshot.keys)
    content = np.asarray(read["echo"])
    np.testing.assert_array_equal(content[:, 0], snapshot.keys.to_numpy())
    expected = said(content)
    assert read["words"] == expected["words"]
    tokens = read["tokens"]
    assert isinstance(tokens, Ragged)
    for mine, theirs in zip(tokens, expected["tokens"], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    logits = np.asarray(read["logits"])
    top = np.argsort(-expected["logits"], axis=1)[:, :3]
    np.testing.assert_array_equal(np.argsort(-logits, axis=1)[:, :3], top)
    if "negative" in snapshot.signals:
        # The second teacher was asked once, for what the first forty rows were at the start.
        old = content[(content[:, 0] < 40) & (content[:, 1] == 0)]
        read = Reader(snapshot, ["negative", "place"]).gather(old[:, 0])
        np.testing.assert_array_equal(np.asarray(read["negative"]), -old)
        # Fewer different pieces than centroids: nothing is lost.
        np.testing.assert_array_equal(np.asarray(read["place"]), other(old)["place"])
    return snapshot.rows
