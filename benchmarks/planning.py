"""What a plan predicts, beside what teaching then writes and takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.bare import BUILDS
from benchmarks.measuring import Section, Table
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, ModuleTeacher, Teacher, plan_teach, teach
from stillroom.stages.plans.estimating import AGAIN
from stillroom.storage import Cache

EPOCHS = 20
_COLUMNS = (
    *("what", "from", "planned in", "bytes predicted / written", "seconds predicted / taken"),
    *("95% interval of the ratio", "N* of 20 epochs"),
)


def measure(work: Path, quick: bool) -> Section:
    """A CNN, a module that is done at once, rows of very different lengths; first and later runs."""
    rows = 2_048 if quick else 20_480
    section = Section(
        "Planning",
        f"{rows:,} rows at first, then {rows // 4:,} more; each is planned and then taught in this "
        "process. Bytes are those of all files of segments and snapshots but `made/`. Seconds are "
        "those of a whole `teach` in shards of 1,024 rows. The interval is that of the batches which "
        f"were timed, and at least {AGAIN:.0%} wide on either side.",
    )
    image = np.random.default_rng(0).random((rows + rows // 4, 1, 28, 28), np.float32)
    lines = []
    for name, teacher in _teachers(work).items():
        for what, count, probe in (("first", rows, True), ("more rows", len(image), False)):
            data = ArrayRows(np.arange(count), image=image[:count])
            lines.append(_line(f"{name}, {what}", work / f"{name}.cache", data, teacher, probe))
    section.tables.append(Table(_COLUMNS, tuple(line[:-1] for line in lines)))
    inside = sum(line[-1] == "inside" for line in lines)
    section.notes.append(f"What was taken lay in the interval in {inside} of {len(lines)} cases.")
    return section


def _teachers(work: Path) -> Mapping[str, Teacher]:
    found: dict[str, Teacher] = {}
    for kind, (build, feature) in BUILDS.items():
        torch.manual_seed(0)
        save_file(build().state_dict(), work / f"{kind}.safetensors")
        layers = {"logits": "", "feature": feature}
        found[kind] = ModuleTeacher(
            kind,
            build,
            weights=work / f"{kind}.safetensors",
            layers=layers,
            encodings=dict.fromkeys(layers, "float16"),
        )
    found["ragged"] = FunctionTeacher("ragged", uneven, ("image",), ("tokens",))
    return found


def uneven(image: NDArray[np.float32]) -> dict[str, Any]:
    """Rows of 0 to about 400 tokens, exponentially distributed, from the image's first pixel."""
    lengths = (-60 * np.log(1 - np.minimum(image[:, 0, 0, 0], 0.999))).astype(int)
    return {"tokens": [np.arange(length, dtype=np.int32) for length in lengths]}


def _line(
    what: str, cache: Path, data: ArrayRows, teacher: Teacher, probe: bool
) -> tuple[str, ...]:
    before = _bytes(cache)
    started = time.perf_counter()
    plan = plan_teach(cache, data, teacher, probe=probe, shard_rows=1024, epochs=EPOCHS)
    planning = time.perf_counter() - started
    started = time.perf_counter()
    teach(Cache.at(cache), data, teacher, runner=LocalRunner(), shard_rows=1024)
    taken, written = time.perf_counter() - started, _bytes(cache) - before
    found = plan.estimate
    assert found is not None
    assert found.bytes is not None
    assert found.seconds is not None
    assert found.break_even is not None
    low, high = ((end or 0.0) / taken for end in (found.seconds.low, found.seconds.high))
    return (
        what,
        found.source,
        f"{planning:.2f} s",
        f"{found.bytes.value:,.0f} / {written:,} = {found.bytes.value / written:.3f}",
        f"{found.seconds.value:.2f} / {taken:.2f} = {found.seconds.value / taken:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{found.break_even.students}",
        "inside" if low <= 1 <= high else "outside",
    )


def _bytes(cache: Path) -> int:
    files = [p for p in cache.glob("s*/**/*") if p.is_file() and "made" not in p.parts]
    return sum(p.stat().st_size for p in files)
