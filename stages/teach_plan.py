"""What teaching would compute: rows that no stored slot serves, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.rows import Rows, require_columns
from stillroom.stages.teacher import Teacher
from stillroom.storage.cache import Cache
from stillroom.storage.errors import SignalError
from stillroom.storage.folder import Ask
from stillroom.storage.identity import differences, digest
from stillroom.storage.segment import Segment
from stillroom.storage.serving import Content, Slots
from stillroom.storage.snapshot import Served, Snapshot, Source


@dataclass(frozen=True)
class Work:
    """Rows to compute, all lacking the same signals."""

    asked: Mapping[str, Ask]
    places: NDArray[np.int64]
    """Places of the rows in the data set, rising."""


@dataclass(frozen=True)
class TeachPlan:
    """What `teach` would do now. Nothing is loaded or written to make one."""

    teacher: str
    digest: str
    rows: int
    """Rows of the data set."""
    work: tuple[Work, ...]
    why: str
    """In words, why rows are to be computed; empty when none are."""
    snapshot: Snapshot | None
    """The snapshot that already serves everything."""

    @property
    def to_compute(self) -> int:
        """Rows that the teacher would answer."""
        return sum(len(work.places) for work in self.work)


class TeachState:
    """A teacher, a data set and a cache, compared."""

    def __init__(self, cache: Cache, rows: Rows, teacher: Teacher) -> None:
        """RowsError when the data set lacks a column that the teacher reads."""
        require_columns(rows, teacher.inputs, f"teacher {teacher.name!r}")
        self.cache, self.rows, self.teacher = cache, rows, teacher
        self.asked = dict(teacher.asks())
        if not self.asked:
            raise SignalError(f"teacher {teacher.name!r} gives no signals; name at least one")
        self.identity = teacher.identity()
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

    def slots(self, segments: Sequence[Segment]) -> dict[str, Slots]:
        """Where each asked signal is stored for each row."""
        return {n: self.own.slots(segments, self.digest, n, a) for n, a in self.asked.items()}

    def work(self, segments: Sequence[Segment]) -> list[Work]:
        """Rows to compute, grouped by the signals that they lack."""
        missing = {name: slots.missing for name, slots in self.slots(segments).items()}
        # A number for each row whose bits are the signals that it lacks.
        pattern = np.zeros(len(self.rows), np.int64)
        for bit, lacking in enumerate(missing.values()):
            pattern |= lacking.astype(np.int64) << bit
        found = []
        for kind in np.flatnonzero(np.bincount(pattern, minlength=1)).tolist():
            names = [name for bit, name in enumerate(missing) if kind >> bit & 1]
            if names:
                places = np.flatnonzero(pattern == kind)
                found.append(Work({name: self.asked[name] for name in names}, places))
        return found

    def plan(self) -> TeachPlan:
        """Compare; costs hashing the rows only when the data set as a whole changed."""
        name, rows = self.teacher.name, len(self.rows)
        if (snapshot := self.fresh()) is not None:
            return TeachPlan(name, self.digest, rows, (), "", snapshot)
        segments = self.cache.segments()
        work = tuple(self.work(segments))
        return TeachPlan(name, self.digest, rows, work, self._why(segments, work), None)

    def _why(self, segments: Sequence[Segment], work: Sequence[Work]) -> str:
        count = sum(len(w.places) for w in work)
        if not count:
            return ""
        mine = [s for s in segments if s.teacher == self.teacher.name]
        if not mine:
            return f"{count:,} rows: this teacher has answered none yet"
        if all(s.digest != self.digest for s in mine):
            changes = "; ".join(differences(mine[-1].identity, self.identity)[:3])
            return f"{count:,} rows: the teacher changed ({changes})"
        names = sorted({n for w in work for n in w.asked})
        return f"{count:,} rows are new, changed or lack {', '.join(names)}"

    def served(self, segments: Sequence[Segment]) -> list[Served]:
        """Everything that the cache says about this data set: this teacher first, then the others."""
        groups = self._grouped(self.teacher.name, self.digest, self.inputs, self.asked, segments)
        if not self.cache.snapshots():
            return groups
        for source in self.cache.snapshot().sources:
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
        segments: Sequence[Segment],
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
