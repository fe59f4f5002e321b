"""Rows of Zarr arrays, read and hashed a few chunks at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.pieces import Pieces
from stillroom.stages.data.records import Broken, Key
from stillroom.stages.data.row_hashes import Stored, hash_whole
from stillroom.stages.data.rows import Batch
from stillroom.storage.errors import RowsError, listed, nearest
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import digest
from stillroom.storage.keys import KeyList, as_keys, check_unique

Int64s = NDArray[np.int64]


class ZarrRows:
    """Arrays of a Zarr group (format 2 or 3, any codec), or single arrays, with rows as first axis.

    A piece is as many rows as the longest chunk has (the longest shard, where chunks lie in shards);
    rows in random order are read at speed when what is decoded of them fits `memory_bytes`. Row hashes
    are those of `ArrayRows` over the same content.

    A chunk that is not there is the fill value: so Zarr has it, and nothing can tell it from one that
    was lost. Store arrays with checksums (the codec crc32c), so that at least damage is found: with
    broken="stop" the chunk is named when it is read, with broken="skip" everything is read once when
    the rows are made, and the rows of such chunks are listed in `skipped` and are no rows.
    """

    def __init__(
        self,
        where: Any,
        *,
        keys: KeyList | str,
        columns: Sequence[str] | None = None,
        broken: Broken = "stop",
        memory_bytes: int = 1 << 29,
    ) -> None:
        """`where`: a path (a group), a zarr.Group, or for each column a path or a zarr.Array. `keys`:
        one for each row, or the name of the array that holds them. `columns`: arrays of a group (None:
        all that lie directly in it).

        RowsError for arrays of different lengths, or of what is no number and no text;
        FileNotFoundError.
        """
        if broken not in get_args(Broken):
            raise ValueError(f"broken={broken!r}; {nearest(broken, get_args(Broken))}")
        self._where = _light(where)
        self._memory_bytes = memory_bytes
        self._named = None if columns is None else tuple(columns)
        self._kept: Int64s | None = None
        self._known: dict[tuple[str, ...], Hashes] = {}
        self.skipped: dict[Key, str] = {}
        """Rows of damaged chunks, which are left out, and why."""
        if isinstance(keys, str):
            if keys not in self._all:
                raise RowsError(f"there is no array {keys!r} for keys; {nearest(keys, self._all)}")
            keys = _texts_or_numbers(keys, self._all[keys][:])
        self.keys: pa.Array = as_keys(keys)
        """Arrow int64 or large_string."""
        check_unique(self.keys)
        for name, array in self._arrays.items():
            if array.ndim == 0 or array.shape[0] != len(self.keys):
                raise RowsError(
                    f"array {name!r} has shape {array.shape}, there are {len(self.keys):,} keys; every "
                    "row needs exactly one key (name with columns= the arrays that have rows)"
                )
        if broken == "skip":
            bad = self._pieces.broken(self.columns)
            spelled = self.keys.to_pylist()
            self.skipped = {spelled[place]: why for place, why in bad.items()}
            if bad:
                self._kept = np.delete(np.arange(len(self.keys)), list(bad))
                self.keys = self.keys.take(pa.array(self._kept.tolist(), pa.int64()))

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs to open the arrays itself."""
        made = ("_all", "_arrays", "_pieces")
        return {n: v for n, v in self.__dict__.items() if n not in made} | {"_known": {}}

    @cached_property
    def _all(self) -> dict[str, Any]:
        return _opened(self._where)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        for name in self._named or ():
            if name not in self._all:
                raise RowsError(f"there is no array {name!r}; {nearest(name, self._all)}")
        return self._all if self._named is None else {n: self._all[n] for n in self._named}

    @cached_property
    def _pieces(self) -> Pieces:
        rows = next(iter(self._arrays.values())).shape[0]
        lengths = [(a.shards or a.chunks)[0] for a in self._arrays.values()]
        self._step = max(1, *lengths)
        counts = [min(self._step, rows - start) for start in range(0, rows, self._step)]
        return Pieces(counts or [0], self._decoded, self._said, self._memory_bytes)

    def _said(self, piece: int) -> str:
        return f"rows {piece * self._step:,} to {(piece + 1) * self._step:,}"

    def _decoded(self, piece: int, name: str) -> Stored:
        array, start = self._arrays[name], piece * self._step
        try:
            found = array[start : start + self._step]
        except Exception as error:  # what a codec raises for damaged bytes is its own affair
            raise RowsError(
                f"column {name!r}, {self._said(piece)} of {array.store_path} cannot be read ({error}); "
                "write those chunks anew, or leave the rows out with broken='skip'"
            ) from error
        return _texts_or_numbers(name, found)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(self._arrays)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.keys)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order; RowsError names a chunk that is damaged."""
        at = np.asarray(places, np.int64)
        if len(at) and not 0 <= at.min() <= at.max() < len(self):
            raise IndexError(f"there are rows 0 to {len(self) - 1:,}; asked for others")
        at = at if self._kept is None else self._kept[at]
        return self._pieces.read(at, self._asked(columns))

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row's content; chunks are decoded on threads, once."""
        asked = tuple(sorted(self._asked(columns)))
        if asked not in self._known:
            self._known[asked] = self._pieces.hashes(asked, self._kept)
        return self._known[asked]

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of keys and columns, by content."""
        asked = sorted(self._asked(columns))
        hashed = np.ascontiguousarray(self.hashes(asked))
        return digest(["content", asked, hash_whole([("", self.keys), ("rows", hashed)])])

    def _asked(self, columns: Sequence[str]) -> Sequence[str]:
        for name in columns:
            if name not in self._arrays:
                raise RowsError(
                    f"the data set has no column {name!r}; {nearest(name, self._arrays)}"
                )
        return columns


def _light(where: Any) -> Any:
    """Paths as texts, everything else as it is."""
    if isinstance(where, Mapping):
        return {n: str(v) if isinstance(v, str | Path) else v for n, v in where.items()}
    return str(where) if isinstance(where, str | Path) else where


def _opened(where: Any) -> dict[str, Any]:
    import zarr

    def node(place: Any) -> Any:
        if not isinstance(place, str):
            return place
        try:
            return zarr.open(place, mode="r")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no Zarr array or group at {place}") from error

    if isinstance(where, Mapping):
        arrays = {name: node(place) for name, place in where.items()}
        for name, array in arrays.items():
            if not isinstance(array, zarr.Array):
                raise RowsError(
                    f"column {name!r} is a {type(array).__name__}; expected a Zarr array"
                )
        return arrays
    group = node(where)
    if isinstance(group, zarr.Array):
        raise RowsError(
            f"{where} is one array; give it a name: ZarrRows({{'image': ...}}, keys=...)"
        )
    if not isinstance(group, zarr.Group):
        raise RowsError(
            f"a {type(group).__name__} is no Zarr group; pass a path, a group or arrays"
        )
    arrays = dict(sorted(group.arrays()))
    if not arrays:
        groups = listed(sorted(group.group_keys())) or "nothing else"
        raise RowsError(f"the group {group.store_path} holds no array; it holds {groups}")
    return arrays


def _texts_or_numbers(name: str, values: Any) -> Stored:
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind in "OUT" and array.ndim == 1:
        try:
            return pa.array(array.astype(object).tolist(), pa.large_string())
        except (pa.ArrowException, TypeError) as error:
            raise RowsError(f"array {name!r} holds what is no text: {error}") from error
    raise RowsError(
        f"array {name!r} is {array.dtype} with {array.ndim} axes; expected numbers, or one text a row"
    )
