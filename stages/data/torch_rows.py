"""Rows of torch data sets: those with items in any order, and those that only give one after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.items import Names, values_of
from stillroom.stages.data.parquet_rows import ParquetRows
from stillroom.stages.data.records import Broken, Key, Records, Result
from stillroom.stages.data.row_hashes import hash_one
from stillroom.stages.data.rows import Batch
from stillroom.stages.data.spool import Spooled, Spooling, spool
from stillroom.storage.errors import RowsError
from stillroom.storage.folder import Hashes
from stillroom.storage.keys import KeyList, as_keys, check_unique

Int64s = NDArray[np.int64]
_TRIED, _AGAIN = 4, 3
"""Items that are read several times when the rows are made, and how often more than once."""


class TorchRows:
    """A map-style data set: anything with a length and items by number.

    Items are tuples, whose parts `columns` names, or dicts, whose entries are columns. Tensors and arrays
    of one shape in all items are stacked; numbers become int64, float64 or bool; texts and bytes stay.
    Row hashes are those of `ArrayRows` over the same content.

    An item must be the same whenever it is read, or students would learn from other images than the
    teacher saw: a few are read several times, and random transforms are refused.

    Items are read one after another in each process, as few data sets may be used by several threads;
    `threads` says that this one may. For hashing, `workers` processes (a DataLoader's) share the
    items. What the data set holds in memory is sent to every worker that teaches.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        keys: KeyList | Callable[[int], Key],
        columns: Names | None = None,
        fingerprint: str | None = None,
        threads: int = 1,
        workers: int = 0,
        broken: Broken = "stop",
        remember: str | Path | None = None,
    ) -> None:
        """`keys`: one for each item, or a function of its number. `columns`: names for the parts of a
        tuple, None for one that is left out; of dicts, the entries that are columns (None: those of the
        first item). `fingerprint`: a text that changes whenever the items do, trusted instead of hashing
        all of them again; `broken` and `remember` (which needs it) as for `ImageFolderRows`.

        RowsError for a data set without length or items by number, keys that are missing or not unique,
        items that are no tuples or dicts of values, and items that differ from one read to the next.
        """
        _require_map_style(dataset)
        spelled = [keys(n) for n in range(len(dataset))] if callable(keys) else keys
        made = as_keys(spelled)
        check_unique(made)
        if len(made) != len(dataset):
            raise RowsError(
                f"the data set has {len(dataset):,} items, there are {len(made):,} keys; every item needs "
                "exactly one key"
            )
        source = _Items(dataset, None if columns is None else tuple(columns), fingerprint)
        spread = _Spread(workers)
        self._records = Records(made, source, threads=threads, spread=spread)
        self._trust = "content" if fingerprint is None else "fingerprint"
        if len(made):
            _require_steady(source, made)
        self._records.settle(broken, remember=remember)

    @staticmethod
    def from_iterable(
        dataset: Iterable[Any],
        folder: str | Path,
        *,
        key: str | Callable[[Any], Key],
        columns: Names | None = None,
        limit: int = 10_000_000,
        version: str = "",
        again: bool = False,
        broken: Broken = "stop",
        said: Callable[[Spooled], object] = lambda spooled: None,
    ) -> ParquetRows:
        """Rows of what can only be iterated: written to Arrow files in `folder` once, then read from
        them in any order.

        `key`: the column that names each row, or a function of the item. The folder is whole or absent;
        a run that was cut off begins anew. What is there already is used as it is, since nothing tells
        whether an iterable would give the same again: pass another `version` (any text) when it would
        not, which is refused until again=True replaces the files. `said` hears what was written or found.

        RowsError for items without a key or with the key of another one, items of another dtype or shape
        than the first (broken="skip" leaves those out), and when there are more than `limit`.
        """
        if not hasattr(dataset, "__iter__"):
            if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
                raise RowsError(f"a {type(dataset).__name__} cannot be iterated")
            dataset = map(dataset.__getitem__, range(dataset.__len__()))
        name = key if isinstance(key, str) else "key"
        how = Spooling(Path(folder), name, version)
        found = None if again else how.found()
        if found is None:
            found = spool(dataset, how, _Keyed(key, columns), limit=limit, broken=broken)
        said(found)
        rows = ParquetRows(found.path, key=name)
        rows.skipped.update(found.skipped)
        return rows

    @property
    def keys(self) -> pa.Array:
        """Arrow int64 or large_string."""
        return self._records.keys

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self._records.source.columns

    @property
    def skipped(self) -> dict[Key, str]:
        """Items that are no rows because they could not be read, and why."""
        return self._records.skipped

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._records)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order; RowsError names an item that cannot be read."""
        return self._records.read(places, columns)

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """xxh3_128 of each row; every item is read once."""
        return self._records.hashes(columns)

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of keys and columns: the one that was given, or by content."""
        return self._records.fingerprint(columns, trust=self._trust)


class _Items:
    """Items by number."""

    def __init__(self, dataset: Any, names: Names | None, fingerprint: str | None) -> None:
        self._dataset, self._names, self._fingerprint = dataset, names, fingerprint
        self.columns: tuple[str, ...] = ()
        if names is not None:
            self.columns = tuple(name for name in names if name is not None)
        for place in range(len(dataset)) if names is None else ():
            try:
                self.columns = tuple(self._values(place))
                break
            except RowsError as error:
                if place == len(dataset) - 1 or "no names" in str(error):
                    raise RowsError(f"item {place:,}: {error}") from error

    def _values(self, place: int) -> dict[str, Any]:
        try:
            item = self._dataset[place]
        except MemoryError:
            raise
        except Exception as error:  # what a data set raises for a broken item is its own affair
            raise RowsError(f"reading it raised {type(error).__name__}: {error}") from error
        return values_of(item, self._names or self.columns or None)

    def load(self, place: int, columns: Sequence[str], *, raw: bool) -> dict[str, Any]:
        values = self._values(place)
        return {name: values[name] for name in columns}

    def check(self, place: int) -> dict[str, Any]:
        return self._values(place)

    def hashed_as(self, column: str) -> str:
        return column

    def said(self, place: int) -> str:
        return f"item {place:,}"

    def stamp(self) -> Any:
        return self._fingerprint


@dataclass(frozen=True)
class _Keyed:
    """Key and columns of an item that is spooled."""

    key: str | Callable[[Any], Key]
    columns: Names | None

    def __call__(self, item: Any) -> tuple[Key, dict[str, Any]]:
        names = self.columns
        if isinstance(self.key, str) and isinstance(item, dict) and names is not None:
            names = [*names, self.key]
        values = values_of(item, names)
        if callable(self.key):
            found = self.key(item)
        elif self.key in values:
            found = values.pop(self.key)
        else:
            raise RowsError(
                f"it has no column {self.key!r} for its key; every row needs a key that names it for "
                "ever: pass key= as a column or as a function of the item"
            )
        if isinstance(found, np.ndarray) and found.dtype.kind in "iu" and found.ndim == 0:
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, str | int):
            raise RowsError(f"its key is {found!r}; a key is a text or a whole number")
        return found, values


@dataclass(frozen=True)
class _Spread:
    """Calls a function on blocks of places in the processes of a DataLoader."""

    workers: int

    def __call__(
        self, work: Callable[[Int64s], Result], blocks: Sequence[Int64s]
    ) -> Iterable[Result]:
        if self.workers < 1 or len(blocks) < 2:
            yield from map(work, blocks)
            return
        from torch.utils.data import DataLoader

        blocked: Any = _Blocks(work, blocks)
        workers = min(self.workers, len(blocks))
        for result in DataLoader(
            blocked, batch_size=None, num_workers=workers, collate_fn=_as_it_is
        ):
            if isinstance(result, RowsError):
                raise result
            yield result


@dataclass(frozen=True)
class _Blocks:
    """Blocks of places as a data set whose items are results."""

    work: Callable[[Int64s], Any]
    blocks: Sequence[Int64s]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.work(self.blocks[number])
        except RowsError as error:  # as a value: a DataLoader would bury it in a traceback
            return RowsError(str(error))


def _as_it_is(result: Any) -> Any:
    return result


def _iterable(dataset: Any) -> bool:
    module = sys.modules.get("torch.utils.data")  # its data sets cannot be there without it
    return module is not None and isinstance(dataset, module.IterableDataset)


def _require_map_style(dataset: Any) -> None:
    if _iterable(dataset) or not hasattr(dataset, "__getitem__"):
        raise RowsError(
            f"a {type(dataset).__name__} gives its items one after another; write them down once with "
            "TorchRows.from_iterable(dataset, folder, key=...)"
        )
    try:
        len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise RowsError(
            f"a {type(dataset).__name__} has no length, so its rows cannot be listed; give it __len__, or "
            "use TorchRows.from_iterable(dataset, folder, key=...)"
        ) from error


def _require_steady(source: _Items, keys: pa.Array) -> None:
    """RowsError when an item differs from one read to the next."""
    for place in sorted({int(p) for p in np.linspace(0, len(keys) - 1, _TRIED)}):
        try:
            first, *more = (source.check(place) for _ in range(1 + _AGAIN))
        except RowsError:
            continue  # broken, which is another matter
        for name, value in first.items():
            if any(hash_one(name, value) != hash_one(name, again[name]) for again in more):
                raise RowsError(
                    f"column {name!r} of row {keys[place].as_py()!r} differs from one read to the next: "
                    "the data set draws random transforms, and a student would learn from other rows than "
                    "the teacher saw. Take them out of the data set and pass them as a ViewPlan "
                    "(ViewedRows), which stores what was drawn"
                )
