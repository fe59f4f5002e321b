"""Audit: a few rows of every stored shard are asked of the live teacher again and compared.

Checksums say that bytes are as they were written; only the teacher can say that they were right.
What counts as equal is measured at that moment: the same rows are answered again in other batches,
in another order and with another number of threads, and the differences between those live answers
are the band. The encoding's own loss is measured apart, on live answers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.care.audit_work import AuditTask, AuditWork, RowVerdict
from stillroom.stages.data.rows import Rows
from stillroom.stages.events import Listen, RowsAudited, ignore
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.worker.live import SLACK
from stillroom.storage.cache import Cache
from stillroom.storage.care.problems import Problem
from stillroom.storage.errors import UnknownRowError
from stillroom.storage.keys import KeyIndex
from stillroom.storage.segment import Segment
from stillroom.storage.snapshot import Snapshot

_BANDS = 4.0
"""How many times the largest live-against-live difference still counts as equal: it is the largest of
a few rows, not of all."""
_TOGETHER = 16
"""Shards whose rows are answered in common batches."""


@dataclass(frozen=True)
class ShardAudit:
    """One signal of one shard."""

    segment: str
    shard: int
    signal: str
    rows: int
    """Rows that were compared."""
    deviation: float
    """The largest difference from the live answer, in the signal's unit (topk: nats)."""
    allowed: float
    """What that row could differ by, from the band and from rounding to the encoding."""
    faithful: bool
    verdict: str
    """In words."""


@dataclass(frozen=True)
class AuditReport:
    """What an audit found."""

    teacher: str
    snapshot: int
    shards: tuple[ShardAudit, ...]
    band: Mapping[str, float]
    """By signal: the largest difference between live answers to one row."""
    loss: Mapping[str, Mapping[str, float]]
    """By signal: what the encoding loses of live answers; says nothing about the stored rows."""
    rows: int
    """Rows that were compared."""
    skipped: int
    """Rows of the snapshot that the data set no longer holds as they were taught."""

    @property
    def faithful(self) -> bool:
        """Whether every shard holds what the teacher says."""
        return all(shard.faithful for shard in self.shards)

    def problems(self) -> list[Problem]:
        """The shards that are wrong, as repair takes them."""
        return [
            Problem(s.segment, s.shard, s.signal, f"segments/{s.segment}", s.verdict)
            for s in self.shards
            if not s.faithful
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a deviation without end (NaN, another length) is null."""
        shards = [asdict(s) for s in self.shards]
        for s in shards:
            s["deviation"] = s["deviation"] if np.isfinite(s["deviation"]) else None
        return {**asdict(self), "shards": shards, "faithful": self.faithful}


def audit(
    cache: Cache,
    rows: Rows,
    teacher: Teacher,
    *,
    runner: Mapper,
    snapshot: Snapshot | None = None,
    rows_per_shard: int = 4,
    batch_size: int = 256,
    seed: int | None = 0,
    listen: Listen = ignore,
) -> AuditReport:
    """Compare a few rows of every shard that the snapshot (the newest) reads of this teacher.

    The first and the last row of each shard are always among them, the others are drawn by `seed`
    (None: others every time). `batch_size` is that of teaching. UnknownRowError when the snapshot
    holds nothing of this teacher's identity, or no row of it that the data set still has.
    """
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard must be at least 1, found {rows_per_shard}")
    snapshot = cache.snapshot() if snapshot is None else snapshot
    state = TeachState(cache, rows, teacher)
    picks = _Picks(snapshot, state, np.random.default_rng(seed), rows_per_shard)
    tasks = list(picks.tasks())
    if not tasks:
        raise UnknownRowError(
            f"snapshot {snapshot.number} of {cache.path} holds no row that teacher {teacher.name!r}, as "
            "it is now, answered and the data set still has; teach first"
        )
    work = AuditWork(teacher, rows, cache.path, batch_size)
    grouped = [tuple(tasks[i : i + _TOGETHER]) for i in range(0, len(tasks), _TOGETHER)]
    found: list[RowVerdict] = []
    loss: dict[str, dict[str, float]] = {}
    for verdicts, lost in runner.map(work, grouped):
        found += verdicts
        for name, figures in lost.items():
            known = loss.setdefault(name, {})
            known |= {key: max(value, known.get(key, 0.0)) for key, value in figures.items()}
        listen(RowsAudited(teacher.name, len({(v.segment, v.shard, v.key) for v in verdicts})))
    band = {n: max(v.band for v in found if v.signal == n) for n in {v.signal for v in found}}
    return AuditReport(
        teacher=teacher.name,
        snapshot=snapshot.number,
        shards=tuple(_judged(found, band)),
        band=dict(sorted(band.items())),
        loss=loss,
        rows=len({(v.segment, v.shard, v.key) for v in found}),
        skipped=picks.skipped,
    )


def _judged(found: list[RowVerdict], band: Mapping[str, float]) -> Iterator[ShardAudit]:
    """Each signal of each shard by its worst row."""
    grouped: dict[tuple[str, int, str], list[RowVerdict]] = {}
    for verdict in found:
        grouped.setdefault((verdict.segment, verdict.shard, verdict.signal), []).append(verdict)
    for (segment, shard, signal), rows in sorted(grouped.items()):
        wide = _BANDS * band[signal]
        allowed = [wide + row.rounding + SLACK * row.scale for row in rows]
        excess = [row.deviation - limit for row, limit in zip(rows, allowed, strict=True)]
        worst = int(np.argmax(excess))
        wrong = sum(e > 0 for e in excess)
        row, limit = rows[worst], allowed[worst]
        if not wrong:
            words = (
                f"as the teacher says: differs by {row.deviation:.3g} at most, {limit:.3g} may be"
            )
        else:
            why = row.why or f"differs by {row.deviation:.3g}, {limit:.3g} may be"
            words = f"{wrong} of {len(rows)} rows are not what the teacher says; {row.key}: {why}"
        yield ShardAudit(segment, shard, signal, len(rows), row.deviation, limit, not wrong, words)


class _Picks:
    """Which rows of which shards are compared."""

    def __init__(
        self, snapshot: Snapshot, state: TeachState, random: np.random.Generator, count: int
    ) -> None:
        self._snapshot, self._state, self._random, self._count = snapshot, state, random, count
        self.skipped = 0

    def tasks(self) -> Iterator[AuditTask]:
        """One task for each shard and set of signals."""
        index = KeyIndex(self._state.rows.keys)
        for (source, name), slots in sorted(self._slots().items()):
            segment = Segment(self._snapshot.cache / "segments" / name)
            at = np.array(sorted(slots), np.int64)
            places = index.find(segment.keys.take(at))
            same = places >= 0
            same[same] = segment.hashes[at[same]] == self._state.own.hashes[places[same]]
            self.skipped += int((~same).sum())
            at, places = at[same], places[same]
            signals = tuple(self._snapshot.sources[source].signals)
            for shard in np.unique(at // segment.shard_rows).tolist():
                mine = np.flatnonzero(at // segment.shard_rows == shard)
                chosen = self._chosen(mine)
                yield AuditTask(name, shard, signals, at[chosen], places[chosen])

    def _slots(self) -> dict[tuple[int, str], set[int]]:
        found: dict[tuple[int, str], set[int]] = {}
        for source, _, rows, name, slot in self._snapshot.stretches():
            if self._snapshot.sources[source].digest == self._state.digest:
                found.setdefault((source, name), set()).update(range(slot, slot + rows))
        return found

    def _chosen(self, mine: NDArray[np.int64]) -> NDArray[np.int64]:
        """First and last, and others between them by chance."""
        ends = {int(mine[0]), int(mine[-1])}
        between = np.array([i for i in mine.tolist() if i not in ends], np.int64)
        more = min(max(self._count - len(ends), 0), len(between))
        drawn = self._random.choice(between, more, replace=False).tolist() if more else []
        return np.array(sorted({*ends, *drawn}), np.int64)
