"""Rows of WebDataset's tars: members that share a name up to its first dot are a row."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.images import Decode, check_image
from stillroom.stages.data.records import CHANGED, Broken, Key, Records, require_unique
from stillroom.stages.data.rows import Batch
from stillroom.stages.data.tar_fields import Kind, kind_of_field, value_of
from stillroom.stages.data.tar_index import Shard, find_shards, read_indexes
from stillroom.storage.errors import RowsError, listed, nearest
from stillroom.storage.folder import Hashes

Int64s = NDArray[np.int64]
Trust = Literal["content", "mtime"]


class TarRows:
    """Plain .tar files, indexed once and read in any order where their members lie; never extracted.

    A member's path up to the first dot of its last part is the row's key, what follows is the field, as
    WebDataset has it. By the ending of the field a value is an image's bytes (or, with `decode`, a uint8
    array), a whole number (`cls`, `id`, ...: int64), a text (`txt`, `json`), an array (`npy`), or bytes.
    Nothing is unpickled. Hashes are of these values, of images always of their bytes.

    `trust`: "content", every field is read; "mtime", each tar's name, size and time of change. `broken`
    and `remember` are those of `ImageFolderRows`; of a tar that ends too early, `skipped` names the file
    besides the row that it ends in.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        decode: Mapping[str, Decode] | None = None,
        trust: Trust = "content",
        index: str | Path | None = None,
        broken: Broken = "stop",
        remember: str | Path | None = None,
    ) -> None:
        """`shards`: tars, folders of them, or names such as `train-{000..127}.tar`. `columns`: the
        fields that are columns (None: all that any row has), or columns with their fields, such as
        `{"image": "jpg;png", "label": "cls"}`. `decode`: image columns that are read as arrays.
        `index`: a JSON file that keeps where members lie; a tar is then indexed again only when its size
        or time changed.

        RowsError for compressed or damaged tars, keys in more than one place (both are named) and rows
        that lack a column; FileNotFoundError.
        """
        if trust not in get_args(Trust):
            raise ValueError(f"trust {trust!r}; {nearest(trust, get_args(Trust))}")
        read = read_indexes(find_shards(shards), None if index is None else Path(index))
        self.left_out: dict[str, str] = {
            f"{shard.path}: {name}": why for shard in read for name, why in shard.left_out.items()
        }
        """Members that are not taken, and why."""
        named = _named_columns(columns, read)
        found: dict[int, str] = {}
        keys, source = _indexed(read, named, dict(decode or {}), columns is None, found)
        require_unique(keys, source.said)
        self._records = Records(pa.array(keys, pa.large_string()), source)
        self._trust = trust
        lost: dict[Key, str] = {str(shard.path): shard.cut for shard in read if shard.cut}
        self._records.settle(broken, found, lost, remember)

    @property
    def keys(self) -> pa.Array:
        """Arrow large_string."""
        return self._records.keys

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self._records.source.columns

    @property
    def skipped(self) -> dict[Key, str]:
        """Broken rows that are left out, and tars that end too early, and why."""
        return self._records.skipped

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._records)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order; RowsError names a row that is broken."""
        return self._records.read(places, columns)

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row; each field is read once, whatever is trusted."""
        return self._records.hashes(columns)

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of keys and columns, by what is trusted."""
        return self._records.fingerprint(columns, trust=self._trust)


@dataclass(frozen=True)
class _Field:
    """A column: where its bytes lie."""

    starts: Int64s
    sizes: Int64s
    kind: Kind
    decode: Decode | None


@dataclass(frozen=True)
class _Members:
    """Members of tars by place."""

    files: tuple[tuple[str, int, int], ...]
    """Path, bytes and time of change of each tar."""
    file_of: NDArray[np.int32]
    fields: Mapping[str, _Field]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.fields)

    def load(self, place: int, columns: Sequence[str], *, raw: bool) -> dict[str, Any]:
        path, size, mtime_ns = self.files[self.file_of[place]]
        values: dict[str, Any] = {}
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise RowsError(f"the tar cannot be read: {error.strerror}") from error
        try:
            state = os.fstat(file)
            if (state.st_size, state.st_mtime_ns) != (size, mtime_ns):
                raise RowsError(f"the tar {CHANGED}")
            for name in columns:
                field = self.fields[name]
                content = _read(file, int(field.starts[place]), int(field.sizes[place]))
                try:
                    value = value_of(field.kind, content)
                    values[name] = value if raw or field.decode is None else field.decode(value)
                except RowsError as error:
                    raise RowsError(f"column {name!r}: {error}") from error
        finally:
            os.close(file)
        return values

    def check(self, place: int) -> dict[str, Any]:
        values = self.load(place, self.columns, raw=False)
        for name, field in self.fields.items():
            if field.kind == "image" and field.decode is None:
                try:
                    check_image(values[name])
                except RowsError as error:
                    raise RowsError(f"column {name!r}: {error}") from error
        return values

    def hashed_as(self, column: str) -> str:
        decode = self.fields[column].decode
        return column if decode is None else f"{column} as {decode}"

    def said(self, place: int) -> str:
        start = min(int(field.starts[place]) for field in self.fields.values())
        return f"{self.files[self.file_of[place]][0]}, byte {start:,}"

    def stamp(self) -> Any:
        return [[Path(path).name, size, mtime_ns] for path, size, mtime_ns in self.files]


def _read(file: int, start: int, size: int) -> bytes:
    pieces = []
    while size:
        try:
            piece = os.pread(file, size, start)
        except OSError as error:
            raise RowsError(f"bytes {start:,} on cannot be read: {error.strerror}") from error
        if not piece:
            raise RowsError(f"the tar ends at byte {start:,}")
        pieces.append(piece)
        start, size = start + len(piece), size - len(piece)
    return b"".join(pieces)


def _named_columns(
    columns: Sequence[str] | Mapping[str, str] | None, shards: Sequence[Shard]
) -> dict[str, tuple[str, ...]]:
    """The fields that a column may be, by its name."""
    met = {field: None for shard in shards for _, fields in shard.records for field in fields}
    if columns is None:
        if not met:
            raise RowsError(
                f"{listed(str(shard.path) for shard in shards)}: no member is named key.field"
            )
        return {field: (field,) for field in met}
    pairs = columns.items() if isinstance(columns, Mapping) else ((name, name) for name in columns)
    named = {name: tuple(fields.lower().split(";")) for name, fields in pairs}
    if not named:
        raise ValueError("columns= names no column")
    for name, fields in named.items():
        if not met.keys() & set(fields):
            raise RowsError(f"no row has a field {name!r}; {nearest(fields[0], met)}")
        if len({kind_of_field(field) for field in fields}) > 1:
            raise ValueError(f"column {name!r}: {', '.join(fields)} are not of one kind")
    return named


def _indexed(
    shards: Sequence[Shard],
    named: Mapping[str, tuple[str, ...]],
    decode: dict[str, Decode],
    every: bool,
    found: dict[int, str],
) -> tuple[list[str], _Members]:
    """The keys and where each column of each row lies; what is wrong with rows goes into `found`."""
    keys: list[str] = []
    file_of: list[int] = []
    where: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in named}
    for number, shard in enumerate(shards):
        hint = "; name with columns= those that every row has" if every and not shard.cut else ""
        found |= {len(keys) + place: why for place, why in shard.broken.items()}
        for key, fields in shard.records:
            begin = min(start for start, _ in fields.values())
            for name, possible in named.items():
                has = [field for field in possible if field in fields]
                if len(has) != 1 and len(keys) not in found:
                    wrong = (
                        f"{len(has)} fields for column {name!r}" if has else f"no field {name!r}"
                    )
                    found[len(keys)] = f"it has {wrong}, but {', '.join(sorted(fields))}{hint}"
                start, size = fields[has[0]] if has else (begin, 0)
                where[name][0].append(start)
                where[name][1].append(size)
            keys.append(key)
            file_of.append(number)
    for name in decode:
        if name not in named or kind_of_field(named[name][0]) != "image":
            raise ValueError(f"decode= names {name!r}, no column of images; {nearest(name, named)}")
    files = tuple((str(shard.path), shard.size, shard.mtime_ns) for shard in shards)
    parts = {
        name: _Field(
            np.array(starts, np.int64),
            np.array(sizes, np.int64),
            kind_of_field(named[name][0]),
            decode.get(name),
        )
        for name, (starts, sizes) in where.items()
    }
    return keys, _Members(files, np.array(file_of, np.int32), parts)
