"""Plan a derivation: whether it is fresh or why it is not, over how many rows, and what that writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillroom.stages.data.rows import Rows
from stillroom.stages.deriving.caring import derived_as_taught
from stillroom.stages.deriving.derivation import RowWise, Summary
from stillroom.stages.deriving.state import DeriveState
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.plans.teach_plan import TeachPlan
from stillroom.storage.books import book_place
from stillroom.storage.cache import Cache
from stillroom.storage.contents import Contents
from stillroom.storage.files import size_of
from stillroom.storage.keys import KeyList
from stillroom.storage.snapshot import Snapshot


@dataclass(frozen=True)
class DerivePlan:
    """What `derive` would do now. Nothing is computed or written to make one."""

    name: str
    rows: int
    """Over how many it is computed."""
    why: str
    """In words, why it is to be computed; empty where what is stored is fresh."""
    bytes: int | None
    """That are to be written, as the last result of the name took; None where there was none."""
    stored: str = ""
    """The file of the fresh record."""

    @property
    def fresh(self) -> bool:
        """Whether nothing is to be computed."""
        return not self.why

    def words(self) -> str:
        """For people.

        >>> DerivePlan("means", 90, "it was never derived", None).words()
        'means over 90 rows: it was never derived; bytes unknown'
        """
        if self.fresh:
            return f"{self.name} over {self.rows:,} rows: fresh, as {self.stored} has it"
        size = "bytes unknown" if self.bytes is None else f"about {self.bytes:,} bytes"
        return f"{self.name} over {self.rows:,} rows: {self.why}; {size}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "fresh": self.fresh}


def plan_derive(
    cache: Cache,
    snapshot: Snapshot,
    summary: Summary,
    *,
    rows: Rows | None = None,
    keys: KeyList | None = None,
) -> DerivePlan:
    """What `derive` with these arguments would compute and why; hashes the columns that it reads.

    Errors are those of `derive`.
    """
    state = DeriveState(cache, snapshot, summary, rows, keys)
    if (known := state.fresh()) is not None:
        return DerivePlan(summary.name, state.rows, "", 0, known.path.name)
    size, before = None, state.newest()
    if before is not None:
        each = (size_of(before.path), size_of(book_place(cache.path, before.book)))
        size = sum(part or 0 for part in each) if each[1] is not None else None
    return DerivePlan(summary.name, state.rows, state.why(), size)


def plan_derive_signals(
    cache: Cache, derivation: RowWise, *, rows: Rows | None = None, **how: Any
) -> TeachPlan:
    """What `derive_signals` on the newest snapshot would compute: rows, why, bytes and seconds.

    `how` goes to `plan_teach`: `probe`, `batch_size`, `shard_rows`, ... Errors are those of
    `derive_signals`.
    """
    given, teacher = derived_as_taught(cache, derivation, rows)
    contents = Contents(given.snapshot)
    for name in derivation.names:
        contents.signal(name)  # UnknownRowError where rows lack one
    return plan_teach(cache, given, teacher, **how)
