"""Rows of a Ray Data data set: written once by its own writer, then read in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.stages.data.arrow_columns import to_arrow
from stillroom.stages.data.parquet_rows import ParquetRows
from stillroom.stages.data.spool import Spooled, Spooling
from stillroom.storage.errors import RowsError, nearest


def from_ray_dataset(
    dataset: Any,
    folder: str | Path,
    *,
    key: str,
    sort: bool = True,
    version: str = "",
    again: bool = False,
    said: Callable[[Spooled], object] = lambda spooled: None,
) -> ParquetRows:
    """Rows of a `ray.data.Dataset`: Parquet files in `folder`, which every worker must see.

    Ray's workers execute the data set once and write it; nothing but counts passes the driver. Columns
    are numbers, arrays of one shape, texts, bytes. `key` is the column that names each row; with `sort`
    rows are in the order of their keys, whatever order Ray finished them in (without, the same data
    set spooled again has another fingerprint, and is hashed again before nothing is taught).

    `version`, `again` and `said` are those of `TorchRows.from_iterable`. Needs `ray[data]`, which brings
    pandas. RowsError for what is no Ray data set, for a missing key column, and for keys that are not
    unique; the folder is then as it was.
    """
    if not type(dataset).__module__.startswith("ray.data"):
        raise RowsError(f"a {type(dataset).__name__} is no ray.data.Dataset")
    how = Spooling(Path(folder), key, version)
    found = None if again else how.found()
    if found is None:
        names = dataset.columns() or []
        if key not in names:
            raise RowsError(f"the data set has no column {key!r} for keys; {nearest(key, names)}")
        if sort:
            dataset = dataset.sort(key)
        with how.writing() as (temporary, seal):
            plain = dataset.map_batches(plain_table, batch_format="numpy")
            plain.write_parquet(str(temporary), compression="none")
            rows = ParquetRows(temporary, key=key)  # checks keys
            seal["rows"] = len(rows)
        found = how.written()
    said(found)
    return ParquetRows(found.path, key=key)


def plain_table(batch: Mapping[str, Any]) -> pa.Table:
    """A batch without Ray's own types: arrays as nested lists, texts and bytes as Arrow has them."""
    columns = {}
    for name, column in batch.items():
        texts = np.asarray(column).dtype.kind in "OU"
        columns[name] = to_arrow(name, np.asarray(column).tolist() if texts else column)
    return pa.table(columns)
