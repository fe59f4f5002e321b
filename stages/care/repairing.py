"""Repair: the shards that verify or audit found wrong are computed again, and nothing else.

Where the teacher gives the bytes that the seal states, the file is put back and nothing else changes.
Where it does not, or the shard was sealed with wrong values, its rows go into a new segment, which
serves them from then on. A segment that cannot be mended is moved to `quarantine/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.stages.care.book_repair import holders, remade
from stillroom.stages.care.derived_repair import parted_derived
from stillroom.stages.care.repair_state import Repairing
from stillroom.stages.care.segment_repair import repair_segment
from stillroom.stages.care.snapshot_repair import repair_snapshots
from stillroom.stages.data.rows import Rows
from stillroom.stages.events import Listen, ignore
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.stages.teachers.teacher import Teacher
from stillroom.storage.books import FOLDER as BOOKS
from stillroom.storage.books import book_of
from stillroom.storage.cache import Cache
from stillroom.storage.care.mending import restore_marker
from stillroom.storage.care.problems import EXTRA, Problem
from stillroom.storage.errors import FormatError
from stillroom.storage.snapshot import is_segment


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
        return _run(Repairing(state, lease, runner, batch_size, shard_rows, listen), problems)


def _run(work: Repairing, problems: Sequence[Problem]) -> Repaired:
    """Segments first, then the snapshots over them."""
    cache = work.state.cache
    for problem in problems:
        _require_inside(problem)
    for problem in problems:
        if problem.what == EXTRA and (cache.path / problem.path).exists():
            work.put_aside(problem.path)
    mine = [p for p in problems if p.what != EXTRA]
    if any(p.path == "cache.json" for p in mine):
        restore_marker(cache.path)
        work.put_back.append("cache.json")
    derived, mine = parted_derived(work.state, mine)
    for path in derived:
        work.put_aside(path)
    for path in sorted({p.path for p in mine if p.path.startswith(f"{BOOKS}/")}):
        _book(work, path, [p for p in mine if p.path == path])
    for name in sorted({p.segment for p in mine if p.segment is not None}):
        repair_segment(work, name, [p for p in mine if p.segment == name])
    number = repair_snapshots(work, [p for p in mine if p.path.startswith("snapshots/")])
    return Repaired(
        tuple(work.put_back),
        tuple(work.retaught),
        tuple(work.quarantined),
        tuple(work.unrepairable),
        work.rows,
        number,
    )


def _book(work: Repairing, path: str, problems: list[Problem]) -> None:
    """Make a book again; where it comes out otherwise, what was stored by it is lost."""
    root, digest = work.state.cache.path, str(book_of(work.state.cache.path / path))
    named = holders(work.state, digest)
    mine = [folder for folder in named if folder.digest == work.state.digest]
    for done in remade(work.state, work.runner, work.batch_size, digest, mine):
        work.rows += done.rows
        if digest in done.books.values():
            work.put_back.append(path)
            return
    if len(mine) < len(named) or not named:
        why = "another teacher needs it: repair with that one"
        work.refuse(problems, why if named else "what needs it is damaged as well: repair again")
        return
    if (root / path).exists():
        work.put_aside(path)
    for folder in mine:
        work.put_aside(f"segments/{folder.path.name}")


def _require_inside(problem: Problem) -> None:
    """FormatError for a problem that would lead outside the cache, whoever made it up."""
    if problem.segment is not None and not is_segment(problem.segment):
        raise FormatError(f"{problem.segment!r} is no segment's name")
    if ".." in problem.path.split("/") or problem.path.startswith("/"):
        raise FormatError(f"{problem.path!r} does not lie in the cache")
