"""One run of repair: with what, and what was done so far."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from stillroom.stages.events import Event, Listen, RowsTaught
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.storage.cache import QUARANTINE
from stillroom.storage.care.problems import Problem
from stillroom.storage.errors import StillroomError
from stillroom.storage.lease import Lease
from stillroom.storage.removing import move
from stillroom.storage.segment import Segment

_LONGEST = 150
"""Of the name of what is put aside: a path as one name may be longer than a name can be."""


@dataclass
class Repairing:
    """What repair works with and what it did."""

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
    """That the teacher answered."""

    def put_aside(self, path: str) -> None:
        """Into quarantine; what has no place of its own there lies under `files`."""
        root, kind = self.state.cache.path, path.partition("/")[0]
        deep = path.count("/") > 1 or kind not in ("segments", "snapshots")
        name = path.replace("/", "--")[-_LONGEST:]
        target = root / QUARANTINE / (f"files/{name}" if deep else path)
        if target.exists():
            target = target.parent / f"{target.name}.{secrets.token_hex(4)}"
        move(root / path, target, first=["plan.json"])
        self.quarantined.append(path)

    def refuse(self, problems: Sequence[Problem], why: str) -> None:
        """Say of problems why they stay."""
        self.unrepairable += [
            Problem(p.segment, p.shard, p.signal, p.path, f"{p.what}; {why}") for p in problems
        ]

    def is_mine(self, name: str) -> bool:
        """Whether a segment is of this teacher's identity, as far as its name tells."""
        return name.endswith(f"-{self.state.teacher.name}-{self.state.digest[:12]}")

    def sound_segments(self) -> list[Segment]:
        """Sealed ones that can be opened."""
        found = []
        for folder in self.state.cache.folders():
            if (folder / "segment.json").exists():
                with suppress(StillroomError):
                    found.append(Segment(folder))
        return found

    def heard(self, event: Event) -> None:
        """Count rows that were taught, and pass the event on."""
        if isinstance(event, RowsTaught):
            self.rows += event.rows
        self.listen(event)
