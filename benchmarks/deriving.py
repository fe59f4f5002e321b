"""Deriving over a cache, out of core, beside numpy on the same rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Line, Section, interleaved, timed
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, Summary, derivations, derive, teach
from stillroom.storage import Cache, Reader

WIDTH, CLASSES = 256, 10


def measure(work: Path, quick: bool) -> Section:
    """Class means and covariances, quantiles and a round of k-means."""
    rows = 4_096 if quick else 40_960
    section = Section(
        "Deriving",
        f"float32[{WIDTH}] of {rows:,} rows in shards of 4,096, blocks of 16 MiB on two threads. Both "
        "sides compute in float64. numpy has all rows in memory, and reading them is not counted; ours "
        "reads them from the cache, checks what it read from against its identity, and stores what it "
        "found.",
    )
    random = np.random.default_rng(0)
    label = random.integers(0, CLASSES, rows)
    x = random.standard_normal((rows, WIDTH)).astype("f4") + label[:, None]
    data = ArrayRows(range(rows), x=x, label=label)
    cache = Cache.at(work / "cache")
    teacher = FunctionTeacher("same", _same, ("x",), ("feature",))
    snapshot = teach(cache, data, teacher, runner=LocalRunner())
    held: Any = Reader(snapshot, ["feature"]).gather(range(rows))["feature"]
    numbers = count()

    def ours(summary: Summary) -> Callable[[], object]:
        # Under another name each time: what is fresh would not be computed.
        return lambda: derive(
            *(cache, snapshot, replace(summary, name=f"n{next(numbers)}")), rows=data, workers=2
        )

    ways: Mapping[str, tuple[Summary, Callable[[], object]]] = {
        "class means": (
            derivations.class_means("feature", "label"),
            lambda: [held[label == c].astype("f8").mean(axis=0) for c in range(CLASSES)],
        ),
        "class covariances": (
            derivations.class_moments("feature", "label"),
            lambda: [np.cov(held[label == c].astype("f8").T) for c in range(CLASSES)],
        ),
        "quantiles 0.1 and 0.9": (
            derivations.quantiles("feature", [0.1, 0.9]),
            lambda: np.quantile(held.astype("f8"), [0.1, 0.9], axis=0),
        ),
    }
    for what, (summary, other) in ways.items():
        times = interleaved(
            {"ours": timed(ours(summary)), "numpy": timed(other)}, 3 if quick else 5
        )
        section.lines.append(Line(what, "numpy in memory", times["ours"], times["numpy"]))
    fresh = derivations.class_means("feature", "label")
    derive(cache, snapshot, fresh, rows=data)
    again = interleaved({"ours": timed(lambda: derive(cache, snapshot, fresh, rows=data))}, 5)
    section.lines.append(Line("class means that are fresh", "", again["ours"], None))
    return section


def _same(x: Any) -> dict[str, Any]:
    return {"feature": x}
