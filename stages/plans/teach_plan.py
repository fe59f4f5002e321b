"""What teaching would compute: rows that no stored slot serves, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows, require_columns
from stillroom.stages.plans.estimating import Estimate
from stillroom.stages.teachers.routed import require_routes
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.views.teacher import require_views
from stillroom.storage.cache import Cache
from stillroom.storage.draft import Draft
from stillroom.storage.errors import SignalError
from stillroom.storage.folder import Ask, Folder
from stillroom.storage.identity import differences, digest
from stillroom.storage.receipt import agreed_signals
from stillroom.storage.segment import Segment
from stillroom.storage.served import Served, Source
from stillroom.storage.serving import Content, Expected, Slots, Stored
from stillroom.storage.snapshot import Snapshot


@dataclass(frozen=True)
class Work:
    """Rows to compute, all lacking the same signals."""

    asked: Mapping[str, Ask]
    places: NDArray[np.int64]
    """Places of the rows in the data set, rising."""
    draft: Draft | None = None
    """What a run that was cut off made of it."""
    finished: Mapping[int, Any] = field(default_factory=dict)
    """Receipts of the draft's finished shards, which are kept."""

    @property
    def kept(self) -> int:
        """Rows of the finished shards."""
        if self.draft is None:
            return 0
        return sum(s.stop - s.start for s in self.draft.shards() if s.index in self.finished)


@dataclass(frozen=True)
class TeachPlan:
    """What `teach` would do now. Nothing is written to make one."""

    teacher: str
    digest: str
    rows: int
    """Rows of the data set."""
    work: tuple[Work, ...]
    why: str
    """In words, why rows are to be computed; empty when none are."""
    snapshot: Snapshot | None
    """The snapshot that already serves everything."""
    changes: tuple[str, ...] = ()
    """Each field in which the teacher differs from the one that answered before."""
    kept: int = 0
    """Rows that a run finished which was cut off; they are not computed again."""
    snapshot_every: int | None = None
    """Rows after which a snapshot of what is there is taken; None: there is one at the end."""
    estimate: Estimate | None = None
    """Bytes, seconds, room and N*; None where nothing is to be written, or nobody asked."""

    @property
    def to_compute(self) -> int:
        """Rows that the teacher would answer."""
        return sum(len(work.places) - work.kept for work in self.work)

    @property
    def early(self) -> int:
        """Snapshots on the way, before the last one."""
        return 0 if self.snapshot_every is None else max(len(self.work) - 1, 0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with every number."""
        return {
            "teacher": self.teacher,
            "digest": self.digest,
            "rows": self.rows,
            "to_compute": self.to_compute,
            "kept": self.kept,
            "why": self.why,
            "changes": list(self.changes),
            "snapshot": None if self.snapshot is None else self.snapshot.number,
            "snapshot_every": self.snapshot_every,
            "early": self.early,
            "estimate": None if self.estimate is None else self.estimate.to_json(),
        }


@dataclass(frozen=True)
class Settled:
    """A cache as `teach` finds it once it has settled what runs left that were cut off."""

    segments: Sequence[Stored]
    """Sealed ones, and those that drafts will be sealed to, whose rows are not asked for as a whole."""
    folders: Sequence[Folder]
    """All of them, as folders."""
    work: tuple[Work, ...]
    salvaged: int
    """Rows that only drafts will serve which are sealed."""


class TeachState:
    """A teacher, a data set and a cache, compared."""

    def __init__(
        self, cache: Cache, rows: Rows, teacher: Teacher, segment_rows: int | None = None
    ) -> None:
        """RowsError when the data set lacks a column that the teacher reads.

        With `segment_rows` work is cut into pieces of so many rows, each for a segment of its own.
        """
        require_routes(rows, teacher)
        require_columns(rows, teacher.inputs, f"teacher {teacher.name!r}")
        self.cache, self.rows, self.teacher = cache, rows, teacher
        self.segment_rows = segment_rows
        self.asked = dict(teacher.asks())
        if not self.asked:
            raise SignalError(f"teacher {teacher.name!r} gives no signals; name at least one")
        self.identity = teacher.identity()
        require_views(rows, self.identity, teacher.name)
        self.digest = digest(self.identity)
        self.inputs = tuple(teacher.inputs)

    @cached_property
    def fingerprint(self) -> str:
        """Of the data set, in the teacher's columns."""
        return self.rows.fingerprint(self.inputs)

    def content(self, inputs: Sequence[str]) -> Content:
        """Keys and content hashes of the data set in these columns."""
        return Content(self.rows.keys, self.rows.hashes(inputs))

    @cached_property
    def own(self) -> Content:
        """In the teacher's own columns."""
        return self.content(self.inputs)

    def fresh(self) -> Snapshot | None:
        """The newest snapshot, when it serves this teacher's signals for exactly this data set."""
        if not self.cache.snapshots():
            return None
        snapshot = self.cache.snapshot()
        served: dict[str, Ask] = {}
        for source in snapshot.sources:
            if (source.teacher, source.digest) != (self.teacher.name, self.digest):
                continue
            if (source.inputs, source.dataset) != (self.inputs, self.fingerprint):
                return None
            served |= {n: Ask(s.encoding, s.source) for n, s in source.signals.items()}
        complete = snapshot.rows == len(self.rows)
        return (
            snapshot
            if complete and all(served.get(n) == a for n, a in self.asked.items())
            else None
        )

    def slots(self, segments: Sequence[Stored]) -> dict[str, Slots]:
        """Where each asked signal is stored for each row."""
        return {n: self.own.slots(segments, self.digest, n, a) for n, a in self.asked.items()}

    def work(self, segments: Sequence[Stored]) -> list[Work]:
        """Rows to compute, grouped by the signals that they lack, each group in its pieces."""
        missing = {name: slots.missing for name, slots in self.slots(segments).items()}
        # A number for each row whose bits are the signals that it lacks.
        pattern = np.zeros(len(self.rows), np.int64)
        for bit, lacking in enumerate(missing.values()):
            pattern |= lacking.astype(np.int64) << bit
        found = []
        for kind in np.flatnonzero(np.bincount(pattern, minlength=1)).tolist():
            names = [name for bit, name in enumerate(missing) if kind >> bit & 1]
            places = np.flatnonzero(pattern == kind) if names else pattern[:0]
            step = self.segment_rows or max(len(places), 1)
            for start in range(0, len(places), step):
                asked = {name: self.asked[name] for name in names}
                found.append(Work(asked, places[start : start + step]))
        return found

    def continues(self, draft: Draft, work: Work) -> bool:
        """Whether the draft holds exactly the rows and signals of this work."""
        if draft.teacher != self.teacher.name or draft.rows != len(work.places):
            return False
        keys, hashes = self.rows.keys.take(work.places), self.own.hashes[work.places]
        return draft.holds(self.digest, work.asked, keys, hashes)

    def settled(self) -> Settled:
        """What is to be computed once drafts are continued or sealed; nothing is written."""
        folders: list[Folder] = list(self.cache.segments())
        segments: list[Stored] = [f for f in folders if isinstance(f, Segment)]
        work = self.work(segments)
        before = sum(len(w.places) for w in work)
        drafts = self._drafts()
        for draft in drafts:
            if draft.teacher != self.teacher.name or any(self.continues(draft, w) for w in work):
                continue
            with suppress(SignalError):
                if sealed := _as_sealed(draft):
                    folders.append(draft)
                    segments.append(sealed)
                    work = self.work(segments)
        salvaged = before - sum(len(w.places) for w in work)
        return Settled(segments, folders, tuple(self._with_drafts(work, drafts)), salvaged)

    def begun(self, work: Sequence[Work]) -> list[Work]:
        """The same work with the drafts that runs left of it which were cut off."""
        return self._with_drafts(work, self._drafts())

    def _drafts(self) -> list[Draft]:
        return [draft for draft in self.cache.drafts() if draft.digest == self.digest]

    def _with_drafts(self, work: Sequence[Work], drafts: Sequence[Draft]) -> list[Work]:
        found = []
        for each in work:
            draft = next((d for d in drafts if self.continues(d, each)), None)
            if draft is not None:
                each = replace(each, draft=draft, finished=draft.receipts())
            found.append(each)
        return found

    def plan(self) -> TeachPlan:
        """Compare; costs hashing the rows only when the data set as a whole changed."""
        if (snapshot := self.fresh()) is not None:
            return TeachPlan(self.teacher.name, self.digest, len(self.rows), (), "", snapshot)
        return self.planned(self.settled())

    def planned(self, settled: Settled) -> TeachPlan:
        """The plan for a cache that serves not everything."""
        name, work = self.teacher.name, settled.work
        mine = [folder for folder in settled.folders if folder.teacher == name]
        changed = bool(mine and work) and all(f.digest != self.digest for f in mine)
        changes = tuple(differences(mine[-1].identity, self.identity)) if changed else ()
        why = _why(work, mine, changed, changes)
        kept = settled.salvaged + sum(w.kept for w in work)
        every = self.segment_rows
        return TeachPlan(name, self.digest, len(self.rows), work, why, None, changes, kept, every)

    def served(
        self, segments: Sequence[Stored], before: Sequence[Source] | None = None
    ) -> list[Served]:
        """Everything that the cache says about this data set: this teacher first, then the others.

        `before`: the sources of the snapshot that this follows; None for the newest.
        """
        groups = self._grouped(self.teacher.name, self.digest, self.inputs, self.asked, segments)
        if before is None:
            before = self.cache.snapshot().sources if self.cache.snapshots() else ()
        for source in before:
            same_teacher = source.teacher == self.teacher.name
            if same_teacher and source.digest != self.digest:
                continue  # replaced by the teacher that was just asked
            kept = {
                name: Ask(signal.encoding, signal.source)
                for name, signal in source.signals.items()
                if not (same_teacher and name in self.asked)
            }
            if kept and set(source.inputs) <= set(self.rows.columns):
                groups += self._grouped(
                    source.teacher, source.digest, source.inputs, kept, segments
                )
        return groups

    def _grouped(
        self,
        teacher: str,
        identity: str,
        inputs: tuple[str, ...],
        asked: Mapping[str, Ask],
        segments: Sequence[Stored],
    ) -> list[Served]:
        """Signals that lie in the same slots share one source."""
        content = self.own if inputs == self.inputs else self.content(inputs)
        groups: list[tuple[Slots, list[str]]] = []
        for name, ask in asked.items():
            slots = content.slots(segments, identity, name, ask)
            same = next((names for known, names in groups if known.same(slots)), None)
            if same is not None:
                same.append(name)
            elif not slots.missing.all():
                groups.append((slots, [name]))
        whole = self.rows.fingerprint(inputs)
        served = []
        for slots, names in groups:
            signals = {n: segments[int(slots.segment.max())].signals[n] for n in names}
            # A source that lacks rows must not be taken for one that serves this data set.
            dataset = f"part of {whole}" if slots.missing.any() else whole
            source = Source(teacher, identity, signals, inputs, dataset)
            served.append(Served(source, slots.segments, slots.segment, slots.slot))
        return served


def _why(
    work: Sequence[Work], mine: Sequence[Folder], changed: bool, changes: Sequence[str]
) -> str:
    """A function of rows, teacher and sealed segments alone: it is stored with what is taught."""
    if not (count := sum(len(w.places) for w in work)):
        return ""
    if not mine:
        return f"{count:,} rows: this teacher has answered none yet"
    if changed:
        return f"{count:,} rows: the teacher changed ({'; '.join(changes[:3])})"
    names = sorted({n for w in work for n in w.asked})
    return f"{count:,} rows are new, changed or lack {', '.join(names)}"


def _as_sealed(draft: Draft) -> Expected | None:
    """The segment that a draft will be sealed to; None without a finished shard."""
    if not (receipts := draft.receipts()):
        return None
    signals = agreed_signals(draft.path, receipts, draft.asked)
    finished = np.isin(np.arange(draft.rows) // draft.shard_rows, np.array(list(receipts)))
    return Expected(draft.path, draft.digest, signals, draft.keys, draft.hashes, finished)
