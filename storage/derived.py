"""What was computed over a whole cache: a few named arrays, and a record of what they follow from.

The arrays are a book (`books/<sha-256>.arrow`); the record `derived/NNNNNN-<name>-<digest>.json` is
written after it and makes the result exist. Neither dask nor a teacher is needed to read one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.books import checked_digest, read_book, write_book
from stillroom.storage.cache import Cache
from stillroom.storage.contents import Contents, key_order
from stillroom.storage.errors import (
    GARBLED,
    CorruptShardError,
    FormatError,
    SignalError,
    StaleError,
    UnknownRowError,
    UnknownSignalError,
    nearest,
)
from stillroom.storage.files import (
    children,
    fits_checksum,
    parse_json,
    read_whole,
    with_checksum,
    write_json,
)
from stillroom.storage.folder import FORMAT
from stillroom.storage.identity import canonical, differences, digest
from stillroom.storage.keys import as_keys
from stillroom.storage.pairs import pair_keys, split_keys
from stillroom.storage.place import Place
from stillroom.storage.signal import checked_name
from stillroom.storage.snapshot import Snapshot
from stillroom.storage.table import read_table, table_bytes, write_table

FOLDER = "derived"
_RECORD = re.compile(r"([0-9]{6,9})-([A-Za-z0-9][A-Za-z0-9_-]{0,63})-([0-9a-f]{12})\.json")
_KEYS = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}\.arrow")
_NUMBERS = 10**9


@dataclass(frozen=True, eq=False)
class Derived:
    """Arrays that were computed over a cache, and what they follow from."""

    name: str
    arrays: Mapping[str, NDArray[Any]]
    """Those of a folder are memory-mapped, and read-only."""
    identity: Mapping[str, Any]
    """The function, its settings, and what it read: rows, signals with their teachers, columns."""
    digest: str
    """Of the identity."""
    record: str
    """Name of the record's file in `derived/`."""
    snapshot: int
    """Over which it was first computed."""
    why: str
    """In words, why it was computed."""
    stale: tuple[str, ...] = ()
    """Each field in which what it was derived from differs from what was asked about."""
    unchecked: tuple[str, ...] = ()
    """Columns of the data set that it read and nobody compared: no data set was given."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One array; UnknownSignalError when there is none of that name."""
        if name not in self.arrays:
            raise UnknownSignalError(
                f"derived result {self.name!r} has no array {name!r}; {nearest(name, self.arrays)}"
            )
        return self.arrays[name]


@dataclass(frozen=True)
class DerivedRecord:
    """A stored record, whose checksum fitted."""

    path: Place
    number: int
    name: str
    digest: str
    identity: Mapping[str, Any]
    book: str
    scalars: tuple[str, ...]
    """Arrays that are single numbers: a book has none without an axis."""
    keys_file: str | None
    """Where the chosen rows are named; None: all rows of the snapshot."""
    keys_crc32c: str | None
    snapshot: int
    why: str
    _cache: Place = field(repr=False)

    @property
    def reads(self) -> Mapping[str, Any]:
        """What it was computed from: rows, signals, columns."""
        found: Mapping[str, Any] = self.identity["reads"]
        return found

    def keys(self) -> pa.Array | None:
        """The chosen rows; None for all. CorruptShardError when their file is damaged."""
        if self.keys_file is None:
            return None
        batch = read_table(self._cache / FOLDER / self.keys_file, self.keys_crc32c)
        if batch.schema.names != ["key", "view"]:
            raise CorruptShardError(f"{self.keys_file} does not name rows")
        views = batch.column("view").to_numpy()
        plain = as_keys(batch.column("key"))
        return pair_keys(plain, views) if views.any() else plain

    def stale_in(self, snapshot: Snapshot, columns: Mapping[str, Any] | None = None) -> list[str]:
        """Each field in which a snapshot's content differs from what this was computed from.

        `columns`: what those of the data set are now, as in the identity; None: they are not compared.
        """
        now: dict[str, Any] = {}
        keys = self.keys()
        try:
            positions = None if keys is None else np.sort(snapshot.positions(keys))
            contents = Contents(snapshot, positions)
            now["rows"] = contents.rows()
            signals = self.reads["signals"]
            now["signals"] = {role: _signals(contents, said) for role, said in signals.items()}
        except (UnknownSignalError, UnknownRowError) as error:
            return [str(error)]
        now["columns"] = self.reads["columns"] if columns is None else dict(columns)
        return differences(dict(self.reads), now)

    def load(self) -> dict[str, NDArray[Any]]:
        """Its arrays by name; CorruptShardError when their book is missing or damaged."""
        stored = read_book(self._cache, self.book).arrays
        return {n: a.reshape(()) if n in self.scalars else a for n, a in stored.items()}


def _signals(contents: Contents, said: Any) -> Any:
    """What signals of these names are now: one, or a list of several of one role."""
    if isinstance(said, list):
        return [contents.signal(str(one["name"])) for one in said]
    return contents.signal(str(said["name"]))


def record_of(place: Place, cache: Place) -> DerivedRecord:
    """Read a record; CorruptShardError when its checksum does not fit, FormatError when it is none."""
    content = read_whole(place)
    value = parse_json(content, place)
    match = _RECORD.fullmatch(place.name)
    if match is None or not fits_checksum(value, content):
        raise CorruptShardError(f"{place}: its own checksum does not fit: bytes were changed")
    try:
        keys = value["keys"]
        if keys is not None and not _KEYS.fullmatch(keys["file"]):
            raise ValueError(f"keys {keys}")
        record = DerivedRecord(
            *(place, int(match[1]), str(value["name"]), str(value["digest"])),
            dict(value["identity"]),
            checked_digest(value["book"]),
            tuple(str(n) for n in value["scalars"]),
            None if keys is None else str(keys["file"]),
            None if keys is None else str(keys["crc32c"]),
            *(int(value["snapshot"]), str(value["why"]), cache),
        )
        if (match[2], match[3]) != (record.name, record.digest[:12]) or (
            digest(record.identity) != record.digest
        ):
            raise ValueError("name or digest: they are not those of its file and identity")
        _ = record.reads["signals"], record.reads["columns"], record.reads["rows"]
    except GARBLED as error:
        raise FormatError(f"{place} is no record of format {FORMAT}: {error}") from error
    return record


def record_places(cache: Place) -> list[Place]:
    """Every record of a cache, oldest first."""
    found = [p for p in children(cache / FOLDER) if _RECORD.fullmatch(p.name)]
    return sorted(found, key=lambda p: (int(p.name.partition("-")[0]), p.name))


def is_keys(name: str) -> bool:
    """Whether a file of that name in `derived` names the rows of a record."""
    return _KEYS.fullmatch(name) is not None


def records(cache: Cache, name: str | None = None) -> list[DerivedRecord]:
    """The readable records of a name, or all, oldest first.

    CorruptShardError or FormatError for one that is damaged.
    """
    places = record_places(cache.path)
    matched = [(p, _RECORD.fullmatch(p.name)) for p in places]
    chosen = [p for p, m in matched if m is not None and name in (None, m[2])]
    return [record_of(place, cache.path) for place in chosen]


def write_derived(
    cache: Cache,
    name: str,
    identity: Mapping[str, Any],
    arrays: Mapping[str, Any],
    *,
    snapshot: int,
    why: str,
    keys: pa.Array | None = None,
) -> DerivedRecord:
    """Store arrays and their record, durable when this returns; call it inside `cache.writing`.

    SignalError for arrays that a book cannot hold. The book comes first, so that a kill leaves no
    record without its arrays.
    """
    checked_name(name, "derived result")
    given = {n: np.asarray(a) for n, a in arrays.items()}
    if not given:
        raise SignalError(f"derived result {name!r} has no arrays; return at least one by name")
    try:
        book = write_book(cache.path, {n: np.atleast_1d(a) for n, a in given.items()})
    except SignalError as error:
        raise SignalError(f"derived result {name!r}: {error}") from error
    whole = digest(dict(identity))
    described: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "digest": whole,
        "identity": dict(identity),
        "book": book,
        "scalars": sorted(n for n, a in given.items() if a.ndim == 0),
        "keys": None if keys is None else _write_keys(cache.path, whole, keys),
        "snapshot": snapshot,
        "why": why,
    }
    while True:
        known = [int(p.name.partition("-")[0]) for p in record_places(cache.path)]
        number = max(known, default=0) + 1
        if number >= _NUMBERS:
            raise FormatError(f"{cache.path / FOLDER} has used up its numbers")
        place = cache.path / FOLDER / f"{number:06d}-{name}-{whole[:12]}.json"
        try:
            write_json(place, with_checksum(described), new=True)
        except FileExistsError:
            continue
        return record_of(place, cache.path)


def _write_keys(cache: Place, whole: str, keys: pa.Array) -> dict[str, str]:
    ordered = keys.take(pa.array(key_order(keys)))
    plain, views = split_keys(ordered)
    batch = pa.record_batch([plain, pa.array(views)], names=["key", "view"])

    _, checksum = table_bytes(batch)
    name = f"{whole[:12]}-{checksum}.arrow"
    write_table(cache / FOLDER / name, batch)
    return {"file": name, "crc32c": checksum}


def derived(
    cache: Cache,
    name: str,
    *,
    snapshot: Snapshot | None = None,
    columns: Mapping[str, Any] | None = None,
    stale: bool = False,
) -> Derived:
    """The newest stored result of that name which follows from a snapshot as it is (the newest).

    Of several of one name, those count that have the function, the settings and the choice of rows of
    the last one. UnknownSignalError when there is none. StaleError when all of them were derived from
    other rows, teachers or columns: it names the fields that differ. `stale=True` gives the newest
    one then, with those fields in `.stale`. `columns`: digests of the data set's columns, as
    `stillroom.stages.derived` passes them; without, what was read of them is in `.unchecked`.
    """
    known = records(cache, name)
    if not known:
        there = {record.name for record in records(cache)}
        raise UnknownSignalError(
            f"{cache.path} has no derived result {name!r}, which derive() would make; "
            f"{nearest(name, there)}"
        )
    snapshot = cache.snapshot() if snapshot is None else snapshot
    first: list[str] = []
    for record in reversed(like_newest(known)):
        differ = record.stale_in(snapshot, columns)
        if not differ:
            return loaded(record, () if columns is not None else tuple(record.reads["columns"]))
        first = first or differ
    if not stale:
        raise StaleError(
            f"derived result {name!r} of {cache.path} was derived from something else than snapshot "
            f"{snapshot.number}: {'; '.join(first[:3])}. Run derive() again, or take it as it is: "
            "stale=True"
        )
    return loaded(known[-1], tuple(known[-1].reads["columns"]) if columns is None else (), first)


def like_newest(known: list[DerivedRecord]) -> list[DerivedRecord]:
    """Those records of one name that are of the newest one's function, settings and choice of rows.

    What was once derived from fewer rows, or otherwise, must not stand in for what is stale now.
    """

    def kind(record: DerivedRecord) -> tuple[str, Any]:
        chosen = None if record.keys_file is None else record.reads["rows"]
        return canonical(record.identity.get("function")), chosen

    return [record for record in known if kind(record) == kind(known[-1])]


def loaded(record: DerivedRecord, unchecked: tuple[str, ...] = (), stale: Any = ()) -> Derived:
    """A record with its arrays."""
    return Derived(
        *(record.name, record.load(), record.identity, record.digest, record.path.name),
        *(record.snapshot, record.why, tuple(stale), unchecked),
    )


def unneeded(cache: Cache, kept: list[Snapshot]) -> list[DerivedRecord]:
    """Records of which a newer one has the name, and that follow from no snapshot that is kept.

    CorruptShardError or FormatError when a record cannot be read: then it is unknown.
    """
    every = records(cache)
    newest = {record.name: record.number for record in every}
    return [
        record
        for record in every
        if record.number < newest[record.name] and all(record.stale_in(s) for s in kept)
    ]
