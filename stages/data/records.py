"""Rows that lie in records of their own (files, members of tars, items), read one by one on threads.

What is broken is never passed over in silence: it is an error that names the row, or the row leaves
the data set beforehand and `skipped` says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import (
    THREADS,
    hash_one,
    hash_whole,
    join_hashes,
    kind_of_one,
)
from stillroom.stages.data.rows import Batch, Column
from stillroom.storage.errors import GARBLED, RowsError, StillroomError, listed, nearest
from stillroom.storage.files import read_json, write_json
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import digest

Int64s = NDArray[np.int64]
Broken = Literal["stop", "skip"]
"""An error that names the row, or the row leaves the data set and `skipped` names it."""
Key = str | int
Result = TypeVar("Result")
Spread = Callable[[Callable[[Int64s], Result], Sequence[Int64s]], Iterable[Result]]
"""Calls a function on each block of places, in their order, perhaps elsewhere."""
_BLOCK = 64
"""Records that are hashed or looked at as one piece of work."""


class Source(Protocol):
    """Records by place."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""

    def load(self, place: int, columns: Sequence[str], *, raw: bool) -> dict[str, Any]:
        """The record's values: arrays or numbers, texts, bytes. `raw`: as they are hashed.

        RowsError says what is wrong, without naming the record.
        """

    def check(self, place: int) -> dict[str, Any]:
        """As `load` of all columns, and everything that a reader of them would do."""

    def hashed_as(self, column: str) -> str:
        """The name under which a column's raw values are hashed: its own, or with what is done to
        them."""

    def said(self, place: int) -> str:
        """Where the record lies, for messages."""

    def stamp(self) -> Any:
        """JSON that is equal only for equal records, without reading them; None: there is none."""


def on_threads(work: Callable[[Int64s], Result], blocks: Sequence[Int64s]) -> Iterable[Result]:
    """Each block's result, in order."""
    if len(blocks) < 2:
        yield from map(work, blocks)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(work, blocks)


class Records:
    """What containers of records share: rows read in any order, hashed, and left out where broken."""

    def __init__(
        self,
        keys: pa.Array,
        source: Source,
        *,
        threads: int = THREADS,
        spread: Spread[Any] = on_threads,
    ) -> None:
        """`keys`: of all records, unique, in the order of their places."""
        self.keys, self.source, self.skipped = keys, source, dict[Key, str]()
        self._places: Int64s = np.arange(len(keys))
        self._threads, self._spread = threads, spread
        self._kinds: dict[str, tuple[str, int]] = {}
        self._known: dict[tuple[str, ...], Hashes] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made again."""
        return {**self.__dict__, "_kinds": {}, "_known": {}}

    def __len__(self) -> int:
        """The number of rows that are left."""
        return len(self.keys)

    def settle(
        self,
        broken: Broken,
        found: Mapping[int, str] | None = None,
        lost: Mapping[Key, str] | None = None,
        remember: str | Path | None = None,
    ) -> None:
        """Stop for records that are known to be broken, or look for all of them and leave them out.

        `found`: reasons by place, `lost`: by a name, of what has no place. `remember`: a JSON file
        that keeps what was found until the records change, so that they are not looked at again.
        """
        if broken not in get_args(Broken):
            raise ValueError(f"broken={broken!r}; {nearest(broken, get_args(Broken))}")
        found, lost = dict(found or {}), dict(lost or {})
        if broken == "stop":
            if remember is not None:
                raise ValueError("remember= keeps what broken='skip' found; it needs broken='skip'")
            if found or lost:
                named = [self._named(p, why) for p, why in sorted(found.items())]
                named += [f"{name}: {why}" for name, why in lost.items()]
                raise RowsError(f"{listed(named, 3)}. {_WAY_OUT}")
            return
        bad = self._remembered(found, None if remember is None else Path(remember))
        spelled = self.keys.to_pylist()
        self.skipped = {**{spelled[p]: why for p, why in sorted(bad.items())}, **lost}
        keep = np.ones(len(self._places), bool)
        keep[list(bad)] = False
        self._places = self._places[keep]
        self.keys = self.keys.take(pa.array(self._places.tolist(), pa.int64()))

    def _remembered(self, found: Mapping[int, str], file: Path | None) -> dict[int, str]:
        if file is None:
            return self._broken(found)
        if (stamp := self.source.stamp()) is None:
            raise ValueError(
                "remember= needs records that tell whether they changed; give fingerprint="
            )
        hashed = [self.source.hashed_as(name) for name in self.source.columns]
        state = digest([stamp, hashed, hash_whole([("", self.keys)]), sorted(found.items())])
        if file.exists():
            # Whatever else lies there was not written for this state.
            with suppress(*GARBLED, StillroomError):
                said = read_json(file)
                if said["state"] == state:
                    return {int(place): str(why) for place, why in said["broken"]}
        bad = self._broken(found)
        write_json(file, {"state": state, "broken": [[p, bad[p]] for p in sorted(bad)]})
        return bad

    def _broken(self, found: Mapping[int, str]) -> dict[int, str]:
        """Reasons by place: of what cannot be read, and of what has not the shape that most have."""
        places = np.array([p for p in self._places.tolist() if p not in found], np.int64)
        blocks = _blocks(places)
        each = [kinds for block in self._spread(self._checked, blocks) for kinds in block]
        bad, kinds = dict(found), dict[int, dict[str, str]]()
        for place, said in zip(places.tolist(), each, strict=True):
            if isinstance(said, str):
                bad[place] = said
            else:
                kinds[place] = said
        for name in self.source.columns:
            most = Counter(said[name] for said in kinds.values()).most_common(1)
            for place, said in kinds.items():
                if said[name] != most[0][0]:
                    bad[place] = f"column {name!r} is {said[name]}, most rows have {most[0][0]}"
        return bad

    def _checked(self, places: Int64s) -> list[str | dict[str, str]]:
        """For each place the kinds of its columns, or what is wrong."""
        each: list[str | dict[str, str]] = []
        for place in places.tolist():
            try:
                values = self.source.check(place)
                each.append({name: kind_of_one(value) for name, value in values.items()})
            except RowsError as error:
                each.append(str(error))
        return each

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order."""
        names, at = self._asked(columns), np.asarray(places, np.int64)
        if len(at) and not 0 <= at.min() <= at.max() < len(self):
            raise IndexError(f"there are rows 0 to {len(self) - 1:,}; asked for others")
        at = self._places[at]
        if len(at) == 0 and len(self):
            # What an empty batch's dtype and shape are, only a row can tell.
            one = self._loaded(int(self._places[0]), names, raw=False)
            return {n: _column([one[n]])[:0] for n in names}
        if len(at) < 2 or self._threads < 2:
            rows = [self._loaded(place, names, raw=False) for place in at.tolist()]
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                rows = list(pool.map(lambda p: self._loaded(p, names, raw=False), at.tolist()))
        batch: Batch = {}
        for name in names:
            values = [row[name] for row in rows]
            for place, value in zip(at.tolist(), values, strict=True):
                self._require_one_kind(name, kind_of_one(value), place)
            batch[name] = _column(values)
        return batch

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row's content, each record read once; kept for the next call."""
        asked = tuple(sorted(set(self._asked(columns))))
        if asked not in self._known:
            blocks = _blocks(self._places)
            work = _Hashing(self, asked)
            pieces = []
            for block, (hashed, kinds) in zip(blocks, self._spread(work, blocks), strict=True):
                for name, kind in kinds.items():
                    self._require_one_kind(name, kind, int(block[0]))
                pieces.append(hashed)
            self._known[asked] = np.concatenate(pieces) if pieces else np.zeros(0, "V16")
        return self._known[asked]

    def hash_block(self, places: Int64s, names: Sequence[str]) -> tuple[Hashes, dict[str, str]]:
        """Hashes of these records, and the kind of each column as it is hashed."""
        hashed: dict[str, list[bytes]] = {name: [] for name in names}
        kinds: dict[str, str] = {}
        for place in places.tolist():
            for name, value in self._loaded(place, names, raw=True).items():
                kind = kinds.setdefault(name, kind_of_one(value))
                if kind_of_one(value) != kind:
                    raise self._of_two_kinds(name, kind_of_one(value), place, kind, int(places[0]))
                hashed[name].append(hash_one(self.source.hashed_as(name), value))
        joined = {n: np.frombuffer(b"".join(each), "V16") for n, each in hashed.items()}
        return join_hashes(joined), {f"{name} as stored": kind for name, kind in kinds.items()}

    def fingerprint(self, columns: Sequence[str], *, trust: str = "content") -> str:
        """Of keys and columns: by content, or by the source's stamp under the name of that trust."""
        asked = sorted(set(self._asked(columns)))
        keys = hash_whole([("", self.keys)])
        if trust == "content":
            return digest(
                [trust, asked, keys, hash_whole([("", np.ascontiguousarray(self.hashes(asked)))])]
            )
        named = [self.source.hashed_as(name) for name in asked]
        return digest([trust, asked, keys, named, self.source.stamp()])

    def _loaded(self, place: int, names: Sequence[str], *, raw: bool) -> dict[str, Any]:
        try:
            return self.source.load(place, names, raw=raw)
        except RowsError as error:
            way_out = "Open them anew" if CHANGED in str(error) else _WAY_OUT
            raise RowsError(f"{self._named(place, str(error))}. {way_out}") from error

    def _named(self, place: int, why: str) -> str:
        at = int(np.searchsorted(self._places, place))
        return f"row {self.keys[at].as_py()!r} ({self.source.said(place)}): {why}"

    def _require_one_kind(self, name: str, kind: str, place: int) -> None:
        known, first = self._kinds.setdefault(name, (kind, place))
        if kind != known:
            raise self._of_two_kinds(name, kind, place, known, first)

    def _of_two_kinds(self, name: str, kind: str, place: int, known: str, first: int) -> RowsError:
        column = name.removesuffix(" as stored")
        return RowsError(
            f"column {column!r} is {known} in {self.source.said(first)} and {kind} in "
            f"{self.source.said(place)}; every row needs one dtype and shape. Resize or pad them, or "
            "leave the rarer ones out with broken='skip'"
        )

    def _asked(self, columns: Sequence[str]) -> Sequence[str]:
        for name in columns:
            if name not in self.source.columns:
                raise RowsError(
                    f"the data set has no column {name!r}; {nearest(name, self.source.columns)}"
                )
        return columns


CHANGED = "changed since these rows were opened, so that their hashes are no longer true"
"""What a source says of a file that has another size or time than it had."""
_WAY_OUT = "Repair or remove it, or leave such rows out, and have them listed, with broken='skip'"


class _Hashing:
    """`hash_block` of some columns, as a function that can be sent to another process."""

    def __init__(self, records: Records, names: Sequence[str]) -> None:
        self._records, self._names = records, names

    def __call__(self, places: Int64s) -> tuple[Hashes, dict[str, str]]:
        return self._records.hash_block(places, self._names)


def _blocks(places: Int64s) -> list[Int64s]:
    return [places[start : start + _BLOCK] for start in range(0, len(places), _BLOCK)]


def _column(values: list[Any]) -> Column:
    return values if isinstance(values[0], str | bytes) else np.stack(values)


def require_unique(keys: Sequence[Key], said: Callable[[int], str]) -> None:
    """RowsError names keys that stand for more than one record, with both places."""
    first: dict[Key, int] = {}
    twice = []
    for place, key in enumerate(keys):
        other = first.setdefault(key, place)
        if other != place:
            twice.append(f"{key!r} ({said(other)} and {said(place)})")
    if twice:
        raise RowsError(
            f"{len(twice):,} keys stand for more than one row: {listed(twice, 3)}; a key must name "
            "one row"
        )
