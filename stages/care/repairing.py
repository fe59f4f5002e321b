"""Repair: the shards that verify or audit found wrong are computed again, and nothing else.

Where the teacher gives the bytes that the seal states, the file is put back and nothing else changes.
Where it does not, or the shard was sealed with wrong values, its rows go into a new segment, which
serves them from then on. A segment that cannot be mended is moved to `quarantine/`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillroom.stages.answering import Answering, answer_missing
from stillroom.stages.care.book_repair import holders, remade
from stillroom.stages.care.derived_repair import parted_derived
from stillroom.stages.data.rows import Rows
from stillroom.stages.events import Event, Listen, RowsTaught, ignore
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.worker.shard_work import ShardTask, ShardWork
from stillroom.storage.books import FOLDER as BOOKS
from stillroom.storage.books import book_of
from stillroom.storage.cache import QUARANTINE, Cache
from stillroom.storage.care.mending import Mending, restore_marker
from stillroom.storage.care.problems import EXTRA, Problem
from stillroom.storage.draft import Draft
from stillroom.storage.errors import GARBLED, CorruptShardError, FormatError, StillroomError
from stillroom.storage.files import children, finishing, read_json, temporary_name
from stillroom.storage.folder import Folder, Shard
from stillroom.storage.keys import KeyIndex
from stillroom.storage.lease import Lease
from stillroom.storage.place import Place, relative
from stillroom.storage.removing import move, remove_tree
from stillroom.storage.segment import Segment
from stillroom.storage.served import Source
from stillroom.storage.snapshot import Snapshot, is_segment

_OF_SNAPSHOT = re.compile(r"snapshots/([0-9]{6,9})\b.*\.(json|arrow)")
_LONGEST = 150
"""Of the name of what is put aside: a path as one name may be longer than a name can be."""


@dataclass(frozen=True)
class Repaired:
    """What repair did."""

    put_back: tuple[str, ...]
    """Files that are again as they were sealed."""
    retaught: tuple[str, ...]
    """Shards whose rows lie in a new segment now."""
    quarantined: tuple[str, ...]
    """What was moved out of the way, by its path before."""
    unrepairable: tuple[Problem, ...]
    """What could not be mended with this teacher and data set, and why."""
    rows: int
    """Rows that the teacher answered."""
    snapshot: int | None
    """The new snapshot, where one was needed."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "unrepairable": [p.to_json() for p in self.unrepairable]}


def repair(
    cache: Cache,
    rows: Rows,
    teacher: Teacher,
    problems: Sequence[Problem],
    *,
    runner: Mapper,
    batch_size: int | None = None,
    shard_rows: int = 4096,
    listen: Listen = ignore,
) -> Repaired:
    """Mend what verify's and audit's problems name.

    `batch_size` is that of teaching, on which the last bits may hang; None takes what was noted when
    the shard was made. BusyError while somebody writes. A kill leaves a valid cache; verify and
    repair again to go on.
    """
    state = TeachState(cache, rows, teacher)
    with cache.maintaining("repairing") as lease:
        work = _Repair(state, lease, runner, batch_size, shard_rows, listen)
        return work.run(problems)


@dataclass
class _Repair:
    """One run: what was done so far."""

    state: TeachState
    lease: Lease
    runner: Mapper
    batch_size: int | None
    shard_rows: int
    listen: Listen
    put_back: list[str] = field(default_factory=list)
    retaught: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    unrepairable: list[Problem] = field(default_factory=list)
    partly: dict[str, set[int]] = field(default_factory=dict)
    """Shards that cannot be computed as they were, by segment."""
    rows: int = 0

    def run(self, problems: Sequence[Problem]) -> Repaired:
        """Segments first, then the snapshots over them."""
        cache = self.state.cache
        for problem in problems:
            _require_inside(problem)
        for problem in problems:
            if problem.what == EXTRA and (cache.path / problem.path).exists():
                self._put_aside(problem.path)
        mine = [p for p in problems if p.what != EXTRA]
        if any(p.path == "cache.json" for p in mine):
            restore_marker(cache.path)
            self.put_back.append("cache.json")
        derived, mine = parted_derived(self.state, mine)
        for path in derived:
            self._put_aside(path)
        for path in sorted({p.path for p in mine if p.path.startswith(f"{BOOKS}/")}):
            self._book(path, [p for p in mine if p.path == path])
        for name in sorted({p.segment for p in mine if p.segment is not None}):
            self._segment(name, [p for p in mine if p.segment == name])
        number = self._snapshots([p for p in mine if p.path.startswith("snapshots/")])
        return Repaired(
            tuple(self.put_back),
            tuple(self.retaught),
            tuple(self.quarantined),
            tuple(self.unrepairable),
            self.rows,
            number,
        )

    def _put_aside(self, path: str) -> None:
        """Into quarantine; what has no place of its own there lies under `files`."""
        root, kind = self.state.cache.path, path.partition("/")[0]
        deep = path.count("/") > 1 or kind not in ("segments", "snapshots")
        name = path.replace("/", "--")[-_LONGEST:]
        target = root / QUARANTINE / (f"files/{name}" if deep else path)
        if target.exists():
            target = target.parent / f"{target.name}.{secrets.token_hex(4)}"
        move(root / path, target, first=["plan.json"])
        self.quarantined.append(path)

    def _refuse(self, problems: Sequence[Problem], why: str) -> None:
        self.unrepairable += [
            Problem(p.segment, p.shard, p.signal, p.path, f"{p.what}; {why}") for p in problems
        ]

    def _book(self, path: str, problems: list[Problem]) -> None:
        """Make a book again; where it comes out otherwise, what was stored by it is lost."""
        root, digest = self.state.cache.path, str(book_of(self.state.cache.path / path))
        named = holders(self.state, digest)
        mine = [folder for folder in named if folder.digest == self.state.digest]
        for done in remade(self.state, self.runner, self.batch_size, digest, mine):
            self.rows += done.rows
            if digest in done.books.values():
                self.put_back.append(path)
                return
        if len(mine) < len(named) or not named:
            why = "another teacher needs it: repair with that one"
            self._refuse(
                problems, why if named else "what needs it is damaged as well: repair again"
            )
            return
        if (root / path).exists():
            self._put_aside(path)
        for folder in mine:
            self._put_aside(f"segments/{folder.path.name}")

    def _segment(self, name: str, problems: list[Problem]) -> None:
        folder = self.state.cache.path / "segments" / name
        if not folder.is_dir():
            # Gone with its bytes; the snapshots that name it are looked after below.
            if not self._is_mine(name):
                self._refuse(problems, f"{name} belongs to another teacher: repair with that one")
            return
        prefix = f"segments/{name}/"
        damaged = {p.path.removeprefix(prefix) for p in problems}
        sealed = (folder / "segment.json").exists() or "segment.json" in damaged
        if not sealed and all(p.shard is not None for p in problems):
            self._draft(prefix, {p.shard for p in problems if p.shard is not None})
            return
        mending = Mending(folder, damaged)
        try:
            self.put_back += [prefix + path for path in mending.without_teacher()]
        except (CorruptShardError, *GARBLED) as error:
            if not self._is_mine(name):
                self._refuse(problems, f"and {name} is not of this teacher ({error})")
                return
            self._put_aside(f"segments/{name}")
            return
        shards = sorted({p.shard for p in problems if p.shard is not None})
        left = [p for p in problems if p.shard is not None or mending.small(p.path, prefix)]
        if not left:
            return
        if mending.digest != self.state.digest:
            self._refuse(left, "it belongs to another teacher: repair with that one")
            return
        unfinished = temporary_name("repair")
        with finishing(unfinished):
            self._with_teacher(name, mending, shards, left, folder.parent / unfinished)

    def _is_mine(self, name: str) -> bool:
        """Whether a segment is of this teacher's identity, as far as its name tells."""
        return name.endswith(f"-{self.state.teacher.name}-{self.state.digest[:12]}")

    def _draft(self, prefix: str, shards: set[int]) -> None:
        """Without their receipts the next run computes these shards again, and keeps the others."""
        for shard in sorted(shards):
            path = f"{prefix}receipts/{shard:05d}.json"
            if (self.state.cache.path / path).exists():
                self._put_aside(path)

    def _with_teacher(
        self,
        name: str,
        mending: Mending,
        shards: list[int],
        left: list[Problem],
        scratch: Place,
    ) -> None:
        """What only the teacher can give: computed in a scratch draft, and put back from there."""
        prefix = f"segments/{name}/"
        draft = mending.scratch(scratch, self.state.identity, self._candidates(name))
        if draft is None:
            self._put_aside(f"segments/{name}")
        else:
            self.put_back += [prefix + path for path in mending.put_back_small(draft)]
            self._shards(mending, draft, shards, left, prefix)
        remove_tree(scratch)

    def _candidates(self, name: str) -> Iterator[tuple[Any, Any]]:
        """Keys and hashes that the segment's rows may have had: all, or those that only it serves."""
        keys, hashes = self.state.rows.keys, self.state.own.hashes
        yield keys, hashes
        others = [s for s in self._sound_segments() if s.path.name != name]
        for work in self.state.work(others):
            yield keys.take(work.places), hashes[work.places]

    def _sound_segments(self) -> list[Segment]:
        found = []
        for folder in self.state.cache.folders():
            if (folder / "segment.json").exists():
                with suppress(StillroomError):
                    found.append(Segment(folder))
        return found

    def _shards(
        self, mending: Mending, draft: Draft, shards: list[int], left: list[Problem], prefix: str
    ) -> None:
        tasks = []
        for shard in (draft.shards()[i] for i in shards):
            places = self._places(draft, shard)
            if (places < 0).any():
                gone = (
                    f"{(places < 0).sum():,} of its rows are no more in the data set as they were "
                    "taught; the others were taught again for a new snapshot, older ones stay damaged"
                )
                self._refuse([p for p in left if p.shard == shard.index], gone)
                self.partly.setdefault(mending.folder.name, set()).add(shard.index)
            else:
                sizes = (
                    (self.batch_size,) if self.batch_size else _noted(mending.folder, shard.index)
                )
                tasks.append(ShardTask(shard, places, sizes=sizes))
        size = max((task.sizes[0] for task in tasks if task.sizes), default=256)
        build = ShardWork(
            *(self.state.teacher, self.state.rows, draft.path, size, self.state.cache.path)
        )
        for done in self.runner.map(build, tasks):
            self.rows += done.rows
            self.listen(
                RowsTaught(self.state.teacher.name, done.rows, done.bytes, done.teacher_seconds)
            )
        other = []
        for task in tasks:
            found = mending.put_back_shard(draft, task.shard.index)
            if found is None:
                other.append(task.shard)
            else:
                self.put_back += [prefix + path for path in found]
        if other:
            mending.retaught(self.state.cache, draft, other, self.shard_rows)
            self.retaught += [f"{prefix}: shard {shard.index}" for shard in other]

    def _places(self, draft: Draft, shard: Shard) -> Any:
        held = slice(shard.start, shard.stop)
        places = KeyIndex(self.state.rows.keys).find(draft.keys[held])
        same = places >= 0
        same[same] = self.state.own.hashes[places[same]] == draft.hashes[held][same]
        return np.ascontiguousarray(np.where(same, places, -1))

    def _snapshots(self, problems: list[Problem]) -> int | None:
        """Put damaged snapshots aside and commit one over what is stored now, where that is needed."""
        cache = self.state.cache
        newest = max(cache.snapshots(), default=0)
        before = self._sources(newest, problems)
        named = (_OF_SNAPSHOT.fullmatch(p.path) for p in problems)
        damaged = {int(match[1]) for match in named if match}
        for place in children(cache.path / "snapshots"):
            match = _OF_SNAPSHOT.fullmatch(relative(place, cache.path))
            if match and int(match[1]) in damaged:
                self._put_aside(relative(place, cache.path))
        broken = [n for n in cache.snapshots() if self._lacks_segment(n)]
        lost = [p for p in self.quarantined if p.startswith("segments/") and self._is_mine(p)]
        again = self.retaught or broken or newest in damaged or self._reads_partly(newest)
        number = None
        if again:
            segments = [s.without(self.partly.get(s.path.name, ())) for s in cache.segments()]
            if broken or self.partly or lost:
                why, work = "repaired", self.state.begun(self.state.work(segments))
                how = Answering(self.runner, self.batch_size or 256, self.shard_rows, why)
                answer_missing(self.state, work, segments, self.lease, how, self._heard)
            if served := self.state.served(segments, before):
                number = cache.commit(lambda: served, "repaired").number
        for old in broken:
            for file in Snapshot(cache.path, old).files():
                self._put_aside(relative(file, cache.path))
        return number

    def _heard(self, event: Event) -> None:
        if isinstance(event, RowsTaught):
            self.rows += event.rows
        self.listen(event)

    def _sources(self, newest: int, problems: list[Problem]) -> Sequence[Source] | None:
        """What the newest snapshot says of its teachers, though it may be damaged: `served` believes
        only what it finds in segments. None when there is none or it cannot be read."""
        if not newest:
            return None
        try:
            return Snapshot(self.state.cache.path, newest).sources
        except (CorruptShardError, FormatError):
            if any(s.digest != self.state.digest for s in self._sound_segments()):
                unknown = (
                    "which other teachers it served cannot be told: teach with them once more, "
                )
                own = [p for p in problems if p.path == f"snapshots/{newest:06d}.json"]
                self._refuse(own, f"{unknown}which computes nothing")
            return None

    def _reads_partly(self, newest: int) -> bool:
        """Whether the newest snapshot reads from a shard that cannot be computed as it was."""
        cache = self.state.cache.path
        for *_, rows, name, slot in Snapshot(cache, newest).stretches() if self.partly else ():
            size = Folder(cache / "segments" / name).shard_rows if name in self.partly else 1
            shards = range(slot // size, (slot + rows - 1) // size + 1)
            if any(shard in shards for shard in self.partly.get(name, ())):
                return True
        return False

    def _lacks_segment(self, number: int) -> bool:
        """Whether a segment of this teacher that the snapshot reads is gone."""
        cache = self.state.cache.path
        try:
            names = Snapshot(cache, number).segment_names()
        except (CorruptShardError, FormatError):
            return False  # verify names it, and then it is put aside
        lost = [n for n in names if not (cache / "segments" / n / "segment.json").exists()]
        return any(self._is_mine(name) for name in lost)


def _noted(folder: Place, shard: int) -> tuple[int, ...]:
    """The sizes of the batches that the shard was made of; empty where they were not noted."""
    try:
        noted = read_json(folder / "made" / f"{shard:05d}.json")
        return tuple(max(int(n), 1) for n in noted.get("sizes") or [noted["batch_size"]])
    except (StillroomError, *GARBLED):
        return ()


def _require_inside(problem: Problem) -> None:
    """FormatError for a problem that would lead outside the cache, whoever made it up."""
    if problem.segment is not None and not is_segment(problem.segment):
        raise FormatError(f"{problem.segment!r} is no segment's name")
    if ".." in problem.path.split("/") or problem.path.startswith("/"):
        raise FormatError(f"{problem.path!r} does not lie in the cache")
