"""Compact: many small segments of one teacher become one; not a byte of any row changes.

Stored parts are copied into a new segment, and a new snapshot reads from it. The old segments stay
for older snapshots and open readers until prune drops them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.cache import Cache
from stillroom.storage.care.copying import copy_rows
from stillroom.storage.folder import Ask
from stillroom.storage.segment import Segment
from stillroom.storage.served import Served
from stillroom.storage.serving import Content, Slots
from stillroom.storage.snapshot import Snapshot

_NO_SEGMENT = -1


@dataclass(frozen=True)
class Merged:
    """Segments of one teacher identity that become (or would become) one."""

    teacher: str
    signals: tuple[str, ...]
    segments: tuple[str, ...]
    """Names of the old ones."""
    rows: int
    """Rows of the newest snapshot that they serve."""


@dataclass(frozen=True)
class Compacted:
    """What compact did, or would do."""

    merged: tuple[Merged, ...]
    snapshot: int | None
    """The new snapshot; None when nothing was to do, and on a dry run."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def compact(
    cache: Cache,
    *,
    dry_run: bool = False,
    shard_rows: int = 4096,
    small_rows: int | None = None,
) -> Compacted:
    """Join the segments of each source of the newest snapshot, and commit a snapshot that reads them.

    Only segments of fewer than `small_rows` rows are joined (None: all), and only where at least two
    serve a source. Rows that no longer belong to the newest snapshot are not copied. NotACacheError
    without a snapshot; CorruptShardError when what is to be copied is damaged: repair first. BusyError
    while somebody writes. A kill leaves a draft, or a segment that the next compact or teach uses.
    """
    if dry_run:
        return _compacted(cache, shard_rows, small_rows, dry_run)
    with cache.maintaining("compacting"):
        return _compacted(cache, shard_rows, small_rows, dry_run)


def _compacted(cache: Cache, shard_rows: int, small_rows: int | None, dry_run: bool) -> Compacted:
    snapshot, segments = cache.snapshot(), cache.segments()
    merged, served, moved = [], [], False
    for index, source in enumerate(snapshot.sources):
        before = _served(snapshot, index)
        slots = _alike(snapshot, index, segments)
        if slots is None:
            served.append(before)
            continue
        group = _small(slots, segments, tuple(source.signals), small_rows)
        rows = np.flatnonzero(np.isin(slots.segment, group))
        segment, slot = slots.segment, slots.slot
        names = [*slots.segments]
        if len(group) > 1:
            old = tuple(segments[i].path.name for i in group)
            merged.append(Merged(source.teacher, tuple(source.signals), old, len(rows)))
            if not dry_run:
                new = copy_rows(
                    *(cache, segments, segment[rows], slot[rows], tuple(source.signals)),
                    shard_rows,
                )
                segment, slot = segment.copy(), slot.copy()
                segment[rows], slot[rows] = len(names), np.arange(len(rows))
                names.append(new.path.name)
        now = Served(source, names, segment, slot)
        moved |= not _same(before, now)
        served.append(now)
    if dry_run or not moved:
        return Compacted(tuple(merged), None)
    # The same words also for a run that continues one which was killed half-way.
    number = cache.commit(lambda: served, "small segments were compacted").number
    return Compacted(tuple(merged), number)


def _served(snapshot: Snapshot, source: int) -> Served:
    """Where the snapshot itself reads a source."""
    names: dict[str, int] = {}
    rows = len(snapshot.keys)  # which holds the number to what is stored, before memory is taken
    segment, slot = np.full(rows, _NO_SEGMENT, np.int64), np.full(rows, -1, np.int64)
    for index, start, count, name, at in snapshot.stretches():
        if index == source:
            segment[start : start + count] = names.setdefault(name, len(names))
            slot[start : start + count] = np.arange(at, at + count)
    return Served(snapshot.sources[source], list(names), segment, slot)


def _alike(snapshot: Snapshot, index: int, segments: Sequence[Segment]) -> Slots | None:
    """The newest slots of a source, when all its signals lie in the same ones.

    They are those that teach would serve: the snapshot's own, or those of a segment that was sealed
    when a compact or a repair was cut off just before its snapshot.
    """
    source = snapshot.sources[index]
    held = _served(snapshot, index).segment >= 0
    found: Slots | None = None
    for name, signal in source.signals.items():
        hashes = snapshot.hashes(f"{source.teacher}/{name}")
        ask = Ask(signal.encoding, signal.source)
        slots = Content(snapshot.keys, hashes).slots(segments, source.digest, name, ask)
        if (slots.missing & held).any() or (found is not None and not found.same(slots)):
            return None
        segment = np.where(held, slots.segment, _NO_SEGMENT)
        found = Slots(slots.segments, segment, np.where(held, slots.slot, -1))
    return found


def _small(
    slots: Slots, segments: Sequence[Segment], names: tuple[str, ...], small_rows: int | None
) -> NDArray[np.int64]:
    """Indices of the segments to join: they hold just these signals, and are small."""
    used = np.unique(slots.segment[slots.segment >= 0])
    chosen = [
        int(i)
        for i in used
        if set(segments[i].signals) == set(names)
        and (small_rows is None or segments[i].rows < small_rows)
    ]
    return np.array(chosen, np.int64)


def _same(one: Served, other: Served) -> bool:
    """Whether both read every row from the same slot."""
    if not np.array_equal(one.slot, other.slot):
        return False
    pairs = set(zip(one.segment.tolist(), other.segment.tolist(), strict=True))
    return all(
        (a < 0 and b < 0) or (a >= 0 and b >= 0 and one.segments[a] == other.segments[b])
        for a, b in pairs
    )
