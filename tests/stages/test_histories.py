"""Random histories of a data set and a cache, against a dictionary that says what must be read."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache, Reader
from stillroom.storage.care.compacting import compact
from stillroom.storage.care.pruning import prune
from stillroom.storage.care.verifying import verify

asked: list[int] = []


def numbers(content: NDArray[np.int64]) -> dict[str, Any]:
    """The row itself, as a fixed and as a ragged signal; notes how many rows were asked."""
    asked.append(len(content))
    return {"echo": content, "list": [row[: row[0] % 3] for row in content]}


def negative(content: NDArray[np.int64]) -> dict[str, Any]:
    """Another teacher."""
    asked.append(len(content))
    return {"minus": -content}


TEACHERS = {
    "one": FunctionTeacher("one", numbers, ("content",), ("echo", "list")),
    "two": FunctionTeacher("two", negative, ("content",), ("minus",)),
}
KEYS = st.integers(0, 19)


class History(RuleBasedStateMachine):
    """Rows come, change and go; teachers are asked; old states are pruned, segments compacted."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.cache = Cache.at(self.folder / "c")
        self.rows: dict[int, int] = {}
        self.answered: dict[str, set[tuple[int, int]]] = {name: set() for name in TEACHERS}
        """(key, content) pairs that a teacher must not be asked again."""
        self.ever: dict[str, set[tuple[int, int]]] = {name: set() for name in TEACHERS}
        """Those that it was asked at any time; after a prune some of them may be there still."""
        self.served: dict[int, dict[str, dict[int, int]]] = {}
        """By snapshot and teacher: the content of each key."""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(keys=st.sets(KEYS, min_size=1, max_size=8))
    def add(self, keys: set[int]) -> None:
        self.rows |= {key: 0 for key in keys if key not in self.rows}

    @rule(key=KEYS, content=st.integers(0, 3))
    def edit(self, key: int, content: int) -> None:
        if key in self.rows:
            self.rows[key] = content

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        self.rows.pop(key, None)

    @rule(name=st.sampled_from(sorted(TEACHERS)), shard_rows=st.integers(1, 9), data=st.data())
    def teach(self, name: str, shard_rows: int, data: st.DataObject) -> None:
        if not self.rows:
            return
        order = data.draw(st.permutations(sorted(self.rows)))
        content = np.array([[key, self.rows[key]] for key in order])
        asked.clear()
        snapshot = teach(
            self.cache,
            ArrayRows(order, content=content),
            TEACHERS[name],
            runner=LocalRunner(),
            shard_rows=shard_rows,
            band=float("inf"),  # rows that are asked for twice would be counted twice
        )
        wanted = set(self.rows.items())
        assert len(wanted - self.ever[name]) <= sum(asked) <= len(wanted - self.answered[name])
        self.answered[name] |= wanted
        self.ever[name] |= wanted
        others = {
            other: {k: c for k, c in self.rows.items() if (k, c) in self.answered[other]}
            for other, served in self.served.get(max(self.served, default=0), {}).items()
            if other != name
        }
        self.served[snapshot.number] = {name: dict(self.rows), **others}

    @rule(keep=st.integers(1, 4))
    def prune(self, keep: int) -> None:
        prune(self.cache, keep_last=keep, draft_days=0)
        for number in sorted(self.served)[:-keep]:
            del self.served[number]
        # Rows that no kept snapshot serves may have to be answered again.
        for name, known in self.answered.items():
            kept = [s.get(name, {}).items() for s in self.served.values()]
            known &= {pair for pairs in kept for pair in pairs}

    @rule(shard_rows=st.integers(1, 9))
    def compact(self, shard_rows: int) -> None:
        if self.served:
            done = compact(self.cache, shard_rows=shard_rows)
            if done.snapshot is not None:
                self.served[done.snapshot] = self.served[max(self.served)]

    @rule()
    def reopen(self) -> None:
        self.cache = Cache(self.folder / "c")

    @invariant()
    def every_snapshot_reads_as_it_was_taken(self) -> None:
        assert self.cache.snapshots() == sorted(self.served)
        for number, teachers in self.served.items():
            snapshot = self.cache.snapshot(number)
            for name, known in teachers.items():
                if not known:
                    continue
                keys = sorted(known)
                content = np.array([[key, known[key]] for key in keys])
                signals = list(TEACHERS[name].signals)
                read = Reader(snapshot, signals).gather(keys)
                if name == "two":
                    np.testing.assert_array_equal(np.asarray(read["minus"]), -content)
                    continue
                np.testing.assert_array_equal(np.asarray(read["echo"]), content)
                for mine, row in zip(read["list"], content, strict=True):
                    np.testing.assert_array_equal(mine, row[: row[0] % 3])

    @invariant()
    def every_byte_is_as_it_was_written(self) -> None:
        if self.served:
            assert verify(self.folder / "c").problems == ()


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=30,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
