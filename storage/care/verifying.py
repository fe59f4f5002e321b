"""Verify: every stored byte against what says how it must be; nothing is written.

Chunks and records are compared with their receipts, receipts and rows with the seal, the seal with
the receipts, zarr.json with what zarr-python makes of the signals, books with their names, records of
derived results and snapshots with their own checksums, snapshots with the segments that they read.
`made/`, `quarantine/`, locks and leases are no content of the cache and are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.books import FOLDER as BOOKS
from stillroom.storage.cache import MARKER, QUARANTINE
from stillroom.storage.care.book_checks import BookChecks
from stillroom.storage.care.derived_checks import DerivedChecks
from stillroom.storage.care.problems import EXTRA, Problem, Verified, damage
from stillroom.storage.care.segment_checks import SegmentChecks
from stillroom.storage.derived import FOLDER as DERIVED
from stillroom.storage.errors import GARBLED, NotACacheError, StillroomError
from stillroom.storage.files import (
    TEMPORARY,
    children,
    fits_checksum,
    json_bytes,
    parse_json,
    read_whole,
    size_of,
)
from stillroom.storage.folder import READABLE
from stillroom.storage.place import Place, place_of, relative
from stillroom.storage.segment import Segment
from stillroom.storage.snapshot import Snapshot, is_runs, is_segment, snapshot_number

_ASIDE = {QUARANTINE, "leases", "locks", "made"}
"""Folders that are no content of the cache."""
_NONE = np.zeros(0, bool)


def verify(path: str | Place, *, threads: int = 8) -> Verified:
    """Read everything in the cache at a path and say what is not as it was written.

    Files are read in pieces of a few MiB by `threads` threads, so memory stays bounded. NotACacheError
    when there is no cache. Writers may go on: what they have not finished is no problem, but a
    segment that is pruned meanwhile is reported.
    """
    cache = place_of(path)
    if not (cache / "cache.json").exists() and not (cache / "segments").is_dir():
        raise NotACacheError(f"{cache} is not a cache: it has no cache.json and no segments")
    return _Verification(cache, threads).run()


def _name(place: Place) -> str:
    return place.name


@dataclass(frozen=True)
class _Sealed:
    """A sealed segment as snapshots see it."""

    segment: Segment | None
    """None when it cannot be opened: its own problems are named."""
    served: NDArray[np.bool_]


class _Verification:
    """One run of verify: what is known so far."""

    def __init__(self, cache: Place, threads: int) -> None:
        self._cache, self._threads = cache, threads
        self._problems: list[Problem] = []
        self._leftovers: list[str] = []
        self._files = self._bytes = 0

    def run(self) -> Verified:
        """Everything: small files at once, shards on threads."""
        self._marker()
        folders = list(self._folders())
        known = self._strays()
        checked = [SegmentChecks(self._cache, folder) for folder in folders]
        for segment in checked:
            self._problems += segment.small()
            self._leftovers += segment.leftovers
        derived = DerivedChecks(self._cache)
        self._problems += derived.problems()
        self._leftovers += derived.leftovers
        needed = {s.folder.name: s.books() for s in checked}
        books = BookChecks(self._cache, {**needed, **derived.books})
        self._problems += books.small()
        self._leftovers += books.leftovers
        tasks = [task for segment in checked for task in segment.tasks()]
        tasks += books.tasks()
        with ThreadPoolExecutor(self._threads) as pool:
            for found in pool.map(lambda task: task(), tasks):
                self._problems += found
        opened = [s.segment for s in checked if s.segment is not None]
        self._problems += books.fitting(x for s in opened for x in s.signals.values())
        sealed = {
            s.folder.name: _Sealed(s.segment, s.segment.served() if s.segment else _NONE)
            for s in checked
            if s.sealed
        }
        snapshots = sorted((p for p in known if p.name.endswith(".json")), key=_name)
        for place in snapshots:
            self._problems += self._snapshot(place, sealed)
        return Verified(
            problems=tuple(dict.fromkeys(self._problems)),
            leftovers=tuple(sorted(self._leftovers)),
            segments=len(sealed),
            drafts=len(checked) - len(sealed),
            snapshots=len(snapshots),
            unfinished=sum(s.unfinished for s in checked),
            files=self._files + books.files + derived.files + sum(s.files for s in checked),
            bytes=self._bytes + books.bytes + derived.bytes + sum(s.bytes for s in checked),
        )

    def _named(self, place: Place, what: str, segment: str | None = None) -> Problem:
        return Problem(segment, None, None, relative(place, self._cache), what)

    def _read(self, place: Place) -> None:
        self._files += 1
        self._bytes += size_of(place) or 0

    def _marker(self) -> None:
        place = self._cache / "cache.json"
        if not place.is_file():
            self._problems.append(self._named(place, "is missing"))
            return
        self._read(place)
        if place.read_bytes() not in [json_bytes({**MARKER, "format": n}) for n in READABLE]:
            self._problems.append(self._named(place, f"does not say {MARKER}"))

    def _folders(self) -> Iterator[Place]:
        """Segments' folders, sealed or not; what else lies beside them is named."""
        used = self._used()
        for place in sorted(children(self._cache / "segments"), key=_name):
            if place.name.startswith(TEMPORARY):
                self._leftovers.append(relative(place, self._cache))
            elif not is_segment(place.name) or not place.is_dir():
                self._problems.append(self._named(place, EXTRA))
            elif (place / "plan.json").is_file() or place.name in used:
                yield place
            else:
                self._leftovers.append(relative(place, self._cache))  # begun or removed half-way

    def _used(self) -> set[str]:
        """Names of the segments that the snapshots read."""
        names = set[str]()
        for place in children(self._cache / "snapshots"):
            if (number := snapshot_number(place.name)) is not None:
                with suppress(StillroomError):
                    names |= Snapshot(self._cache, number).segment_names()
        return names

    def _strays(self) -> set[Place]:
        """Files at the top and among the snapshots that nothing names; returns the snapshots' own."""
        for place in sorted(children(self._cache), key=_name):
            if place.name.startswith(TEMPORARY):
                self._leftovers.append(place.name)
            elif not (
                place.name in {*_ASIDE, BOOKS, DERIVED, "segments", "snapshots", "cache.json"}
                or place.name.endswith((".lock", ".lease"))
            ):
                self._problems.append(self._named(place, EXTRA))
        folder, own = self._cache / "snapshots", set[Place]()
        present = [p for p in sorted(children(folder), key=_name) if p.name not in _ASIDE]
        for place in present:
            if (number := snapshot_number(place.name)) is not None:
                own |= {place, *self._runs_of(place, number)}
        for place in present:
            if place.name.startswith(TEMPORARY) or (
                place not in own and is_runs(place.name)
            ):  # runs come before the JSON that names them: of a commit that was killed
                self._leftovers.append(relative(place, self._cache))
            elif place not in own:
                self._problems.append(self._named(place, EXTRA))
        return own

    def _runs_of(self, place: Place, number: int) -> tuple[Place, ...]:
        try:
            return Snapshot(self._cache, number).files()[1:]
        except StillroomError:
            # Of a snapshot that is named as damaged itself.
            stem = place.name.removesuffix(".json")
            return tuple(p for p in children(place.parent) if p.name.startswith(f"{stem}-"))

    def _snapshot(self, place: Place, sealed: dict[str, _Sealed]) -> Iterator[Problem]:
        self._read(place)
        try:
            content = read_whole(place)
            value = parse_json(content, place)
            fits = fits_checksum(value, content)
            if value.get("format") == 1 and "checksum" not in value:
                fits = json_bytes(value) == content
            if not fits:
                yield self._named(place, "its own checksum does not fit: bytes were changed")
                return
            # By its name: the number that it states may be anything.
            number = snapshot_number(place.name)
            if number is None or value["number"] != number:
                yield self._named(place, f"calls itself snapshot {str(value['number'])[:20]}")
                return
            snapshot = Snapshot(self._cache, number)
        except (StillroomError, OSError, *GARBLED) as error:
            yield self._named(place, damage(error))
            return
        runs = snapshot.files()[1]
        try:
            stretches = snapshot.stretches()
            self._read(runs)
        except (StillroomError, OSError) as error:
            yield self._named(runs, damage(error))
            return
        for source, _, rows, name, slot in stretches:
            problem = self._stretch(snapshot, source, sealed, name, slot, slot + rows)
            if problem:
                missing = name not in sealed
                where = self._cache / "segments" / name / "segment.json" if missing else runs
                yield self._named(where, problem, name if missing else None)
        if uncovered := snapshot.rows - _covered([(at, rows) for _, at, rows, *_ in stretches]):
            yield self._named(runs, f"leaves {uncovered:,} of {snapshot.rows:,} rows to no slot")

    def _stretch(
        self,
        snapshot: Snapshot,
        source: int,
        sealed: dict[str, _Sealed],
        name: str,
        slot: int,
        stop: int,
    ) -> str:
        """What is wrong with a run, in words; empty when its slots are served."""
        if name not in sealed:
            return f"is missing, though snapshot {snapshot.number} reads from it"
        segment, served = sealed[name].segment, sealed[name].served
        if segment is None:
            return ""
        if not 0 <= source < len(snapshot.sources):
            return f"names source {source}, which snapshot {snapshot.number} lacks"
        if stop > segment.rows or not served[slot:stop].all():
            return f"names slots {slot:,} to {stop:,} of {name}, which it does not serve"
        for known, signal in snapshot.sources[source].signals.items():
            stored = segment.signals.get(known)
            if stored is None or signal.differs(stored):
                return f"reads signal {known!r} from {name}, which holds another or none"
        return ""


def _covered(runs: Sequence[tuple[int, int]]) -> int:
    """How many positions (start, rows) runs hold; nothing is taken on their word for its size."""
    count = end = 0
    for start, rows in sorted(runs):
        count += max(start + rows - max(start, end), 0)
        end = max(end, start + rows)
    return count
