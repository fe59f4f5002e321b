"""A cache: a folder of sealed segments, and snapshots over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from stillroom.storage.draft import Draft
from stillroom.storage.errors import BusyError, FormatError, NotACacheError
from stillroom.storage.files import (
    TEMPORARY,
    children,
    each_of,
    read_json,
    store_errors,
    write_json,
)
from stillroom.storage.folder import FORMAT, Ask, Hashes
from stillroom.storage.lease import FOLDER as LEASES
from stillroom.storage.lease import Lease, active_leases, held
from stillroom.storage.place import Place, place_of
from stillroom.storage.removing import remove_leftovers
from stillroom.storage.segment import Segment
from stillroom.storage.served import Served, write_snapshot
from stillroom.storage.snapshot import Snapshot, is_segment, snapshot_number

_NUMBERS = 10**9
"""Of segments and of snapshots: their names have up to nine digits."""
MARKER = {"format": FORMAT, "stillroom": "teacher cache"}
"""What cache.json says."""
QUARANTINE = "quarantine"
"""Folder of what repair took out; its numbers are not given again."""


_CARE = "care"
"""The lease that excludes all others."""
_POLL_SECONDS = 0.5


def _number(segment: Place) -> int:
    return int(segment.name.partition("-")[0])


def _next_number(known: Iterable[int], cache: Place) -> int:
    number = max(known, default=0) + 1
    if number >= _NUMBERS:
        raise FormatError(
            f"{cache} has used up its numbers: a name in it says {number - 1}. Move what has that name "
            "away if it is none of stillroom's"
        )
    return number


def _snapshots_in(folder: Place) -> list[int]:
    named = (snapshot_number(place.name) for place in children(folder))
    return [number for number in named if number is not None]


def _is_empty(place: Place) -> bool:
    """Whether a cache can be made there; a folder is made where there is none."""
    if isinstance(place, Path):
        with store_errors(place):
            try:
                place.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise NotACacheError(
                    f"{place} is a file or below one, not a cache's folder; name another path"
                ) from error
    # A process that was killed while it made the cache may have left a temporary file.
    return all(p.name.startswith(TEMPORARY) for p in place.iterdir())


class Cache:
    """Teachers' answers in a folder, or below a URL such as s3://bucket/prefix.

    Reading needs no lock: what is sealed never changes. Writers take `writing()`.
    """

    def __init__(self, path: str | Place) -> None:
        """Open a cache that exists; NotACacheError or FormatError when it cannot be."""
        self.path = place_of(path)
        marker = self.path / "cache.json"
        if not marker.is_file():
            if not self.path.is_dir():
                raise NotACacheError(
                    f"no cache at {self.path}: there is no such folder. Make one by teaching into it: "
                    "Cache.at(path) opens or creates"
                )
            raise NotACacheError(
                f"{self.path} is not a cache: it has no cache.json. Name a cache's own folder, or a "
                "new one"
            )
        found = read_json(marker).get("format")
        if not isinstance(found, int) or found < 1:
            raise FormatError(f"{marker} states no format number; it was damaged or replaced")
        if found > FORMAT:
            raise FormatError(
                f"{self.path} is written in format {found}; this stillroom reads formats up to "
                f"{FORMAT}. Upgrade stillroom; nothing was changed"
            )

    @classmethod
    def at(cls, path: str | Place) -> Cache:
        """Open the cache at a path, or make an empty one where nothing is yet.

        A folder that holds something else is refused (NotACacheError).
        """
        place = place_of(path)
        if _is_empty(place):
            write_json(place / "cache.json", MARKER)
        return cls(place)

    def __repr__(self) -> str:
        """The path and how many snapshots there are."""
        return f"<Cache {self.path}: {len(self.snapshots())} snapshots>"

    def segments(self) -> list[Segment]:
        """Every sealed segment, oldest first."""
        found = self.folders()
        sealed = each_of(self.path, lambda p: (p / "segment.json").is_file(), found)
        chosen = [p for p, is_sealed in zip(found, sealed, strict=True) if is_sealed]
        return each_of(self.path, Segment, chosen)

    def drafts(self) -> list[Draft]:
        """Every unsealed segment, oldest first."""
        found = self.folders()
        sealed = each_of(self.path, lambda p: (p / "segment.json").is_file(), found)
        return [Draft(p) for p, is_sealed in zip(found, sealed, strict=True) if not is_sealed]

    def quarantined(self) -> list[Place]:
        """What repair moved out of the way: segments' folders, snapshots' JSON and runs, other files."""
        folders = [self.path / QUARANTINE / kind for kind in ("segments", "snapshots", "files")]
        return [p for f in folders for p in sorted(children(f), key=lambda p: p.name)]

    def folders(self) -> list[Place]:
        """Those of drafts and of segments: what has a plan."""
        found = [p for p in children(self.path / "segments") if is_segment(p.name)]
        there = each_of(self.path, lambda p: (p / "plan.json").is_file(), found)
        found = [p for p, is_there in zip(found, there, strict=True) if is_there]
        return sorted(found, key=lambda p: (_number(p), p.name))

    def draft(
        self,
        teacher: str,
        identity: Mapping[str, Any],
        asked: Mapping[str, Ask],
        keys: pa.Array,
        hashes: Hashes,
        shard_rows: int,
        why: str = "",
        number: int | None = None,
    ) -> Draft:
        """Begin a new segment; call it inside `writing()`.

        `number`: one that `next_segment` kept free, where several teachers begin together.
        """
        draft = Draft.create(
            self.path / "segments",
            self.next_segment() if number is None else number,
            teacher=teacher,
            identity=identity,
            asked=asked,
            keys=keys,
            hashes=hashes,
            shard_rows=shard_rows,
            why=why,
            after=max(self.snapshots(), default=None),
        )
        write_json(draft.path / "made" / "begun.json", {"at": int(time.time())})
        return draft

    def next_segment(self, without: Collection[Place] = ()) -> int:
        """The first number above those of all segments and drafts, but for these folders.

        Two teachers may begin at the same number: a segment's name also says whose it is.
        """
        aside = children(self.path / QUARANTINE / "segments")
        found = [p for p in [*self.folders(), *aside] if is_segment(p.name) and p not in without]
        return _next_number(map(_number, found), self.path)

    def snapshots(self) -> list[int]:
        """The numbers of all snapshots, oldest first."""
        return sorted(_snapshots_in(self.path / "snapshots"))

    def snapshot(self, number: int | None = None) -> Snapshot:
        """One snapshot; the newest without a number. NotACacheError when there is none."""
        known = self.snapshots()
        if not known:
            raise NotACacheError(f"{self.path} has no snapshot yet: nothing was taught to the end")
        if number is not None and number not in known:
            raise NotACacheError(
                f"{self.path} has no snapshot {number}; it has {known[0]} to {known[-1]}"
            )
        return Snapshot(self.path, known[-1] if number is None else number)

    def commit(self, served: Callable[[], Sequence[Served]], why: str) -> Snapshot:
        """Write the next snapshot; call it inside `writing()` or `maintaining()`.

        `served` is called again when another process committed in between, so that nothing which
        that snapshot serves is lost.
        """
        while True:
            known = self.snapshots()
            parent = known[-1] if known else None
            gone = _snapshots_in(self.path / QUARANTINE / "snapshots")
            number = _next_number([*known, *gone], self.path)
            # Before the snapshot, so that no snapshot lacks its time; what is in made/ is no content.
            made = self.path / "snapshots" / "made" / f"{number:06d}.json"
            write_json(made, {"at": int(time.time())})
            try:
                write_snapshot(self.path / "snapshots", number, served(), parent, why)
            except FileExistsError:
                continue
            return Snapshot(self.path, number)

    @contextmanager
    def writing(self, work: str, *, wait: float = 0.0) -> Iterator[Lease]:
        """Hold one teacher's part of the cache for writing: `work` is the digest of its identity.

        Different teachers write at the same time. BusyError after `wait` seconds says who holds it,
        where and since when. What a killed writer left unfinished is removed on entry.
        """
        name = f"teach-{work[:16]}"
        give_up = time.monotonic() + wait
        with held(self._leases / f"{name}.json", f"teaching {work[:12]}", wait=wait) as lease:
            # Both sides take their own lease first and look for the other's then, so that at least
            # one of two that come together sees the other.
            while others := [h for n, h in active_leases(self._leases) if n == _CARE]:
                if time.monotonic() >= give_up:
                    raise BusyError(
                        f"{self.path} is busy: {others[0]}. Wait for it to finish, or pass wait= "
                        "(seconds). Readers are not affected"
                    )
                time.sleep(_POLL_SECONDS)
            remove_leftovers(self.path)
            yield lease

    @contextmanager
    def maintaining(self, what: str, *, wait: float = 0.0) -> Iterator[Lease]:
        """Hold the whole cache, as who removes or replaces what is stored must: nobody else writes.

        BusyError after `wait` seconds says who does.
        """
        give_up = time.monotonic() + wait
        with held(self._leases / f"{_CARE}.json", what, wait=wait) as lease:
            while others := [h for n, h in active_leases(self._leases) if n != _CARE]:
                if time.monotonic() >= give_up:
                    raise BusyError(
                        f"{self.path} is busy: {'; '.join(map(str, others))}. Wait for it to finish, or "
                        "pass wait= (seconds). Readers are not affected"
                    )
                time.sleep(_POLL_SECONDS)
            remove_leftovers(self.path)
            yield lease

    @property
    def _leases(self) -> Place:
        return self.path / LEASES
