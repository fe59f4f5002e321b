"""Rows a second of the loader against tensors in memory and other libraries' loaders, shuffled; with the
files in the page cache, and with none of them there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.loading_cold import cold
from benchmarks.loading_rivals import Arrays, Epoch, Stored, loaders
from benchmarks.measuring import Line, Section, Table, Timing, Way, interleaved, timed
from stillroom.pipeline.runner import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, loader, teach
from stillroom.storage import Cache, Ragged, Snapshot

BATCH, TOKENS, TOP, CLASSES = 512, 512, 50, 150_000


def said(**columns: Any) -> dict[str, Any]:
    """A teacher that repeats its rows."""
    return columns


def unpadded(number: NDArray[np.int64]) -> dict[str, Ragged]:
    """The top 50 of 150,000 classes for up to 512 tokens a row, at least 256."""
    draw = [np.random.default_rng(int(n)) for n in number]
    lengths = [int(d.integers(TOKENS // 2, TOKENS + 1)) for d in draw]
    ids = [d.integers(0, CLASSES, (n, TOP), "u4") for d, n in zip(draw, lengths, strict=True)]
    values = [-d.random((n, TOP), "f4") for d, n in zip(draw, lengths, strict=True)]
    return {"indices": Ragged.of(ids), "values": Ragged.of(values)}


def measure(work: Path, quick: bool) -> Section:
    """Three kinds of rows."""
    rows, rounds = (600, 1) if quick else (10_000, 5)
    torch.set_num_threads(1)
    section = Section(
        "Loading",
        f"One shuffled epoch in batches of {BATCH}, float32 tensors given to a loop that does nothing "
        "with them; 1 thread of torch. Every library holds the same rows in half floats and gives each "
        "once (their sums are compared). `loader` as it comes: two batches made ahead on a thread, which "
        "pays as soon as the loop does something; `workers=2` begins its processes anew each epoch. "
        "LitData, MosaicML Streaming and WebDataset shuffle chunks and a buffer, not all rows. Cold: the "
        "kernel was told to drop the files' pages (posix_fadvise DONTNEED) before each epoch, and the "
        "time is from opening to the last batch.",
    )
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (rows, 10)).astype("f2")
    feature = draw.random((rows, 2048), "f4").astype("f2")
    dense: dict[str, Arrays] = {
        "logits of 10 classes": {"logits": logits},
        "the same and a feature of 4 kB": {"logits": logits, "feature": feature},
    }
    speeds: list[tuple[str, ...]] = []
    for number, (what, arrays) in enumerate(dense.items()):
        teacher = FunctionTeacher(
            *("said", said, tuple(arrays), tuple(arrays)), dict.fromkeys(arrays, "float16")
        )
        cache = Cache.at(work / f"{number}.cache")
        data = ArrayRows(np.arange(rows), **arrays)
        snapshot = teach(cache, data, teacher, runner=LocalRunner())
        ways = _ours(snapshot, tuple(arrays)) | dict(loaders(work / str(number), arrays, BATCH))
        nbytes = _compare(section, speeds, what, ways, rows, rounds)
        del snapshot
        for name, timing in cold(section, what, ways, max(rounds // 2, 1)).items():
            speeds.append((f"{what}, cold", name, *_speed(timing, rows, nbytes)))
    few = 64 if quick else 1_000
    snapshot = teach(
        Cache.at(work / "ragged.cache"),
        ArrayRows(np.arange(few), number=np.arange(few)),
        FunctionTeacher(
            *("tokens", unpadded, ("number",), ("indices", "values")), {"values": "float16"}
        ),
        runner=LocalRunner(),
        batch_size=64,
        shard_rows=256,
    )
    _ragged(section, speeds, snapshot, few, rounds)
    section.notes.append(
        "MosaicML Streaming (0.13.0 was tried) asks for numpy below 2.2 and for a torchvision that fits "
        "torch, so it is not in the extra: it runs where it was installed by hand."
    )
    columns = ("rows", "loader", "rows/s", "MB/s of tensors")
    section.tables.append(Table(columns, tuple(speeds)))
    return section


def _ours(snapshot: Snapshot, names: tuple[str, ...], **how: Any) -> dict[str, Stored | str]:
    given = {"batch_size": BATCH, **how}
    cache, number = Path(str(snapshot.cache)), snapshot.number
    found: dict[str, Stored | str] = {}
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("loader", {}),
        ("loader, prefetch=0", {"prefetch": 0}),
        ("loader, workers=2", {"workers": 2}),
    )
    for title, more in kinds:
        found[title] = Stored(partial(_opened, cache, number, names, **given, **more), cache)
    return found


def _opened(cache: Path, number: int, names: tuple[str, ...], **how: Any) -> Epoch:
    feed: Any = loader(Snapshot(cache, number), names, **how)
    return lambda: feed


def _compare(
    section: Section,
    speeds: list[tuple[str, ...]],
    what: str,
    ways: Mapping[str, Stored | str],
    rows: int,
    rounds: int,
) -> int:
    """Warm; the bytes of an epoch's tensors."""
    there = {name: way.open() for name, way in ways.items() if isinstance(way, Stored)}
    sums, slow = {}, []
    for name, epoch in there.items():
        started = perf_counter()
        sums[name] = _sums(epoch())
        slow += [name] * (perf_counter() - started > 2)
    first = next(iter(sums.values()))
    for name, (count, total, _) in sums.items():
        assert count == first[0] == rows, (name, count)
        assert abs(total - first[1]) <= 1e-9 * abs(first[1]), (name, total, first)
    each = {name: _gone_through(epoch) for name, epoch in there.items()}
    # The slow ones have had their round to warm up, and get one that counts.
    times = interleaved({n: way for n, way in each.items() if n not in slow}, rounds)
    times |= interleaved({n: each[n] for n in slow}, 1, warm=False)
    for name, way in ways.items():
        if name != "loader":
            remark = way if isinstance(way, str) else ""
            section.lines.append(Line(what, name, times["loader"], times.get(name), remark=remark))
    for name, timing in times.items():
        speeds.append((what, name, *_speed(timing, rows, first[2])))
    return first[2]


def _speed(timing: Timing, rows: int, nbytes: int) -> tuple[str, str]:
    return f"{rows / timing.median:,.0f}", f"{nbytes / timing.median / 1e6:,.0f}"


def _gone_through(epoch: Epoch) -> Way:
    def work() -> None:
        for _ in epoch():
            pass

    return timed(work)


def _sums(batches: Iterable[Mapping[str, torch.Tensor]]) -> tuple[int, float, int]:
    """Rows, the sum of all that are float32, and bytes of an epoch."""
    rows, total, nbytes = 0, 0.0, 0
    for batch in batches:
        tensors = [t for n, t in batch.items() if n not in ("batch.index", "index")]
        rows += len(tensors[0])
        floats = [t for t in tensors if t.dtype == torch.float32]
        total += sum(float(t.double().sum()) for t in floats)
        nbytes += sum(t.numel() * t.element_size() for t in tensors)
    return rows, total, nbytes


def _ragged(
    section: Section,
    speeds: list[tuple[str, ...]],
    snapshot: Snapshot,
    rows: int,
    rounds: int,
) -> None:
    """Padded, against rows that lie padded in memory: what a plain trainer would keep."""
    names = ("indices", "values")
    (whole,) = loader(snapshot, names, batch_size=rows, shuffle=False)
    ids = whole["teacher.indices"].to(torch.int32)
    values = whole["teacher.values"].half()
    lengths = whole["teacher.values.length"]

    def in_memory() -> Iterable[dict[str, torch.Tensor]]:
        for at in torch.randperm(rows).split(32):
            yield {"indices": ids[at].long(), "values": values[at].float(), "length": lengths[at]}

    what = f"the top {TOP} of up to {TOKENS} tokens, batches of 32"
    stored_ways = _ours(snapshot, names, batch_size=32)
    ways = {name: way.open() for name, way in stored_ways.items() if isinstance(way, Stored)}
    cache, number = Path(str(snapshot.cache)), snapshot.number
    for form in ("nested", "flat"):
        ways[f"loader, ragged={form!r}"] = _opened(cache, number, names, batch_size=32, ragged=form)
    ways["padded tensors in memory, tensor[index]"] = in_memory
    times = interleaved({name: _gone_through(epoch) for name, epoch in ways.items()}, rounds)
    stored = int(lengths.sum()) * TOP * (4 + 2)
    for name, timing in times.items():
        if name != "loader":
            section.lines.append(Line(what, name, times["loader"], timing))
        speeds.append((what, name, *_speed(timing, rows, stored)))
    section.notes.append(
        f"Of the top {TOP} the megabytes are those stored: uint32 classes and half floats of tokens "
        "that are there. Padded in memory they would take "
        f"{TOKENS * rows * TOP * 6 / stored:.2f} times as much."
    )
