"""Stored rows copied into a new segment as they lie: parts are never decoded and encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.cache import Cache
from stillroom.storage.draft import Draft
from stillroom.storage.errors import CorruptShardError
from stillroom.storage.files import read_json
from stillroom.storage.folder import Ask, Hashes, Shard, shard_format
from stillroom.storage.opening import open_rows
from stillroom.storage.pairs import join_keys
from stillroom.storage.receipt import merged_errors, receipt_path
from stillroom.storage.segment import Segment
from stillroom.storage.signal import Signal

Int64s = NDArray[np.int64]


def copy_rows(
    cache: Cache,
    segments: Sequence[Segment],
    segment: Int64s,
    slot: Int64s,
    names: Sequence[str],
    shard_rows: int,
) -> Segment:
    """A new sealed segment whose row i is slot `slot[i]` of `segments[segment[i]]`.

    All segments are of one teacher identity and hold these signals alike. Every byte that is copied
    is first compared with its checksum (CorruptShardError). Call it inside the cache's lock.
    """
    first = segments[int(segment[0])]
    signals = {name: first.signals[name] for name in names}
    for other in np.unique(segment).tolist():
        for name, signal in signals.items():
            if change := signal.differs(segments[other].signals[name]):
                raise CorruptShardError(f"{segments[other].path}: signal {name!r}: {change}")
    keys = join_keys([segments[s].keys.slice(at, n) for s, at, n in _stretches(segment, slot)])
    hashes = np.concatenate(
        [segments[s].hashes[at : at + n] for s, at, n in _stretches(segment, slot)]
    )
    asked = {n: Ask(signal.encoding, signal.source, signal.book) for n, signal in signals.items()}
    draft = _cut_off(cache, first.digest, asked, keys, hashes) or cache.draft(
        first.teacher, first.identity, asked, keys, hashes, shard_rows
    )
    finished = draft.receipts()
    for shard in draft.shards():
        held = slice(shard.start, shard.stop)
        if shard.index not in finished:
            _copy_shard(draft, shard, signals, segments, segment[held], slot[held])
    return draft.seal()


def _cut_off(
    cache: Cache, digest: str, asked: Mapping[str, Ask], keys: pa.Array, hashes: Hashes
) -> Draft | None:
    """The draft of the same rows that an earlier call left when it was killed."""
    return next((d for d in cache.drafts() if d.holds(digest, asked, keys, hashes)), None)


def _stretches(segment: Int64s, slot: Int64s) -> list[tuple[int, int, int]]:
    """(segment, first slot, rows) of maximal stretches of consecutive slots."""
    breaks = np.flatnonzero((np.diff(segment) != 0) | (np.diff(slot) != 1)) + 1
    starts = np.concatenate([[0], breaks])
    stops = np.concatenate([breaks, [len(segment)]])
    return [(int(segment[a]), int(slot[a]), int(b - a)) for a, b in zip(starts, stops, strict=True)]


def _copy_shard(
    draft: Draft,
    shard: Shard,
    signals: Mapping[str, Signal],
    segments: Sequence[Segment],
    segment: Int64s,
    slot: Int64s,
) -> None:
    path, shard_rows = draft.path, draft.shard_rows
    described: dict[str, Any] = {}
    sources = {
        (int(s), int(i) // segments[s].shard_rows) for s, i in zip(segment, slot, strict=True)
    }
    receipts = [read_json(receipt_path(segments[s].path, i)) for s, i in sorted(sources)]
    for name, signal in signals.items():
        start, runs = 0, []
        for number, at, rows in _stretches(segment, slot):
            runs += segments[number].runs(name, start, at, rows)
            start += rows
        stored = open_rows(path, signal, runs, check=True)
        parts = stored.read(np.arange(len(segment)), decode=False)
        files = shard_format(signal).write_parts(path, signal, shard.index, shard_rows, parts)
        errors = [receipt["signals"][name].get("error", {}) for receipt in receipts]
        described[name] = {
            **signal.to_json(),
            "error": merged_errors(path, errors),
            "files": [file.to_json() for file in files],
        }
    draft.finish(shard, described)
