"""Putting one segment right: from its own files, from its teacher, or aside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stillroom.stages.care.repair_state import Repairing
from stillroom.stages.events import RowsTaught
from stillroom.stages.worker.shard_work import ShardTask, ShardWork
from stillroom.storage.care.mending import Mending
from stillroom.storage.care.problems import Problem
from stillroom.storage.draft import Draft
from stillroom.storage.errors import GARBLED, CorruptShardError, StillroomError
from stillroom.storage.files import finishing, read_json, temporary_name
from stillroom.storage.folder import Shard
from stillroom.storage.keys import KeyIndex
from stillroom.storage.place import Place
from stillroom.storage.removing import remove_tree


def repair_segment(work: Repairing, name: str, problems: list[Problem]) -> None:
    """Mend what its problems name, as far as this teacher can."""
    folder = work.state.cache.path / "segments" / name
    if not folder.is_dir():
        # Gone with its bytes; the snapshots that name it are looked after later.
        if not work.is_mine(name):
            work.refuse(problems, f"{name} belongs to another teacher: repair with that one")
        return
    prefix = f"segments/{name}/"
    damaged = {p.path.removeprefix(prefix) for p in problems}
    sealed = (folder / "segment.json").exists() or "segment.json" in damaged
    if not sealed and all(p.shard is not None for p in problems):
        _draft(work, prefix, {p.shard for p in problems if p.shard is not None})
        return
    mending = Mending(folder, damaged)
    try:
        work.put_back += [prefix + path for path in mending.without_teacher()]
    except (CorruptShardError, *GARBLED) as error:
        if not work.is_mine(name):
            work.refuse(problems, f"and {name} is not of this teacher ({error})")
            return
        work.put_aside(f"segments/{name}")
        return
    shards = sorted({p.shard for p in problems if p.shard is not None})
    left = [p for p in problems if p.shard is not None or mending.small(p.path, prefix)]
    if not left:
        return
    if mending.digest != work.state.digest:
        work.refuse(left, "it belongs to another teacher: repair with that one")
        return
    unfinished = temporary_name("repair")
    with finishing(unfinished):
        _with_teacher(work, name, mending, shards, left, folder.parent / unfinished)


def _draft(work: Repairing, prefix: str, shards: set[int]) -> None:
    """Without their receipts the next run computes these shards again, and keeps the others."""
    for shard in sorted(shards):
        path = f"{prefix}receipts/{shard:05d}.json"
        if (work.state.cache.path / path).exists():
            work.put_aside(path)


def _with_teacher(
    work: Repairing,
    name: str,
    mending: Mending,
    shards: list[int],
    left: list[Problem],
    scratch: Place,
) -> None:
    """What only the teacher can give: computed in a scratch draft, and put back from there."""
    prefix = f"segments/{name}/"
    draft = mending.scratch(scratch, work.state.identity, _candidates(work, name))
    if draft is None:
        work.put_aside(f"segments/{name}")
    else:
        work.put_back += [prefix + path for path in mending.put_back_small(draft)]
        _shards(work, mending, draft, shards, left, prefix)
    remove_tree(scratch)


def _candidates(work: Repairing, name: str) -> Iterator[tuple[Any, Any]]:
    """Keys and hashes that the segment's rows may have had: all, or those that only it serves."""
    keys, hashes = work.state.rows.keys, work.state.own.hashes
    yield keys, hashes
    others = [s for s in work.sound_segments() if s.path.name != name]
    for missing in work.state.work(others):
        yield keys.take(missing.places), hashes[missing.places]


def _shards(
    work: Repairing,
    mending: Mending,
    draft: Draft,
    shards: list[int],
    left: list[Problem],
    prefix: str,
) -> None:
    tasks = []
    for shard in (draft.shards()[i] for i in shards):
        places = _places(work, draft, shard)
        if (places < 0).any():
            gone = (
                f"{(places < 0).sum():,} of its rows are no more in the data set as they were "
                "taught; the others were taught again for a new snapshot, older ones stay damaged"
            )
            work.refuse([p for p in left if p.shard == shard.index], gone)
            work.partly.setdefault(mending.folder.name, set()).add(shard.index)
        else:
            sizes = (work.batch_size,) if work.batch_size else _noted(mending.folder, shard.index)
            tasks.append(ShardTask(shard, places, sizes=sizes))
    size = max((task.sizes[0] for task in tasks if task.sizes), default=256)
    build = ShardWork(
        *(work.state.teacher, work.state.rows, draft.path, size, work.state.cache.path)
    )
    for done in work.runner.map(build, tasks):
        work.rows += done.rows
        work.listen(
            RowsTaught(work.state.teacher.name, done.rows, done.bytes, done.teacher_seconds)
        )
    other = []
    for task in tasks:
        found = mending.put_back_shard(draft, task.shard.index)
        if found is None:
            other.append(task.shard)
        else:
            work.put_back += [prefix + path for path in found]
    if other:
        mending.retaught(work.state.cache, draft, other, work.shard_rows)
        work.retaught += [f"{prefix}: shard {shard.index}" for shard in other]


def _places(work: Repairing, draft: Draft, shard: Shard) -> Any:
    held = slice(shard.start, shard.stop)
    places = KeyIndex(work.state.rows.keys).find(draft.keys[held])
    same = places >= 0
    same[same] = work.state.own.hashes[places[same]] == draft.hashes[held][same]
    return np.ascontiguousarray(np.where(same, places, -1))


def _noted(folder: Place, shard: int) -> tuple[int, ...]:
    """The sizes of the batches that the shard was made of; empty where they were not noted."""
    try:
        noted = read_json(folder / "made" / f"{shard:05d}.json")
        return tuple(max(int(n), 1) for n in noted.get("sizes") or [noted["batch_size"]])
    except (StillroomError, *GARBLED):
        return ()
