"""loader: a snapshot's signals and a data set's columns as a source of batches for any torch trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows, find_rows, require_columns
from stillroom.stages.reading import Reading
from stillroom.stages.views.replay import Replay
from stillroom.storage.errors import (
    RowsError,
    SignalError,
    UnknownRowError,
    UnknownSignalError,
    nearest,
)
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.pairs import is_pairs, split_keys
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from stillroom.stages.feeding.feed import Feed


def loader(
    snapshot: Snapshot,
    signals: Sequence[str],
    *,
    rows: Rows | None = None,
    columns: Sequence[str] = (),
    keys: KeyList | None = None,
    batch_size: int = 256,
    shuffle: bool = True,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool = False,
    ragged: Literal["padded", "nested", "flat"] = "padded",
    parts: Sequence[str] = (),
    views: int = 0,
    prefetch: int = 2,
    workers: int = 0,
    pin_memory: bool | None = None,
    compare: bool = True,
) -> Feed:
    """Batches of signals, and of `columns` of the data set `rows`, joined by key.

    >>> for batch in loader(snapshot, ["logits"], rows=rows, columns=["x"]):  # doctest: +SKIP
    ...     batch["teacher.logits"], batch["row.x"], batch["batch.index"]

    A torch IterableDataset that is used as it is, or through `DataLoader(feed, batch_size=None)`. It
    gives an epoch for each iteration; `state_dict` and `load_state_dict` continue in the middle of
    one. Which rows are in which batch follows from `keys`, `seed` and the epoch's number alone.

    - `keys`: which rows, in any order; a key that is named twice comes twice. All of `rows` if none
      are given, and without `rows` all of the snapshot that are no views.
    - `batch_size`: rows of one rank. `rank` and `world_size` are those of torch.distributed where it
      was begun, else 0 of 1. Every rank gets the same number of batches, see `Shares`; `drop_last`
      leaves out the rows that fill no batch.
    - `ragged`: rows that differ in length arrive "padded" (`NAME.length` beside them), as a "nested"
      tensor, or "flat" (`NAME.offsets`). Signals named in `parts` arrive as their encoding's parts,
      such as `teacher.logits.indices` and `teacher.logits.values`.
    - `views`: epoch e (from 0) is of view 1 + e mod `views`, replayed from `rows` and checked against
      what the teacher saw; 0: rows as they are.
    - `prefetch` batches are made ahead on a thread, or by each of `workers` processes. `pin_memory`
      puts them where a GPU copies from; None: where there is a GPU.
    - `compare`: hash the rows and refuse those that are not what the teachers answered for.

    All this is checked here, before the first batch: UnknownSignalError and UnknownRowError name
    signals and rows that were never taught, RowsError rows or columns that the data set lacks, that
    changed, or that are fewer than ranks; ViewError where the snapshot holds no such views.
    """
    for name, given in (("signals", signals), ("columns", columns), ("parts", parts)):
        if isinstance(given, str):
            raise TypeError(f"{name}: expected a list of names, found the text {given!r}")
    if ragged not in ("padded", "nested", "flat"):
        raise ValueError(f"ragged: expected 'padded', 'nested' or 'flat', found {ragged!r}")
    for name, number in (("views", views), ("prefetch", prefetch), ("workers", workers)):
        if number < 0:
            raise ValueError(f"{name}: expected 0 or more, found {number}")
    signals = tuple(signals)
    _require_signals(snapshot, signals, parts)
    wanted = _chosen(snapshot, rows, keys)
    if rows is None and (columns or views):
        raise RowsError(
            f"{'columns' if columns else 'views'} come from a data set, and none is given: rows="
        )
    if rows is not None:
        find_rows(rows, wanted)
        if not views:
            require_columns(rows, columns, "the loader")
    reader, replay = Reader(snapshot, signals), None
    if views:
        assert rows is not None
        replay = Replay(rows, snapshot, wanted, views=views, signals=signals)
        _require_taught(reader, replay.positions.reshape(-1))
    else:
        _require_taught(reader, snapshot.positions(wanted) if signals else np.zeros(0, np.int64))
    if compare and rows is not None and not is_pairs(wanted):
        _require_unchanged(rows, snapshot, wanted, signals, tuple(columns), views)

    # Not before: what is wrong above is said without torch.
    import torch

    from stillroom.stages.feeding.feed import Feed, Making
    from stillroom.stages.feeding.order import Order, Shares
    from stillroom.stages.loading import Loader

    if rank is None or world_size is None:
        spread = torch.distributed.is_available() and torch.distributed.is_initialized()
        if rank is not None or world_size is not None:
            raise ValueError("rank and world_size belong together: give both, or neither")
        rank, world_size = (
            (torch.distributed.get_rank(), torch.distributed.get_world_size()) if spread else (0, 1)
        )
    shares = Shares(batch_size, rank, world_size, drop_last)
    pin = torch.cuda.is_available() if pin_memory is None else pin_memory
    # What talks to an object store does not survive a fork.
    making = Making(prefetch, workers, pin, spawned=not isinstance(snapshot.cache, Path))
    made = Loader(
        *(rows, wanted, columns, reader if signals else None),
        batch_size=batch_size,
        seed=seed,
        replay=replay,
        parts=parts,
        ragged=ragged,
    )
    return Feed(made, Order(len(wanted), seed, shuffle), shares, views, making)


def _require_signals(snapshot: Snapshot, signals: Sequence[str], parts: Sequence[str]) -> None:
    """UnknownSignalError names all that the snapshot lacks, SignalError what has no parts."""
    lacking = []
    for name in signals:
        try:
            snapshot.find(name)
        except UnknownSignalError:
            lacking.append(name)
    if lacking:
        close = "; ".join(f"{name!r}: {nearest(name, snapshot.signals)}" for name in lacking)
        raise UnknownSignalError(
            f"snapshot {snapshot.number} of {snapshot.cache} lacks {len(lacking)} of the signals asked "
            f"for. {close}"
        )
    if others := set(parts) - set(signals):
        raise SignalError(f"parts: {', '.join(sorted(others))} are not among the signals asked for")


def _chosen(snapshot: Snapshot, rows: Rows | None, keys: KeyList | None) -> pa.Array:
    if keys is not None:
        return as_keys(keys)
    if rows is not None:
        return rows.keys
    plain, view = split_keys(snapshot.keys)
    return plain.filter(pa.array(view == 0))


def _require_taught(reader: Reader, positions: NDArray[np.int64]) -> None:
    """UnknownRowError with a line for every signal that some of these rows lack."""
    try:
        reader.require(positions)
    except UnknownRowError as error:
        said = [str(error)]
        for name in reader.names:
            try:
                Reader(reader.snapshot, [name], check=False).require(positions)
            except UnknownRowError as one:
                said += [str(one)] if str(one) not in said else []
        raise UnknownRowError("\n".join(said)) from None


def _require_unchanged(
    rows: Rows,
    snapshot: Snapshot,
    keys: pa.Array,
    signals: tuple[str, ...],
    columns: tuple[str, ...],
    views: int,
) -> None:
    """RowsError where a teacher answered for other content than the rows have now."""
    reading = Reading(rows, snapshot, {"loader": keys})
    if views:
        reading.viewed(columns, signals, "loader", views)
        return
    for name in signals:
        reading.teacher(name, "loader")
