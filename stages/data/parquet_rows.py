"""Rows in files: Parquet, Arrow IPC (files or streams) and CSV, read piece by piece in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.arrow_columns import from_arrow
from stillroom.stages.data.arrow_files import OpenFile, files_of, open_file
from stillroom.stages.data.pieces import Pieces, joined_keys
from stillroom.stages.data.records import Broken, Key
from stillroom.stages.data.row_hashes import THREADS, Stored, hash_whole, kind_of
from stillroom.stages.data.rows import Batch
from stillroom.storage.errors import RowsError, listed, nearest
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import digest
from stillroom.storage.keys import check_unique

Int64s = NDArray[np.int64]
Trust = Literal["content", "statistics", "mtime"]


@dataclass(frozen=True)
class _File:
    """A file as it was when the rows were opened."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> _File:
        state = path.stat()
        return cls(path, state.st_size, state.st_mtime_ns)

    def require_unchanged(self) -> None:
        try:
            same = _File.of(self.path) == self
        except FileNotFoundError:
            same = False
        if not same:
            raise RowsError(
                f"{self.path} changed since these rows were opened, so their hashes are no longer "
                "true; open them anew"
            )


class _Looked:
    """What of a piece can be read."""

    def __init__(self, names: list[Key]) -> None:
        """`names`: keys of the rows, or their places."""
        self.names, self.wrong = names, dict[Key, str]()
        self.valid: Int64s = np.arange(len(names))
        self.kinds: dict[str, str] = {}
        """Dtype and shape of each column."""

    def leave_out(self, why: str, rows: Int64s | None = None) -> _Looked:
        """These rows, or all that are left, with the reason."""
        rows = self.valid if rows is None else np.intersect1d(rows, self.valid)
        self.wrong |= {self.names[row]: why for row in rows.tolist()}
        self.valid = np.setdiff1d(self.valid, rows)
        return self


class ParquetRows:
    """Columns of Parquet, Arrow IPC or CSV files, decoded on threads when they are needed.

    Numbers, lists of numbers of one length (as a further axis), texts, and bytes such as encoded
    images (each row a `bytes`). Row hashes are those of `ArrayRows` over the same content. Workers
    open the files themselves, so they must see the same paths. A piece is a row group of Parquet, a
    record batch of Arrow, a whole CSV file; rows in random order are read at speed when what is
    decoded of them fits `memory_bytes`, or from uncompressed Arrow, which is mapped.

    `trust` says what makes two states of the files equal without reading them again:

    - `content`: the rows' content is read and hashed. Misses nothing.
    - `statistics`: Parquet's footers: counts, sizes, minima and maxima of every column of every row
      group. Misses edits that leave all of those as they are, such as two values that changed places
      or a number that moved between its group's minimum and maximum.
    - `mtime`: each file's name, size and time of change. Misses a file whose time was set back after
      an edit that kept its size.

    Keys are read and compared in every case. Whatever is trusted, rows that have to be compared are
    compared by content.

    With broken="stop" what cannot be read is an error that names file, piece and column. With
    broken="skip" every column is read once when the rows are made, and `skipped` names what is no row:
    by their keys rows with a missing value and rows of pieces that cannot be decoded, by their places
    lines of a CSV with another number of fields, pieces without readable keys, files that are none.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        key: str,
        trust: Trust = "content",
        broken: Broken = "stop",
        memory_bytes: int = 1 << 29,
    ) -> None:
        """Files, or folders of such files (in order of names; those that begin with . or _ are not
        taken); `key` is the column that names each row.

        RowsError for files that cannot be read or whose columns differ, and for keys that are missing
        or not unique; FileNotFoundError.
        """
        if trust not in get_args(Trust):
            raise ValueError(f"trust {trust!r}; {nearest(trust, get_args(Trust))}")
        given = [path] if isinstance(path, str | Path) else list(path)
        self._files = [_File.of(p) for each in given for p in files_of(Path(each))]
        self._key, self._trust, self._memory_bytes = key, trust, memory_bytes
        self._known: dict[tuple[str, ...], Hashes] = {}
        self._skip = broken == "skip"
        self._valid: dict[int, Int64s] = {}
        self.skipped: dict[Key, str] = {}
        """Rows that are left out, or the places of what is none, and why."""
        if broken not in get_args(Broken):
            raise ValueError(f"broken={broken!r}; {nearest(broken, get_args(Broken))}")
        if self._skip:
            self._leave_out_files()
        if key not in self.columns:
            raise RowsError(
                f"{self._files[0].path} has no column {key!r} for keys; {nearest(key, self.columns)}"
            )
        if self._skip:
            self._leave_out_rows()
        keys = self.keys
        try:
            check_unique(keys)
        except RowsError as error:
            raise RowsError(f"column {key!r} of {self._files[0].path}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs to open the files itself."""
        made = ("_open", "_where", "_pieces", "keys")
        return {n: v for n, v in self.__dict__.items() if n not in made} | {"_known": {}}

    def _leave_out_files(self) -> None:
        kept = []
        for file in self._files:
            try:
                self.skipped.update(open_file(file.path, skip=True).lost)
                kept.append(file)
            except RowsError as error:
                self.skipped[str(file.path)] = str(error)
        if not kept:
            raise RowsError(f"no file can be read: {listed(self.skipped.values(), 3)}")
        self._files = kept

    def _leave_out_rows(self) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            each = list(pool.map(self._looked, range(len(self._where))))
        for name in self.columns:
            rows = Counter[str]()
            for looked in each:
                rows[looked.kinds.get(name, "")] += len(looked.valid)
            most = max(rows, key=rows.__getitem__, default="")
            for looked in each:
                kind = looked.kinds.get(name, most)
                if len(looked.valid) and kind != most and name != self._key:
                    looked.leave_out(f"column {name!r} is {kind}, most rows have {most}")
        for piece, looked in enumerate(each):
            if looked.wrong:
                self._valid[piece] = looked.valid
                self.skipped |= looked.wrong

    def _looked(self, piece: int) -> _Looked:
        file, part = self._where[piece]
        opened, said = self._open[file], self._said(piece)
        rows = opened.counts[part]
        try:
            spelled = opened.read(part, self._key).to_pylist()
        except (pa.ArrowException, OSError) as error:
            looked = _Looked([f"{said} ({rows:,} rows)"])
            return looked.leave_out(f"column {self._key!r} of keys: {error}")
        looked = _Looked([f"{said}, row {i:,}" if k is None else k for i, k in enumerate(spelled)])
        for name in opened.names:
            try:
                column = opened.read(part, name)
                missing = np.flatnonzero(np.asarray(column.is_null()))
                looked.leave_out(f"column {name!r} has no value", missing)
                looked.kinds[name] = kind_of(from_arrow(name, column.drop_null()))
            except (pa.ArrowException, OSError, RowsError) as error:
                return looked.leave_out(f"column {name!r} of {said} cannot be read: {error}")
        return looked

    @cached_property
    def _open(self) -> list[OpenFile]:
        opened = []
        for file in self._files:
            file.require_unchanged()
            opened.append(open_file(file.path, skip=self._skip))
        first = opened[0].names
        for file, other in zip(self._files, opened, strict=True):
            if set(other.names) != set(first):
                odd = sorted({*other.names} ^ {*first})
                raise RowsError(
                    f"{file.path} and {self._files[0].path} differ in columns {', '.join(odd)}; all "
                    "files of a data set need the same"
                )
        return opened

    @cached_property
    def _where(self) -> list[tuple[int, int]]:
        """(file, part) of every piece."""
        return [(f, p) for f, file in enumerate(self._open) for p in range(len(file.counts))]

    @cached_property
    def _pieces(self) -> Pieces:
        counts = [n for file in self._open for n in file.counts]
        for piece, valid in self._valid.items():
            counts[piece] = len(valid)
        return Pieces(counts, self._decoded, self._said, self._memory_bytes)

    def _said(self, piece: int) -> str:
        file, part = self._where[piece]
        return f"{self._files[file].path}, {self._open[file].part} {part}"

    def _decoded(self, piece: int, name: str) -> Stored:
        file, part = self._where[piece]
        self._files[file].require_unchanged()
        said = self._said(piece)
        try:
            column = self._open[file].read(part, name)
        except (pa.ArrowException, OSError) as error:
            raise RowsError(
                f"column {name!r} of {said} cannot be read ({error}); write the file anew"
            ) from error
        if (valid := self._valid.get(piece)) is not None:
            column = column.take(pa.array(valid.tolist(), pa.int64()))
        return from_arrow(name, column, f" of {said}")

    @cached_property
    def keys(self) -> pa.Array:
        """The key column: Arrow int64 or large_string."""
        # Not as a column, which has one type: integer keys of any width are one kind.
        pieces = [p for p in range(len(self._where)) if len(self._valid.get(p, "all"))]
        return joined_keys(self._key, (self._decoded(piece, self._key) for piece in pieces))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the files, the key's too."""
        return tuple(self._open[0].names)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._pieces)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order; RowsError when a file changed meanwhile."""
        for file in sorted(
            {self._where[i][0] for i in set(self._pieces.piece_of(places).tolist())}
        ):
            self._files[file].require_unchanged()
        return self._pieces.read(places, self._named(columns))

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row's content; read once, whatever is trusted."""
        asked = tuple(sorted(self._named(columns)))
        for file in self._files:
            file.require_unchanged()
        if asked not in self._known:
            self._known[asked] = self._pieces.hashes(asked)
        return self._known[asked]

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of keys and columns, by what is trusted."""
        asked = sorted(self._named(columns))
        if self._trust == "content":
            said: Any = hash_whole([("", np.ascontiguousarray(self.hashes(asked)))])
        elif self._trust == "mtime":
            said = [[file.path.name, file.size, file.mtime_ns] for file in map(_again, self._files)]
        else:
            for file in self._files:
                file.require_unchanged()
            said = [self._statistics(i, [self._key, *asked]) for i in range(len(self._files))]
        return digest([self._trust, asked, hash_whole([("", self.keys)]), said])

    def _statistics(self, file: int, columns: Sequence[str]) -> Any:
        if (found := self._open[file].statistics(columns)) is None:
            raise RowsError(
                f"{self._files[file].path} holds no statistics of {', '.join(columns)}; trust "
                "'content' or 'mtime'"
            )
        return found

    def _named(self, columns: Sequence[str]) -> Sequence[str]:
        for name in columns:
            if name not in self.columns:
                raise RowsError(
                    f"the data set has no column {name!r}; {nearest(name, self.columns)}"
                )
        return columns


def _again(file: _File) -> _File:
    file.require_unchanged()
    return file
