"""A small cache of two teachers that tests damage and repair; what its newest snapshot must say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, Repaired, audit, repair
from stillroom.stages.data.rows import Batch, Rows
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage import Cache, Reader, verify
from stillroom.storage.care.mending import restore_marker
from stillroom.storage.folder import Ask
from tests.stages.builders import Heard
from tests.storage.caches import ENCODINGS, flip, only

ROWS = 20
asked: list[int] = []


def said(image: NDArray[np.float32]) -> dict[str, Any]:
    """Every kind of signal."""
    lengths = (np.abs(image[:, 0]) * 10).astype(int) % 3
    pairs = list(zip(image, lengths, strict=True))
    return {
        "x": image * 2,
        "top": image,
        "tok": [np.repeat(row[None], n, 0) for row, n in pairs],
        "text": [f"é {row[0]:.5f}" for row in image],
    }


def minus(image: NDArray[np.float32]) -> dict[str, Any]:
    """Another teacher."""
    return {"minus": -image}


@dataclass(frozen=True)
class Counted:
    """A teacher that notes how many rows it was asked."""

    inner: FunctionTeacher

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def inputs(self) -> Sequence[str]:
        return self.inner.inputs

    def asks(self) -> Mapping[str, Ask]:
        return self.inner.asks()

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def load(self) -> Answer:
        answer = self.inner.load()

        def counted(batch: Batch) -> Mapping[str, Any]:
            asked.append(len(batch["image"]))
            return answer(batch)

        return counted


SIGNALS = ("x", "top", "tok", "text")
TOP = {name: ENCODINGS[name] for name in ("top", "tok")}
FIRST = Counted(FunctionTeacher("first", said, ("image",), SIGNALS, TOP))
OTHER = Counted(FunctionTeacher("other", minus, ("image",), ("minus",)))


def data(rows: int = ROWS, *, edited: Sequence[int] = (), without: Sequence[int] = ()) -> ArrayRows:
    """Rows r0, r1, ... of five numbers."""
    image = np.random.default_rng(0).standard_normal((rows, 5)).astype("f4")
    image[list(edited)] += 1
    kept = [i for i in range(rows) if i not in without]
    return ArrayRows([f"r{i}" for i in kept], image=image[kept])


EDITED = data(edited=[3, 4, 15])


def mended(path: Path, rows: Rows | None = None, teacher: Counted = FIRST, **how: Any) -> Repaired:
    """Verify and repair; how many rows the teacher was asked must be what is said."""
    problems = verify(path).problems
    assert problems, "the damage was not found"
    if any(problem.path == "cache.json" for problem in problems):
        restore_marker(path)
    asked.clear()
    heard = Heard()
    done = repair(
        Cache(path),
        *(data() if rows is None else rows, teacher, problems),
        **{"runner": LocalRunner(), "listen": heard, **how},
    )
    assert sum(asked) == done.rows == heard.taught
    json.dumps(done.to_json())
    return done


def assert_right(path: Path, rows: Rows | None = None) -> None:
    """No problem is left, and the newest snapshot says of every row what the teacher says."""
    said_of = verify(path)
    assert said_of.problems == (), list(map(str, said_of.problems))
    assert said_of.leftovers == ()
    rows = data() if rows is None else rows
    snapshot = Cache(path).snapshot()
    image: Any = rows.read(np.arange(len(rows)), ["image"])["image"]
    expected = said(image)
    found = Reader(snapshot, ["x", "tok", "text"]).gather(rows.keys)
    np.testing.assert_array_equal(found["x"], expected["x"])
    assert found["text"] == expected["text"]
    for mine, theirs in zip(found["tok"], expected["tok"], strict=True):
        assert np.asarray(mine).shape == theirs.shape
    report = audit(Cache(path), rows, FIRST, runner=LocalRunner(), rows_per_shard=9)
    assert report.faithful
    if "minus" in snapshot.signals:
        np.testing.assert_array_equal(
            Reader(snapshot, ["minus"]).gather(rows.keys)["minus"], -image
        )


def spoil(pattern: str, bit: int = 601) -> Callable[[Path], None]:
    return lambda path: flip(only(path, pattern), bit)


def lose(*patterns: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for pattern in patterns:
            only(path, pattern).unlink()

    return damage


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    """All of them."""

    def damage(path: Path) -> None:
        for each in damages:
            each(path)

    return damage


SEGMENT = "segments/0001-first-*"
