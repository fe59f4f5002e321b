"""From evidence to an estimate: what filling a cache will take, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.stages.plans.estimating import (
    BreakEven,
    Estimate,
    Interval,
    Room,
    per_row,
    room,
    slowest,
    total,
)
from stillroom.stages.plans.evidence import CHANGED, Evidence, earlier, of_folder
from stillroom.stages.plans.teach_plan import Settled, TeachState, Work
from stillroom.storage.books import book_place
from stillroom.storage.draft import Draft, balanced
from stillroom.storage.errors import StoreFullError
from stillroom.storage.files import free_bytes, size_of
from stillroom.storage.folder import Ask
from stillroom.storage.place import Place
from stillroom.storage.served import snapshot_bytes
from stillroom.storage.serving import Expected
from stillroom.storage.weighing import Outline

UNKNOWN, FINISHED = "unknown", "what is finished"


@dataclass(frozen=True)
class Terms:
    """How rows will be taught, and what the caller says about the students to come."""

    batch_size: int = 256
    shard_rows: int = 4096
    workers: int = 1
    epochs: float | None = None
    """How often a student passes over its rows."""
    rows_per_epoch: int = 0
    reading_seconds: float | None = None
    """What one student run spends on reading from the cache; None: not measured."""
    price_per_hour: float | None = None


def asked_of(work: Sequence[Work]) -> dict[str, Ask]:
    """Every signal that some row lacks."""
    return {name: ask for each in work for name, ask in each.asked.items()}


def evidence_of(state: TeachState, settled: Settled) -> Evidence | None:
    """From earlier shards, those of drafts that will be continued among them."""
    drafts = [work.draft for work in settled.work if work.draft is not None]
    folders = [*settled.folders, *drafts]
    return earlier(folders, state.teacher.name, state.digest, asked_of(settled.work))


def estimate(
    state: TeachState,
    settled: Settled,
    why: str,
    place: Place,
    evidence: Evidence | None,
    terms: Terms,
) -> Estimate:
    """What the work that is left takes, in the cache at `place`."""
    if evidence is None:
        free = _free(place)
        nothing = Room(free, 0, 0)
        return Estimate(UNKNOWN, None, {}, 0, nothing, None, None, None, terms.workers, None)
    outlines = [_outline(state, work, why, terms.shard_rows) for work in settled.work]
    size, files = _size(outlines, evidence, _books(state, settled, evidence))
    snapshots, early = _snapshots_bytes(state, settled, outlines, why, evidence)
    size, files = size + Interval.exact(snapshots), files + 2 * (1 + early)
    seconds, ending = _seconds(outlines, evidence, terms)
    return Estimate(
        evidence.source,
        size,
        {name: weight.row_bytes for name, weight in evidence.weights.items()},
        files,
        room(size, files, _free(place)),
        seconds,
        per_row(evidence.teacher) if evidence.teacher else None,
        evidence.load_seconds,
        terms.workers,
        ending,
    )


def require_room(
    state: TeachState, settled: Settled, why: str, shard_rows: int, taken: int = 0
) -> int:
    """StoreFullError when what is to be taught clearly does not fit, as far as that is known.

    `taken`: bytes that other teachers of the same run will write. Returns those of this one.
    """
    path = state.cache.path
    if not settled.work or not isinstance(path, Path):
        return 0
    if (evidence := evidence_of(state, settled)) is None:
        return 0
    outlines = [_outline(state, work, why, shard_rows) for work in settled.work]
    size, files = _size(outlines, evidence, _books(state, settled, evidence))
    found = room(size, files, free_bytes(path) - taken)
    _refuse(found, path, state.teacher.name, evidence.source)
    return found.need


def require_room_left(draft: Draft) -> None:
    """The same for the rest of a draft, from its own finished shards."""
    if not isinstance(draft.path, Path) or (evidence := of_folder(draft, FINISHED)) is None:
        return
    outline = _continued(draft, draft.receipts())
    size, files = _size([outline], evidence, ())
    cache = draft.path.parent.parent
    _refuse(room(size, files, free_bytes(cache)), cache, draft.teacher, evidence.source)


def refusal(found: Room, place: Place, teacher: str, source: str) -> str:
    """In words, why it does not fit and what helps; empty when it may.

    What another identity of the teacher gave is too little to refuse by: its first shard will tell.
    """
    if found.verdict != "does not fit" or source in (CHANGED, UNKNOWN):
        return ""
    return (
        f"no room in {place} for what teacher {teacher!r} is to answer: about {found.need:,} bytes are "
        f"to be written (from {source}) and {found.margin:,} to stay free, {found.free:,} are free. "
        "Nothing that was stored before is harmed; make room, teach fewer rows or signals or a narrower "
        "encoding, or use a cache on another disk"
    )


def _refuse(found: Room, place: Place, teacher: str, source: str) -> None:
    if words := refusal(found, place, teacher, source):
        raise StoreFullError(words)


def _free(place: Place) -> int | None:
    return free_bytes(place) if isinstance(place, Path) else None


def _outline(state: TeachState, work: Work, why: str, shard_rows: int) -> Outline:
    if work.draft is not None:
        return _continued(work.draft, work.finished)
    return Outline(
        state.teacher.name,
        state.identity,
        work.asked,
        why,
        state.rows.keys.take(work.places),
        balanced(len(work.places), shard_rows),
    )


def _continued(draft: Draft, finished: Mapping[int, Any]) -> Outline:
    return Outline(
        *(draft.teacher, draft.identity, draft.asked, draft.why, draft.keys, draft.shard_rows),
        finished=tuple(finished),
        begun=True,
    )


def _books(state: TeachState, settled: Settled, evidence: Evidence) -> list[int]:
    """Bytes of each book that will be written: none for signals that this teacher gave before."""
    coming = {}
    for work in settled.work:
        for name, ask in work.asked.items():
            known = (s.signals.get(name) for s in settled.segments if s.digest == state.digest)
            if work.draft is None and name in evidence.books:
                digest, size = evidence.books[name]
                # Another identity's book tells the size; what a probe made may be there already.
                place = book_place(state.cache.path, digest)
                there = evidence.among and size_of(place) is not None
                if not there and not any(s is not None and ask.fits(s) for s in known):
                    coming[digest] = size
    return list(coming.values())


def _size(
    outlines: Sequence[Outline], evidence: Evidence, books: Sequence[int]
) -> tuple[Interval, int]:
    """Bytes and files of segments and books."""
    size, files = Interval.exact(float(sum(books))), len(books)
    for outline in outlines:
        weights = {name: evidence.weights[name] for name in outline.asked}
        exact = sum(outline.fixed_bytes(weight) for weight in weights.values())
        size += Interval.exact(exact + outline.small_bytes(weights, evidence.receipt))
        files += outline.files(weights)
        for weight in weights.values():
            if not weight.fixed:
                size += total(weight.shards, outline.left[1], among=evidence.among)
    return size, files


def _snapshots_bytes(
    state: TeachState, settled: Settled, outlines: Sequence[Outline], why: str, evidence: Evidence
) -> tuple[float, int]:
    """Bytes of the snapshot over what is stored and what will be and of those on the way, and how many
    of the latter there are.

    Each segment adds about as much to a snapshot as the one before, so that the first and the last of
    those on the way tell of all.
    """
    coming = []
    for number, (work, outline) in enumerate(zip(settled.work, outlines, strict=True)):
        place = state.cache.path / f"segments/{number:04d}-{state.teacher.name}-{state.digest[:12]}"
        signals = {name: evidence.weights[name].signal for name in outline.asked}
        keys, hashes = state.rows.keys.take(work.places), state.own.hashes[work.places]
        all_of_it = np.ones(len(keys), bool)
        coming.append(Expected(place, state.digest, signals, keys, hashes, all_of_it))
    parent, asked = max(state.cache.snapshots(), default=None), len(state.rows)

    def taken(segments: int, why: str) -> int:
        served = state.served([*settled.segments, *coming[:segments]])
        return snapshot_bytes(served, parent, why)

    early = 0 if state.segment_rows is None else max(len(coming) - 1, 0)
    told = f"early: {asked:,} of {asked:,} rows of {state.teacher.name} are there"
    ends = [taken(count, told) for count in {1, early}] if early else [0]
    return taken(len(coming), why) + early * sum(ends) / len(ends), early


def _seconds(
    outlines: Sequence[Outline], evidence: Evidence, terms: Terms
) -> tuple[Interval | None, BreakEven | None]:
    """Until the slowest worker is done, and N*."""
    if not evidence.teacher or not evidence.rest:
        return None, None
    load, rows, shards = evidence.load_seconds or 0.0, 0, 0
    seconds = Interval.exact(load)  # once in a worker, however many segments there are
    for outline in outlines:
        shards, rows = shards + outline.left[0], rows + outline.left[1]
        most = slowest(outline.left[1], outline.shard_rows, terms.workers)
        storing = -(-most // outline.shard_rows) * evidence.shard_seconds
        seconds += total(evidence.teacher, most) + total(evidence.rest, most)
        seconds += Interval.exact(storing)
    if not terms.epochs:
        return seconds, None
    inside, rest = per_row(evidence.teacher), per_row(evidence.rest)
    return seconds, BreakEven(
        load + rows * (inside + rest) + shards * evidence.shard_seconds,
        load + terms.epochs * terms.rows_per_epoch * inside,
        terms.reading_seconds or 0.0,
        terms.reading_seconds is not None,
        terms.epochs,
        terms.rows_per_epoch,
        terms.price_per_hour,
    )
