"""Shuffled gather from the cache against a tensor in memory and other stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import Line, Section, Timing, Way, interleaved, timed
from benchmarks.rivals import SHARD_ROWS, rivals
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.teachers.function import FunctionTeacher
from stillroom.stages.teaching import teach
from stillroom.storage import Cache, Reader

WIDTH, BATCH = 1024, 512
CUTS = (0.5, 0.8, 1.0)
"""The data set grows twice, so that the rows lie in three segments."""
GOAL = 1.25
"""At least 0.8 of the speed."""


def said(value: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A teacher that repeats its rows."""
    return {"logits": value}


def cached(path: Path, keys: Any, values: NDArray[Any]) -> Reader:
    """The rows in a cache of three segments."""
    cache = Cache.at(path)
    encodings = {"logits": "float16"}
    teacher = FunctionTeacher("said", said, ("value",), ("logits",), encodings)
    for cut in CUTS:
        rows = int(cut * len(values))
        data = ArrayRows(keys[:rows], value=values[:rows])
        teach(cache, data, teacher, runner=LocalRunner(), shard_rows=SHARD_ROWS)
    return Reader(cache.snapshot(), ["logits"])


def _each(gather: Callable[[Any], object], batches: Sequence[Any], threads: int = 1) -> Way:
    def work() -> None:
        if threads == 1:
            for batch in batches:
                gather(batch)
        else:
            list(pool.map(gather, batches))

    pool = ThreadPoolExecutor(threads)
    return timed(work)


def _rounds(
    ways: Mapping[str, Way], rounds: int, batches: int, threads: int = 1
) -> dict[str, Timing]:
    """Timings of one batch, torch given that many threads."""
    torch.set_num_threads(threads)
    return {n: t.per(batches) for n, t in interleaved(ways, rounds).items()}


def _fastest(times: Mapping[str, Timing], names: Sequence[str]) -> tuple[str, Timing]:
    name = min(names, key=lambda n: times[n].median)
    return name, times[name]


def measure(work: Path, quick: bool) -> Section:
    """All comparisons."""
    rows, batches, rounds = (20_000, 20, 3) if quick else (200_000, 100, 9)
    section = Section(
        "Gather",
        f"{BATCH} random rows of float16[{WIDTH}] at a time from {rows:,} rows in {len(CUTS)} segments "
        f"of shards of up to {SHARD_ROWS:,} rows; the time of one batch. The reader's rows are undecoded "
        "(`Reader.stored`, then `torch.from_numpy`) unless said otherwise. The tensor's time is that "
        "of the fastest of `tensor[index]` and `torch.index_select` (with 2 threads: torch's own 2, "
        "or 2 Python threads of 1, as the reader uses).",
    )
    rng = np.random.default_rng(0)
    values = rng.random((rows, WIDTH), np.float32).astype(np.float16)
    texts = [f"row-{i:07d}" for i in range(rows)]
    by_text, by_number = (
        cached(work / name, keys, values)
        for name, keys in (("text.cache", texts), ("number.cache", np.arange(rows)))
    )
    tensor = torch.from_numpy(values)
    places = [rng.integers(0, rows, BATCH) for _ in range(batches)]
    _memory(section, tensor, values, places, rounds, by_text, by_number, texts)
    _others(section, work, values, places, rounds, by_number)
    return section


def _memory(
    section: Section,
    tensor: torch.Tensor,
    values: NDArray[Any],
    places: Sequence[NDArray[np.int64]],
    rounds: int,
    by_text: Reader,
    by_number: Reader,
    texts: Sequence[str],
) -> None:
    """Against the tensor."""

    def stored(positions: Any) -> torch.Tensor:
        return torch.from_numpy(by_number.stored(positions)["logits"][""])

    def decoded(positions: Any) -> torch.Tensor:
        found: Any = by_number.take(positions)["logits"]
        return torch.from_numpy(found)

    def keyed(reader: Reader) -> Callable[[Any], object]:
        return lambda keys: reader.stored(reader.snapshot.positions(keys))["logits"][""]

    positions = [by_number.snapshot.positions(p) for p in places]
    assert (stored(positions[0]).numpy() == values[places[0]]).all()
    index = [torch.from_numpy(p) for p in places]

    def select(rows: torch.Tensor) -> torch.Tensor:
        return torch.index_select(tensor, 0, rows)

    for threads in (1, 2):
        ways = {
            "ours": _each(stored, positions, threads),
            "tensor[index]": _each(lambda i: tensor[i], index),
            "index_select": _each(select, index),
        }
        if threads == 1:
            ways |= {
                "decoded": _each(decoded, positions),
                "tensor[index].float()": _each(lambda i: tensor[i].float(), index),
                "numbers": _each(keyed(by_number), places),
                "texts": _each(keyed(by_text), [[texts[i] for i in p] for p in places]),
            }
            plain = _rounds(ways, rounds, len(places))
            name, best = _fastest(plain, ["tensor[index]", "index_select"])
            section.lines += [
                Line("by position, 1 thread", name, plain["ours"], best, GOAL),
                Line("by integer key, 1 thread", name, plain["numbers"], best),
                Line("by text key, 1 thread", name, plain["texts"], best),
                Line(
                    "decoded to float32, 1 thread",
                    "tensor[index].float()",
                    plain["decoded"],
                    plain["tensor[index].float()"],
                    GOAL,
                ),
            ]
            continue
        times = _rounds(ways, rounds, len(places), threads)
        # torch's thread count is the process's, so two threads of one are rounds of their own.
        pooled = _rounds(
            {"ours": ways["ours"], "two threads of 1": _each(select, index, 2)}, rounds, len(places)
        )
        times["two threads of 1"] = pooled["two threads of 1"]
        names = ["tensor[index]", "index_select", "two threads of 1"]
        name, best = _fastest(times, names)
        ours = pooled["ours"] if name == "two threads of 1" else times["ours"]
        section.lines.append(Line("by position, 2 threads", name, ours, best, GOAL))
    torch.set_num_threads(1)
    section.notes.append(
        "A `Loader` looks its keys up once, before the first epoch, so training pays the time by "
        "position; by key is what a single look-up of a batch costs (text keys: one Python dict)."
    )


def _others(
    section: Section,
    work: Path,
    values: NDArray[Any],
    places: Sequence[NDArray[np.int64]],
    rounds: int,
    reader: Reader,
) -> None:
    """Against other stores."""
    found: dict[str, Any] = {"ours": lambda p: reader.stored(p)["logits"][""]}
    found |= rivals(work, values)
    ways: dict[str, Way] = {}
    batches: dict[str, int] = {}
    for name, gather in found.items():
        if gather is not None:
            given = list(places) if name != "ours" else list(map(reader.snapshot.positions, places))
            assert (np.asarray(gather(given[0])) == values[places[0]]).all(), name
            # Fewer batches for the slow ones; every time is that of one batch.
            batches[name] = 20 if timed(partial(gather, given[1]))() < 0.02 else 3
            ways[name] = _each(gather, given[: batches[name]])
    raw = interleaved(ways, max(rounds // 2, 3))
    times = {name: timing.per(batches[name]) for name, timing in raw.items()}
    missing = "not installed: pip install stillroom[bench]"
    for name in list(found)[1:]:
        section.lines.append(
            Line("by position", name, times["ours"], times.get(name), remark=missing)
        )
    section.notes.append(
        "The other stores hold the same rows uncompressed and use as many threads as they like; "
        "each gives the rows as numpy or torch, in the order asked for."
    )
