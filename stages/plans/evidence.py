"""What is known about a teacher's answers before they are computed: their bytes and their seconds.

It comes from shards that the teacher finished earlier, or from a probe of the rows to compute.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stillroom.stages.plans.estimating import Pairs
from stillroom.storage.books import book_place
from stillroom.storage.errors import GARBLED, StillroomError
from stillroom.storage.files import each_of, read_json, size_of
from stillroom.storage.folder import Ask, Folder
from stillroom.storage.segment import Segment
from stillroom.storage.weighing import Weight, weigh

EARLIER, CHANGED, PROBE = "earlier shards", "shards of the teacher before it changed", "probe"
_SHARDS = 16
"""Shards of a segment that are looked at, evenly spread."""


@dataclass(frozen=True)
class Evidence:
    """Measured groups of rows: batches of a probe, or shards."""

    source: str
    """In words, where it comes from."""
    weights: Mapping[str, Weight]
    """By signal."""
    receipt: Mapping[str, Any]
    """One of a shard with all these signals."""
    teacher: Pairs
    """Rows and seconds inside the teacher."""
    rest: Pairs
    """Rows and seconds of reading, checking, encoding and writing."""
    load_seconds: float | None = None
    """Of loading the teacher; None where that was not measured."""
    shard_seconds: float = 0.0
    """What a shard costs besides; 0 where it is in `rest`."""
    among: bool = False
    """Whether the rows are some of those to compute."""
    books: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """By signal the digest and the bytes of the book that its encoding needs."""


def earlier(
    folders: Sequence[Folder], teacher: str, digest: str, asked: Mapping[str, Ask]
) -> Evidence | None:
    """From segments and drafts, oldest first: for each signal the newest of this teacher that has it.

    Where this identity has none, one of another identity of the same name serves: its rows have the
    same shape in most cases. None where a signal is in none, or where none can be read.
    """
    mine = [f for f in folders if f.teacher == teacher]
    ordered = [f for f in mine if f.digest != digest] + [f for f in mine if f.digest == digest]
    parts: list[tuple[str, Evidence]] = []
    for name, ask in asked.items():
        having = [folder for folder in reversed(ordered) if folder.asked.get(name) == ask]
        read = (_readable(f, EARLIER if f.digest == digest else CHANGED) for f in having)
        found = next((evidence for evidence in read if evidence is not None), None)
        if found is None:
            return None
        parts.append((name, found))
    newest = parts[0][1]
    books = {n: book for name, part in parts for n, book in part.books.items() if n == name}
    return replace(
        newest,
        books=books,
        source=max((part.source for _, part in parts), key=len),
        weights={name: part.weights[name] for name, part in parts},
        receipt={
            **newest.receipt,
            "signals": {name: part.receipt["signals"][name] for name, part in parts},
        },
    )


def _readable(folder: Folder, source: str) -> Evidence | None:
    with suppress(StillroomError, *GARBLED):  # damage is for verify to report
        return of_folder(folder, source)
    return None


def of_folder(folder: Folder, source: str = EARLIER) -> Evidence | None:
    """From some finished shards of a segment or a draft; None where none is finished."""
    shards = folder.finished if isinstance(folder, Segment) else tuple(folder.receipts())
    some = np.unique(np.linspace(0, len(shards) - 1, min(len(shards), _SHARDS)).astype(int))
    chosen = [shards[i] for i in some.tolist()]
    read = each_of(folder.path, folder.receipt, chosen)
    receipts = [receipt for receipt in read if receipt is not None]
    if not receipts:
        return None

    def cost(receipt: Mapping[str, Any]) -> tuple[int, float, float, float | None] | None:
        try:
            made = read_json(folder.path / "made" / f"{int(receipt['shard']):05d}.json")
            inside, loading = float(made["teacher_seconds"]), made.get("load_seconds")
            rest = max(float(made["seconds"]) - inside, 0.0)
            return int(made["rows"]), inside, rest, None if loading is None else float(loading)
        except (StillroomError, *GARBLED):
            return None  # a compacted segment has none

    costs = [found for found in each_of(folder.path, cost, receipts) if found and found[0] > 0]
    teacher = [(rows, seconds) for rows, seconds, _, _ in costs]
    rest = [(rows, seconds) for rows, _, seconds, _ in costs]
    loads = [loading for _, _, _, loading in costs if loading is not None]
    cache = folder.path.parent.parent
    asks = {name: ask.book for name, ask in folder.asked.items() if ask.book}
    books = {name: (book, size_of(book_place(cache, book)) or 0) for name, book in asks.items()}
    load = statistics.median(loads) if loads else None
    return Evidence(source, weigh(receipts), receipts[0], teacher, rest, load, books=books)
