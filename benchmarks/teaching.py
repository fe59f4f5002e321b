"""teach() against a plain forward loop over the same rows with the same number of threads."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.bare import BUILDS, BareLoop, TwoProcesses
from benchmarks.measuring import Line, Section, Way, interleaved, timed
from stillroom.pipeline.ray_runner import RayRunner
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teaching import teach
from stillroom.storage import Cache, Reader

BATCH = 256
GOAL = 1.05


def measure(work: Path, quick: bool) -> Section:
    """A light teacher and a heavy one."""
    rows, rounds = (8_192, 1) if quick else (100_000, 3)
    section = Section(
        "Teach",
        f"{rows:,} rows of float32[1, 28, 28] in batches of {BATCH}; logits[10] and one feature layer "
        "are stored as float16, durably. The plain loop runs the same module over the same rows in "
        "inference mode, and keeps its answers in memory. Cold: Ray is started and stopped inside the "
        "time. Warm: Ray runs already; the two workers are new each time. The plain loops' modules "
        "are loaded before the clock starts.",
    )
    image = np.random.default_rng(0).random((rows, 1, 28, 28), np.float32)
    np.save(work / "image.npy", image)
    data = ArrayRows(np.arange(rows), image=image)
    for kind in BUILDS:
        _Teaching(section, work, kind, image, data).compare(rounds)
    section.notes.append(
        "Starting Ray and two processes that import torch costs the same for any number of rows: it "
        "is hidden by a teacher that is busy for minutes, never by one that is done in seconds. "
        "`LocalRunner` has no such cost."
    )
    section.notes.append(
        "Ray gives its workers a low priority (nice 15; where stillroom starts Ray itself, none), so "
        "on a machine with other work they get less of it than the plain loops; run this when quiet."
    )
    return section


def _nothing() -> Callable[[int], int]:
    """Work for a worker that only shows that Ray is up."""
    return abs


class _Teaching:
    """One teacher's comparisons."""

    def __init__(
        self, section: Section, work: Path, kind: str, image: NDArray[Any], data: ArrayRows
    ) -> None:
        self.section, self.kind, self.image, self.data = section, kind, image, data
        self.explained = ""
        some = len(image) // 4
        self.some = ArrayRows(np.arange(some), image=image[:some])
        self.weights, self.cache = work / f"{kind}.safetensors", work / f"{kind}.cache"
        self.images = work / "image.npy"
        torch.manual_seed(0)
        build, feature = BUILDS[kind]
        save_file(build().state_dict(), self.weights)
        self.teacher = ModuleTeacher(
            kind,
            build,
            weights=self.weights,
            layers={"logits": "", "feature": feature},
            encodings={"logits": "float16", "feature": "float16"},
        )

    def teach(self, data: ArrayRows, runner: Any) -> float:
        shutil.rmtree(self.cache, ignore_errors=True)
        started = time.perf_counter()
        teach(Cache.at(self.cache), data, self.teacher, runner=runner, batch_size=BATCH)
        return time.perf_counter() - started

    def warm(self) -> float:
        """Ray is up before the clock starts."""
        with RayRunner(workers=2) as runner:
            list(runner.map(_nothing, [0]))
            seconds = self.teach(self.data, runner)
        self.explained = self._explain(seconds)
        return seconds

    def compare(self, rounds: int) -> None:
        rows = len(self.data)
        loops = [BareLoop(self.kind, self.weights, self.image, BATCH, n) for n in (1, 2)]
        two = TwoProcesses(self.kind, self.weights, self.images, BATCH, rows)
        ways: dict[str, Way] = {
            "bare1": timed(lambda: loops[0](0, len(self.some))),
            "local": lambda: self.teach(self.some, LocalRunner()),
            "bare2": timed(lambda: loops[1](0, rows)),
            "two": two,
            "cold": lambda: self.teach(self.data, RayRunner(workers=2)),
            "warm": self.warm,
        }
        times = interleaved(ways, rounds, warm=False)
        two.close()
        self.section.notes.append(self.explained)
        self._check(loops[0])
        each = times["bare1"].median / (len(self.some) / BATCH) * 1e3
        name = f"{self.kind} teacher, {each:.2g} ms a batch"
        say = self.section.lines.append
        what = f"{name}: {len(self.some):,} rows in one process"
        say(Line(what, "loop, 1 thread", times["local"], times["bare1"], GOAL))
        for ours in ("warm", "cold"):
            what = f"{name}: 2 workers, {ours}"
            say(Line(what, "2 loops, 1 thread each", times[ours], times["two"], GOAL))
            say(Line(what, "loop, 2 threads", times[ours], times["bare2"], GOAL))

    def _parts(self) -> dict[str, float]:
        """Seconds inside the shards of the run that was the last, all workers together."""
        made = [json.loads(p.read_text()) for p in self.cache.glob("segments/*/made/[0-9]*.json")]
        return {name: sum(m[name] for m in made) for name in ("seconds", "teacher_seconds")}

    def _explain(self, wall: float) -> str:
        """Where the seconds of the run that just ended went."""
        parts = self._parts()
        started = time.perf_counter()
        plan_teach(Cache.at(self.cache.with_suffix(".none")), self.data, self.teacher)
        planning = time.perf_counter() - started
        shards, inside = parts["seconds"] / 2, parts["teacher_seconds"] / 2
        return (
            f"{self.kind} teacher, 2 warm workers, one run of {wall:.2f} s: {inside:.2f} s in the "
            f"teacher, {shards - inside:.2f} s reading, encoding, writing and syncing (both means of "
            f"the two workers), {planning:.2f} s hashing rows and planning, "
            f"{wall - shards - planning:.2f} s else: starting two workers that import torch, the "
            "last shard of the slower one, sealing and the snapshot."
        )

    def _check(self, loop: BareLoop) -> None:
        """The cache holds what the loop computes, up to float16 and the order of sums."""
        reader = Reader(Cache(self.cache).snapshot())
        keys = np.arange(BATCH)
        ((feature, logits),) = loop(0, BATCH)
        for name, expected in (("feature", feature), ("logits", logits)):
            found: Any = reader.gather(keys)[name]
            np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3, atol=2e-3)
