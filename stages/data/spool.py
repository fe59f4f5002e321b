"""Rows that can be read only once, in order, written to Arrow files from which they are read in any.

`<folder>/rows/` appears when it is whole: the files, and `spooled.json`, which says what they hold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from stillroom.stages.data.arrow_columns import to_arrow
from stillroom.stages.data.records import Broken, Key
from stillroom.stages.data.row_hashes import kind_of_one
from stillroom.storage.errors import GARBLED, FormatError, RowsError
from stillroom.storage.files import (
    finishing,
    make_folder,
    read_json,
    store_errors,
    sync_folder,
    temporary_name,
    write_json,
)
from stillroom.storage.removing import remove_leftovers, remove_tree

_BATCH_ROWS, _BATCH_BYTES, _FILE_BYTES = 1024, 1 << 24, 1 << 30
"""A record batch ends at whichever comes first; so does a file after its batch."""
_FORMAT = 1


@dataclass(frozen=True)
class Spooled:
    """What a folder of spooled rows holds."""

    path: Path
    """The folder of the files."""
    rows: int
    bytes: int
    key: str
    """The column of keys."""
    skipped: dict[Key, str]
    """Rows that could not be written, and why."""
    reused: bool
    """Whether it was there before."""

    def __str__(self) -> str:
        """For people."""
        done = "holds" if self.reused else "now holds"
        left = f", {len(self.skipped):,} were skipped" if self.skipped else ""
        return f"{self.path} {done} {self.rows:,} rows in {self.bytes:,} bytes{left}"


@dataclass(frozen=True)
class Spooling:
    """Where rows are spooled, and under what."""

    folder: Path
    key: str
    """The column of keys."""
    version: str
    """What the user calls this state of the rows."""

    def found(self) -> Spooled | None:
        """What is there; None where nothing whole is.

        RowsError where it was of another version, or under another key.
        """
        path = self.folder / "rows"
        if not (path / "spooled.json").exists():
            return None
        said = read_json(path / "spooled.json")
        try:
            if said["format"] > _FORMAT:
                raise FormatError(
                    f"{path} is of a newer format ({said['format']}); update stillroom"
                )
            skipped: dict[Key, str] = {key: str(why) for key, why in said["skipped"]}
            found = Spooled(path, said["rows"], said["bytes"], said["key"], skipped, True)
            version = said["version"]
        except GARBLED as error:
            raise FormatError(f"{path} holds no spooled rows; delete it") from error
        if (version, found.key) != (self.version, self.key):
            raise RowsError(
                f"{self.folder} was spooled as version {version!r} with key {found.key!r}, asked for are "
                f"{self.version!r} and {self.key!r}; pass again=True to spool anew, or choose another "
                "folder"
            )
        return found

    @contextmanager
    def writing(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """A folder to write files of rows into, and what `spooled.json` shall say besides (`rows`); it
        takes the place of `<folder>/rows` when the block ends, and is removed when it fails."""
        folder = self.folder
        make_folder(folder)
        remove_leftovers(folder)
        name, old = temporary_name("rows"), temporary_name("old")
        temporary, said = folder / name, dict[str, Any]()
        with finishing(name), finishing(old), store_errors(folder):
            temporary.mkdir()
            try:
                yield temporary, said
                sizes = {}
                for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
                    _sync(path)
                    sizes[path.relative_to(temporary).as_posix()] = path.stat().st_size
                whole = {
                    "format": _FORMAT,
                    "key": self.key,
                    "version": self.version,
                    "files": sizes,
                }
                whole |= {"skipped": [], "bytes": sum(sizes.values()), **said}
                write_json(temporary / "spooled.json", whole)
                if (folder / "rows").exists():
                    os.rename(folder / "rows", folder / old)
                os.rename(temporary, folder / "rows")
                sync_folder(folder)
                remove_tree(folder / old)
            except BaseException:
                remove_tree(temporary)
                raise

    def written(self) -> Spooled:
        """What was written just now."""
        made = self.found()
        assert made is not None
        return replace(made, reused=False)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def spool(
    items: Iterable[Any],
    how: Spooling,
    values: Callable[[Any], tuple[Key, dict[str, Any]]],
    *,
    limit: int,
    broken: Broken,
) -> Spooled:
    """Write every item once; `values` gives its key and its columns, or raises RowsError.

    Held in memory is one record batch, and 16 bytes a row to find keys that come twice. RowsError
    names an item that has no key, the key of another one, or another dtype or shape than the first,
    and says when there are more than `limit`.
    """
    started = time.perf_counter()
    with how.writing() as (temporary, said):
        writer = _Writer(temporary, how.key)
        skipped: dict[Key, str] = {}
        number = -1
        for number, item in enumerate(items):
            if number >= limit:
                raise RowsError(
                    f"there are more than {limit:,} rows: does the data set repeat itself for ever? "
                    "Raise limit= where there really are more, or cut it (itertools.islice)"
                )
            try:
                name, columns = values(item)
            except RowsError as error:
                raise RowsError(f"item {number:,}: {error}") from error
            if (why := writer.unfit(columns)) is None:
                writer.add(number, name, columns)
            elif broken == "skip":
                skipped[name] = why
            else:
                raise RowsError(f"row {name!r} (item {number:,}): {why}")
        writer.close()
        if not writer.rows:
            raise RowsError(f"the data set gave {number + 1:,} items, none of which is a row")
        said |= {"rows": writer.rows, "skipped": [[k, w] for k, w in skipped.items()]}
        said["seconds"] = round(time.perf_counter() - started, 3)
    return how.written()


class _Writer:
    """Rows to Arrow files, in batches."""

    def __init__(self, folder: Path, key: str) -> None:
        self.rows = 0
        self._folder, self._key = folder, key
        self._kinds: dict[str, str] = {}
        self._held: list[tuple[int, Key, dict[str, Any]]] = []
        self._held_bytes, self._files = 0, 0
        self._seen: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._writer: pa.RecordBatchFileWriter | None = None
        self._sink: pa.NativeFile | None = None

    def unfit(self, columns: dict[str, Any]) -> str | None:
        """Why these values are no row like the first; None where they are."""
        kinds = {name: kind_of_one(value) for name, value in columns.items()}
        if not self._kinds:
            if self._key in kinds:
                return f"it has a column {self._key!r}, which is the name of the column of keys"
            for name, value in columns.items():
                if not isinstance(value, str | bytes):
                    to_arrow(name, np.asarray(value)[None])
            self._kinds = kinds
        for name in {**self._kinds, **kinds}:
            if kinds.get(name) != self._kinds.get(name):
                return (
                    f"column {name!r} is {kinds.get(name, 'missing')}, and "
                    f"{self._kinds.get(name, 'missing')} in the first row; every row needs one dtype and "
                    "shape"
                )
        return None

    def add(self, number: int, key: Key, columns: dict[str, Any]) -> None:
        self._held.append((number, key, columns))
        self._held_bytes += sum(
            len(v) if isinstance(v, str | bytes) else np.asarray(v).nbytes for v in columns.values()
        )
        if len(self._held) >= _BATCH_ROWS or self._held_bytes >= _BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        if self._held:
            self._flush()
        if self._writer is not None and self._sink is not None:
            self._writer.close()
            self._sink.close()
            self._writer = None

    def _flush(self) -> None:
        keys = [key for _, key, _ in self._held]
        self._require_new(keys, np.array([number for number, _, _ in self._held]))
        columns = {self._key: pa.array(keys)}
        for name in self._kinds:
            values = [row[name] for _, _, row in self._held]
            texts = isinstance(values[0], str | bytes)
            columns[name] = to_arrow(name, values if texts else np.stack(values))
        batch = pa.record_batch(columns)
        if self._writer is None:
            path = self._folder / f"rows-{self._files:05d}.arrow"
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_file(self._sink, batch.schema)
            self._files += 1
        self._writer.write_batch(batch)
        self.rows += len(keys)
        self._held, self._held_bytes = [], 0
        assert self._sink is not None
        if self._sink.tell() >= _FILE_BYTES:
            self.close()

    def _require_new(self, keys: list[Key], numbers: NDArray[np.int64]) -> None:
        """RowsError for a key that came before, with both items: sorted runs of hashes, each at least
        twice as long as the next."""
        if len(kinds := {type(key) for key in keys}) > 1:
            raise RowsError(
                f"keys are {' and '.join(sorted(k.__name__ for k in kinds))}; all must be integers, or "
                "all texts"
            )
        hashes = np.array([xxhash.xxh3_64_intdigest(str(key).encode()) for key in keys], np.uint64)
        order = np.argsort(hashes, kind="stable")
        hashes, places = hashes[order], numbers[order]
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        if len(same):
            self._twice(keys[order[same[0]]], int(places[same[0]]), int(places[same[0] + 1]))
        for earlier, where in self._seen:
            at = np.minimum(np.searchsorted(earlier, hashes), len(earlier) - 1)
            if len(hit := np.flatnonzero(earlier[at] == hashes)):
                self._twice(keys[order[hit[0]]], int(where[at[hit[0]]]), int(places[hit[0]]))
        while self._seen and len(self._seen[-1][0]) < 2 * len(hashes):
            more, their = self._seen.pop()
            hashes, places = np.concatenate([more, hashes]), np.concatenate([their, places])
            order = np.argsort(hashes, kind="stable")
            hashes, places = hashes[order], places[order]
        self._seen.append((hashes, places))

    def _twice(self, key: Key, first: int, second: int) -> None:
        raise RowsError(
            f"key {key!r} stands for item {first:,} and for item {second:,}; a key must name one row. A "
            "data set that repeats itself for ever has to be cut (itertools.islice)"
        )
