"""What there is, for people and for machines: caches and trained students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.storage.books import FOLDER as BOOKS
from stillroom.storage.cache import Cache
from stillroom.storage.derived import record_of, record_places
from stillroom.storage.errors import StillroomError
from stillroom.storage.files import children, read_json, size_of
from stillroom.storage.identity import differences
from stillroom.storage.place import Place
from stillroom.storage.segment import Segment
from stillroom.storage.snapshot import Snapshot


def describe_cache(path: str | Place) -> dict[str, Any]:
    """Snapshots, teachers with their identities, segments, as plain JSON; times in seconds since 1970."""
    cache = Cache(path)
    snapshots = [cache.snapshot(number) for number in cache.snapshots()]
    segments = cache.segments()
    books = [size for b in children(cache.path / BOOKS) if (size := size_of(b)) is not None]
    return {
        "path": str(path),
        "bytes": sum(s.bytes for s in segments) + sum(books),
        "books": {"count": len(books), "bytes": sum(books)},
        "snapshots": [
            {
                "number": s.number,
                "rows": s.rows,
                "parent": s.parent,
                "why": s.why,
                "at": _made_at(cache.path / "snapshots" / "made" / f"{s.number:06d}.json"),
                "signals": {n: signal.to_json() for n, signal in s.signals.items()},
            }
            for s in snapshots
        ],
        "teachers": _teachers(segments, snapshots),
        "derived": _derived(cache),
        "segments": [
            {
                "name": s.path.name,
                "teacher": s.teacher,
                "digest": s.digest,
                "identity": s.identity,
                "rows": int(s.served().sum()),
                "bytes": s.bytes,
                "why": s.why,
                "at": _made_at(s.path / "made" / "begun.json"),
                "signals": {
                    n: {**signal.to_json(), "bytes": s.signal_bytes[n], "error": s.errors[n]}
                    for n, signal in s.signals.items()
                },
            }
            for s in segments
        ],
        "unfinished": [
            {
                "name": d.path.name,
                "rows": d.rows,
                "shards_finished": sum(d.receipt(s.index) is not None for s in d.shards()),
                "shards": len(d.shards()),
            }
            for d in cache.drafts()
        ],
    }


def _teachers(segments: Sequence[Segment], snapshots: Sequence[Snapshot]) -> list[dict[str, Any]]:
    """Every teacher with its identities, oldest first, and how each differs from the one before."""
    found: dict[str, dict[str, list[Segment]]] = {}
    for segment in segments:
        found.setdefault(segment.teacher, {}).setdefault(segment.digest, []).append(segment)
    teachers = []
    for name, identities in found.items():
        described: list[dict[str, Any]] = []
        for digest, mine in identities.items():
            serves = [s.number for s in snapshots if any(o.digest == digest for o in s.sources)]
            times = [t for s in mine if (t := _made_at(s.path / "made" / "begun.json")) is not None]
            before = described[-1]["identity"] if described else None
            described.append(
                {
                    "digest": digest,
                    "segments": [s.path.name for s in mine],
                    "rows": sum(int(s.served().sum()) for s in mine),
                    "bytes": sum(s.bytes for s in mine),
                    "first": min(times, default=None),
                    "last": max(times, default=None),
                    "snapshots": serves,
                    "differs": [] if before is None else differences(before, mine[0].identity),
                    "identity": mine[0].identity,
                }
            )
        teachers.append({"name": name, "identities": described})
    return teachers


def _derived(cache: Cache) -> list[dict[str, Any]]:
    """Every result that was computed over the whole cache, oldest first."""
    found: list[dict[str, Any]] = []
    for place in record_places(cache.path):
        try:
            record = record_of(place, cache.path)
            arrays = {
                n: f"{a.dtype}[{','.join(map(str, a.shape))}]" for n, a in record.load().items()
            }
        except StillroomError as error:
            found.append({"record": place.name, "damaged": str(error)})
            continue
        found.append(
            {
                "record": place.name,
                "name": record.name,
                "digest": record.digest,
                "snapshot": record.snapshot,
                "rows": record.reads["rows"]["count"],
                "why": record.why,
                "arrays": arrays,
                "book": record.book,
                "identity": dict(record.identity),
            }
        )
    return found


def _made_at(place: Place) -> int | None:
    """When something was made, where that is known: it is no part of the cache's content."""
    try:
        at = read_json(place).get("at")
    except StillroomError:
        return None
    return at if isinstance(at, int) else None
