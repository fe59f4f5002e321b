"""The snapshots over what was repaired: damaged ones put aside, a new one where that is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stillroom.stages.answering import Answering, answer_missing
from stillroom.stages.care.repair_state import Repairing
from stillroom.storage.care.problems import Problem
from stillroom.storage.errors import CorruptShardError, FormatError
from stillroom.storage.files import children
from stillroom.storage.folder import Folder
from stillroom.storage.place import relative
from stillroom.storage.served import Source
from stillroom.storage.snapshot import Snapshot

_OF_SNAPSHOT = re.compile(r"snapshots/([0-9]{6,9})\b.*\.(json|arrow)")


def repair_snapshots(work: Repairing, problems: list[Problem]) -> int | None:
    """Put damaged snapshots aside and commit one over what is stored now, where that is needed."""
    cache = work.state.cache
    newest = max(cache.snapshots(), default=0)
    before = _sources(work, newest, problems)
    named = (_OF_SNAPSHOT.fullmatch(p.path) for p in problems)
    damaged = {int(match[1]) for match in named if match}
    for place in children(cache.path / "snapshots"):
        match = _OF_SNAPSHOT.fullmatch(relative(place, cache.path))
        if match and int(match[1]) in damaged:
            work.put_aside(relative(place, cache.path))
    broken = [n for n in cache.snapshots() if _lacks_segment(work, n)]
    lost = [p for p in work.quarantined if p.startswith("segments/") and work.is_mine(p)]
    again = work.retaught or broken or newest in damaged or _reads_partly(work, newest)
    number = None
    if again:
        segments = [s.without(work.partly.get(s.path.name, ())) for s in cache.segments()]
        if broken or work.partly or lost:
            why, missing = "repaired", work.state.begun(work.state.work(segments))
            how = Answering(work.runner, work.batch_size or 256, work.shard_rows, why)
            answer_missing(work.state, missing, segments, work.lease, how, work.heard)
        if served := work.state.served(segments, before):
            number = cache.commit(lambda: served, "repaired").number
    for old in broken:
        for file in Snapshot(cache.path, old).files():
            work.put_aside(relative(file, cache.path))
    return number


def _sources(work: Repairing, newest: int, problems: list[Problem]) -> Sequence[Source] | None:
    """What the newest snapshot says of its teachers, though it may be damaged: `served` believes
    only what it finds in segments. None when there is none or it cannot be read."""
    if not newest:
        return None
    try:
        return Snapshot(work.state.cache.path, newest).sources
    except (CorruptShardError, FormatError):
        if any(s.digest != work.state.digest for s in work.sound_segments()):
            unknown = "which other teachers it served cannot be told: teach with them once more, "
            own = [p for p in problems if p.path == f"snapshots/{newest:06d}.json"]
            work.refuse(own, f"{unknown}which computes nothing")
        return None


def _reads_partly(work: Repairing, newest: int) -> bool:
    """Whether the newest snapshot reads from a shard that cannot be computed as it was."""
    cache = work.state.cache.path
    for *_, rows, name, slot in Snapshot(cache, newest).stretches() if work.partly else ():
        size = Folder(cache / "segments" / name).shard_rows if name in work.partly else 1
        shards = range(slot // size, (slot + rows - 1) // size + 1)
        if any(shard in shards for shard in work.partly.get(name, ())):
            return True
    return False


def _lacks_segment(work: Repairing, number: int) -> bool:
    """Whether a segment of this teacher that the snapshot reads is gone."""
    cache = work.state.cache.path
    try:
        names = Snapshot(cache, number).segment_names()
    except (CorruptShardError, FormatError):
        return False  # verify names it, and then it is put aside
    lost = [n for n in names if not (cache / "segments" / n / "segment.json").exists()]
    return any(work.is_mine(name) for name in lost)
