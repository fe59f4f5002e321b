"""Ratings: what people or other services said about rows, read from a table of any shape.

Three shapes are read: a row for every rating, a column for every rater, and rows that are summed up
already (a column of votes or of probability for every class).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillroom.storage.errors import FormatError, RowsError, listed, nearest
from stillroom.storage.keys import KeyIndex, as_keys, check_unique
from stillroom.storage.pairs import is_pairs, spelled, split_keys

Table: TypeAlias = str | Path | pa.Table | Mapping[str, Any]
"""A .parquet, .arrow, .csv or .tsv file, an Arrow table, or arrays by name."""


@dataclass(frozen=True)
class Ratings:
    """Single ratings, in any order; or, where `raters` is None, a weight for each class of a row."""

    keys: pa.Array
    """The row that each rating, or each row of weights, is of."""
    raters: pa.Array | None
    """Who said it: (n,) texts."""
    said: pa.Array | NDArray[np.float64]
    """What was said: (n,) labels or numbers; or (n, classes) weights."""
    classes: tuple[str, ...] = ()
    """Of weights, the name of each column."""

    def of(self, keys: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For rows with these keys, which ratings are theirs: an order of the ratings in which every
        row's lie together by rater, and (rows + 1,) borders between rows.

        Ratings of other rows are left out. RowsError names rows without any, and pairs of a row and a
        rater that are there twice.
        """
        place = _found(keys, self.keys)
        if self.raters is None:
            check_unique(self.keys)
            rank = np.zeros(len(place), np.int64)
        else:
            # Ordered by name, and not by where a rater first occurs, so that other rows do not count.
            coded = self.raters.dictionary_encode()
            rank = np.argsort(np.argsort(coded.dictionary.to_numpy(zero_copy_only=False)))
            rank = rank[coded.indices.to_numpy(zero_copy_only=False)]
        order = np.lexsort([rank, place])
        order = order[np.searchsorted(place[order], 0) :]
        mine, who = place[order], rank[order]
        borders = np.searchsorted(mine, np.arange(len(keys) + 1))
        if len(empty := np.flatnonzero(np.diff(borders) == 0)):
            raise RowsError(
                f"{len(empty):,} of {len(keys):,} rows have no rating: "
                f"{listed(spelled(keys.take(pa.array(empty))))}. Teach only rows that were rated, or add "
                "theirs to the table"
            )
        twice = np.flatnonzero((np.diff(mine) == 0) & (np.diff(who) == 0))
        if self.raters is not None and len(twice):
            pairs = zip(
                spelled(keys.take(pa.array(mine[twice]))),
                self.raters.take(pa.array(order[twice])).to_pylist(),
                strict=True,
            )
            raise RowsError(
                f"{len(twice):,} ratings are there twice, by the same rater of the same row: "
                f"{listed(pairs)}. Keep one of each"
            )
        return order, borders


def long_ratings(
    table: Table, *, key: str = "key", rater: str = "rater", label: str = "label"
) -> Ratings:
    """A row for every rating: who said what of which row.

    RowsError for a column that is not there and for missing entries.
    """
    read = _table(table, texts=(key, rater, label))
    columns = [_column(read, name) for name in (key, rater, label)]
    for name, column in zip((key, rater, label), columns, strict=True):
        _require_all(name, column)
    return Ratings(as_keys(columns[0]), _texts(columns[1]), columns[2])


def wide_ratings(table: Table, *, key: str = "key", raters: Sequence[str] | None = None) -> Ratings:
    """A column for every rater (None: every column but the key); an empty cell is no rating."""
    read = _table(table, texts=(key, *(raters or ())), all_texts=raters is None)
    chosen = tuple(raters or (name for name in read.column_names if name != key))
    keys = _column(read, key)
    _require_all(key, keys)
    given = [_column(read, name) for name in chosen]
    if not given:
        raise RowsError(f"the table has no column beside {key!r}; one for every rater was expected")
    kind = given[0].type
    try:
        each = [column.cast(kind) for column in given]
    except pa.ArrowInvalid as error:
        raise RowsError(f"raters' columns are of several types: {error}") from error
    there = [column.is_valid() for column in each]
    return Ratings(
        as_keys(pa.concat_arrays([keys.filter(t) for t in there])),
        pa.concat_arrays(
            [pa.array([n] * t.true_count, pa.string()) for n, t in zip(chosen, there, strict=True)]
        ),
        pa.concat_arrays([c.filter(t) for c, t in zip(each, there, strict=True)]),
    )


def summed_ratings(table: Table, *, key: str = "key", classes: Sequence[str]) -> Ratings:
    """A column for every class, with its votes or its probability; named as the teacher's labels.

    RowsError for weights below zero, missing or not finite, and for rows in which all are zero.
    """
    read = _table(table, texts=(key,))
    keys = _column(read, key)
    _require_all(key, keys)
    columns = [_column(read, name) for name in classes]
    for name, column in zip(classes, columns, strict=True):
        _require_all(name, column)
    try:
        weights = np.stack(
            [c.cast(pa.float64()).to_numpy(zero_copy_only=False) for c in columns], 1
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RowsError(f"weights of classes must be numbers: {error}") from error
    keys = as_keys(keys)
    wrong = ~(np.isfinite(weights) & (weights >= 0)).all(axis=1) | (weights.sum(axis=1) <= 0)
    if wrong.any():
        raise RowsError(
            f"{wrong.sum():,} rows of weights hold one below zero, one that is no number, or only "
            f"zeros: {listed(spelled(keys.filter(pa.array(wrong))))}"
        )
    return Ratings(keys, None, weights, tuple(classes))


def _table(table: Table, texts: Sequence[str], all_texts: bool = False) -> pa.Table:
    """`texts`: columns of a CSV file whose spelling counts (a key 007 is no 7)."""
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, Mapping):
        return pa.table(
            {name: pa.array(list(column), from_pandas=True) for name, column in table.items()}
        )
    path = Path(table)
    if not path.is_file():
        raise FileNotFoundError(f"no table of ratings at {path}")
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path)
    if path.suffix in (".arrow", ".feather"):
        from pyarrow import feather

        return feather.read_table(path)
    if path.suffix not in (".csv", ".tsv"):
        raise FormatError(f"{path}: expected .parquet, .arrow, .feather, .csv or .tsv")
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
    names = csv.open_csv(path, parse_options=parse).schema.names if all_texts else texts
    convert = csv.ConvertOptions(
        column_types={name: pa.string() for name in names}, strings_can_be_null=True
    )
    return csv.read_csv(path, parse_options=parse, convert_options=convert)


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise RowsError(f"the table has no column {name!r}; {nearest(name, table.column_names)}")
    column = table.column(name).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _require_all(name: str, column: pa.Array) -> None:
    if column.null_count:
        first = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise RowsError(
            f"column {name!r} has {column.null_count:,} missing entries, the first at {first:,}; drop "
            "these rows of the table"
        )


def _texts(column: pa.Array) -> pa.Array:
    return pc.cast(column, pa.string())


def _found(keys: pa.Array, rated: pa.Array) -> NDArray[np.int64]:
    """The row of each rating, -1 where it is none of these. Views of a row share its ratings."""
    plain, view = split_keys(keys)
    if is_pairs(keys) and (view != 0).any():
        raise RowsError(
            "ratings are of rows, not of views of them; teach them over the rows as they are"
        )
    if plain.type != rated.type:
        try:  # as a CSV file spells them
            rated = rated.cast(plain.type)
        except pa.ArrowInvalid as error:
            raise RowsError(
                f"the rows' keys are {plain.type}, those of the ratings {rated.type}: {error}"
            ) from error
    return KeyIndex(plain).find(rated)
