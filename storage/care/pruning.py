"""Prune: drop snapshots that a policy does not keep, and what no kept snapshot uses.

A snapshot goes first, its JSON before its runs; a segment's plan before all else. So the
cache is valid after every step, and what a kill leaves is removed by the next prune or writer. The
newest snapshot always stays, so no number is ever given twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from stillroom.storage.books import book_place, books
from stillroom.storage.cache import Cache
from stillroom.storage.derived import FOLDER as DERIVED
from stillroom.storage.derived import is_keys, records, unneeded
from stillroom.storage.errors import GARBLED, StillroomError
from stillroom.storage.files import TEMPORARY, children, read_json, size_of
from stillroom.storage.folder import Folder
from stillroom.storage.place import Place, files_below, relative
from stillroom.storage.removing import remove, remove_tree
from stillroom.storage.snapshot import Snapshot, is_runs, is_segment

_DAY_S = 86400


@dataclass(frozen=True)
class Pruned:
    """What prune removed, or would remove."""

    snapshots: tuple[int, ...]
    segments: tuple[str, ...]
    drafts: tuple[str, ...]
    leftovers: tuple[str, ...]
    """Temporary files of killed writers, and runs of snapshots that were never finished."""
    quarantined: tuple[str, ...]
    books: tuple[str, ...]
    """Digests of books that no segment and no draft needs which stays."""
    bytes: int
    """Of all files named here, with what belongs to them in `made/`."""
    derived: tuple[str, ...] = ()
    """Records of derived results (paths) that follow from no kept snapshot and have a newer one of
    their name, with the files that name their rows."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def prune(
    cache: Cache,
    *,
    keep_last: int | None = None,
    keep_days: float | None = None,
    draft_days: float = 7,
    quarantine: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Drop what nobody needs any more; a dry run says exactly what the same call would then remove.

    A snapshot stays when it is among the `keep_last` newest or younger than `keep_days`; without
    either, all stay. One whose age is unknown counts as young. Segments that no kept snapshot uses
    go, and with them derived results that follow from no kept snapshot, where there is a newer one of
    the name. Drafts, and segments newer than all that are used (sealed, but not yet in a snapshot), are
    work that was cut off: they go when they were begun more than `draft_days` ago; 0 drops them all.
    `quarantine` also removes what repair put aside.

    CorruptShardError or FormatError when a kept snapshot cannot be read: then nothing is removed,
    because what it uses is unknown. BusyError while somebody writes.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(
            f"keep_last must be at least 1, found {keep_last}; the newest always stays"
        )
    leftovers = _leftovers(cache)
    policy = _Policy(keep_last, keep_days, draft_days, quarantine, time.time())
    if dry_run:
        return policy.choose(cache, leftovers)
    size = sum(_bytes(cache.path / name) for name in leftovers)
    with cache.maintaining("pruning"):  # which removes the temporary files
        chosen = policy.choose(cache, leftovers, size)
        _remove(cache, chosen)
    return chosen


@dataclass(frozen=True)
class _Policy:
    keep_last: int | None
    keep_days: float | None
    draft_days: float
    quarantine: bool
    now: float

    def choose(self, cache: Cache, leftovers: tuple[str, ...], size: int | None = None) -> Pruned:
        """What would be removed now; nothing is written. `size`: of leftovers that are gone already."""
        known = cache.snapshots()
        dropped = tuple(n for n in known[:-1] if not self._kept(cache, n, known))
        used, newest = _used(cache, [n for n in known if n not in dropped])
        before, _ = _used(cache, dropped, strict=False)
        segments, drafts = [], []
        # By name: what nobody needs may be damaged.
        for folder in cache.folders():
            name = folder.name
            if name in used:
                continue
            if not (folder / "segment.json").is_file() and name not in before:
                if self._old(folder):
                    drafts.append(name)
            elif _number(name) <= newest or name in before or self._old(folder):
                segments.append(name)
        put_aside = [relative(p, cache.path) for p in cache.quarantined()]
        quarantined = tuple(put_aside) if self.quarantine else ()
        folders = [cache.path / "segments" / name for name in [*segments, *drafts]]
        folders += [cache.path / name for name in quarantined]
        if size is None:
            folders += [cache.path / name for name in leftovers]
        folders += [file for n in dropped for file in _snapshot_files(cache, n)]
        derived, of_records = _derived(cache, [n for n in known if n not in dropped])
        folders += [cache.path / name for name in derived]
        needed = _needed_books(cache, {*segments, *drafts}, aside=not self.quarantine)
        needed |= of_records
        unused = tuple(digest for digest in books(cache.path) if digest not in needed)
        folders += [book_place(cache.path, digest) for digest in unused]
        total = sum(_bytes(place) for place in folders) + (size or 0)
        names = tuple(segments), tuple(drafts), leftovers, quarantined, unused
        return Pruned(dropped, *names, total, derived)

    def _kept(self, cache: Cache, number: int, known: list[int]) -> bool:
        if self.keep_last is None and self.keep_days is None:
            return True
        if self.keep_last is not None and number in known[-self.keep_last :]:
            return True
        if self.keep_days is None:
            return False
        at = _time(cache.path / "snapshots" / "made" / f"{number:06d}.json")
        return at is None or self.now - at < self.keep_days * _DAY_S

    def _old(self, folder: Place) -> bool:
        if self.draft_days <= 0:
            return True
        at = _time(folder / "made" / "begun.json")
        return at is not None and self.now - at >= self.draft_days * _DAY_S


def _time(place: Place) -> float | None:
    """When something was made, in unix seconds; None where that was not noted or cannot be read."""
    try:
        return float(read_json(place)["at"])
    except (StillroomError, *GARBLED):
        return None


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _used(cache: Cache, numbers: Iterable[int], strict: bool = True) -> tuple[set[str], int]:
    """The segments that snapshots read, and the largest number among them."""
    names: set[str] = set()
    for number in numbers:
        try:
            names |= Snapshot(cache.path, number).segment_names()
        except StillroomError:
            if strict:
                raise
    return names, max(map(_number, names), default=0)


def _needed_books(cache: Cache, gone: set[str], aside: bool) -> set[str]:
    """The books of segments and drafts without those that go; `aside`: and of those in quarantine.

    All of them when a plan that stays cannot be read.
    """
    try:
        folders = [Folder(place) for place in cache.folders() if place.name not in gone]
    except StillroomError:
        return set(books(cache.path))
    needed = {ask.book for folder in folders for ask in folder.asked.values() if ask.book}
    for place in cache.quarantined() if aside else ():
        with suppress(StillroomError, OSError):  # what is put aside is mostly damaged
            needed |= {ask.book for ask in Folder(place).asked.values() if ask.book}
    return needed


def _derived(cache: Cache, kept: list[int]) -> tuple[tuple[str, ...], set[str]]:
    """Paths of derived results that go, the records first, and the books of those that stay.

    Nothing goes, and every book stays, when a record cannot be read.
    """
    try:
        gone = unneeded(cache, [Snapshot(cache.path, number) for number in kept])
        names = {record.path.name for record in gone}
        stay = [record for record in records(cache) if record.path.name not in names]
    except StillroomError:
        return (), set(books(cache.path))
    used = {record.keys_file for record in stay}
    files = [p for p in children(cache.path / DERIVED) if is_keys(p.name) and p.name not in used]
    places = [*(record.path for record in gone), *sorted(files, key=lambda p: p.name)]
    return tuple(relative(place, cache.path) for place in places), {r.book for r in stay}


def _snapshot_files(cache: Cache, number: int) -> list[Place]:
    """In the order in which they go: the JSON first, then nobody sees the rest."""
    folder = cache.path / "snapshots"
    try:
        files = [*Snapshot(cache.path, number).files()]
    except StillroomError:
        files = [folder / f"{number:06d}.json", folder / f"{number:06d}.arrow"]
    return [*files, folder / "made" / f"{number:06d}.json"]


def _leftovers(cache: Cache) -> tuple[str, ...]:
    """Temporary files and folders, and runs in `snapshots` that no JSON names."""
    found = set[str]()
    for place in files_below(cache.path):
        parts = relative(place, cache.path).split("/")
        at = next((i for i, part in enumerate(parts) if part.startswith(TEMPORARY)), None)
        if at is not None:
            found.add("/".join(parts[: at + 1]))
    named = {file for n in cache.snapshots() for file in _snapshot_files(cache, n)}
    folder = cache.path / "snapshots"
    for place in children(folder):
        if is_runs(place.name) and place not in named:
            found.add(relative(place, cache.path))
    used, _ = _used(cache, cache.snapshots(), strict=False)
    for place in children(cache.path / "segments"):
        # Of a draft whose making, or of a segment whose removal, was cut off.
        begun = is_segment(place.name) and place.is_dir() and not (place / "plan.json").exists()
        if begun and place.name not in used:
            found.add(relative(place, cache.path))
    return tuple(sorted(found))


def _bytes(place: Place) -> int:
    if place.is_dir():
        return sum(size_of(file) or 0 for file in files_below(place))
    return size_of(place) or 0


def _remove(cache: Cache, chosen: Pruned) -> None:
    for number in chosen.snapshots:
        for file in _snapshot_files(cache, number):
            remove(file)
    for name in [*chosen.segments, *chosen.drafts]:
        remove_tree(cache.path / "segments" / name, first=["plan.json"])
    for name in chosen.derived:
        remove(cache.path / name)
    for digest in chosen.books:
        remove(book_place(cache.path, digest))
    for name in [*chosen.quarantined, *chosen.leftovers]:
        place = cache.path / name
        if place.is_dir():
            remove_tree(place)
        else:
            remove(place)
