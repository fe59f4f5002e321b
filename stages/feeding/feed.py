"""Feed: batches by row key as a torch data set, for whoever brings the trainer."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stillroom.stages.data.row_hashes import hash_whole
from stillroom.stages.feeding.ahead import ahead
from stillroom.stages.feeding.order import Int64s, Order, Shares
from stillroom.stages.loading import Loader, Tensors
from stillroom.storage.errors import RowsError


@dataclass(frozen=True)
class Making:
    """Who makes the batches, and how early."""

    prefetch: int = 2
    """Batches made before they are asked for; with processes, by each of them. 0: none."""
    workers: int = 0
    """Processes that make them; 0: a thread of this process."""
    pin: bool = False
    """Whether tensors lie in page-locked memory, from which a GPU copies while others compute."""
    spawned: bool = False
    """Whether processes begin afresh instead of as forks of this one."""


@dataclass
class _At:
    """How far an iteration has come: rows of this epoch's order that all ranks took."""

    epoch: int
    rows: int


class Feed(IterableDataset[Tensors]):
    """Batches of one rank, an epoch for each iteration. `loader` makes it.

    A batch is a dict: `teacher.SIGNAL` and `row.COLUMN`, tensors of n rows (texts: lists), and
    `batch.index` (n,) int64, the rows' places in `keys`.

    Iterating gives the rest of an epoch after `load_state_dict`, and else a whole one: the next after
    one that was gone through, the same again after one that was left in the middle.
    """

    def __init__(
        self, loader: Loader, order: Order, shares: Shares, views: int, making: Making
    ) -> None:
        """RowsError where there are fewer rows than ranks."""
        self._loader, self._order, self._shares = loader, order, shares
        self._views, self._making = views, making
        self._borders = shares.borders(0, order.rows)
        self._at, self._resumed = _At(0, 0), False

    @property
    def keys(self) -> pa.Array:
        """The keys of all ranks' rows: Arrow int64 or large_string."""
        return self._loader.keys

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or comes next; they count from 0."""
        return self._at.epoch

    def __len__(self) -> int:
        """Batches in an epoch, the same for every rank."""
        return len(self._borders) - 1

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; what `load_state_dict` said of the same one stays true.

        Where a DataLoader's own processes iterate (`num_workers`), call it before every epoch: this
        object does not see how far they come.
        """
        if epoch < 0:
            raise ValueError(f"epoch: expected 0 or more, found {epoch}")
        if epoch != self._at.epoch:
            self._at, self._resumed = _At(int(epoch), 0), False

    def __iter__(self) -> Iterator[Tensors]:
        """The rest of the epoch after `load_state_dict`, else one from its beginning."""
        # One of its own for each iteration: one that was left does not move the next one's.
        self._at = at = _At(self._at.epoch, self._at.rows if self._resumed else 0)
        self._resumed = False
        return self._iterate(at, get_worker_info())

    def _iterate(self, at: _At, worker: Any) -> Generator[Tensors, None, None]:
        epoch, borders = at.epoch, self._shares.borders(at.rows, self._order.rows).tolist()
        spans = list(pairwise(borders))
        if worker is not None:  # in turn, so that the order is that of one process
            spans = spans[worker.id :: worker.num_workers]
        made = self._made(epoch, spans, alone=worker is None)
        try:
            for number, batch in enumerate(made, 1):
                at.rows = spans[number - 1][1]
                if number == len(spans):
                    at.epoch, at.rows = epoch + 1, 0
                yield batch
        finally:
            made.close()
        if not spans:
            at.epoch, at.rows = epoch + 1, 0

    def _made(
        self, epoch: int, spans: list[tuple[int, int]], alone: bool
    ) -> Generator[Tensors, None, None]:
        """The batches of these spans, made wherever they are to be made."""
        order, view = self._order.of(epoch), 1 + epoch % max(self._views, 1)
        asked = [(order[self._shares.part(*span)], view) for span in spans]
        making = self._making if alone else Making(prefetch=0)
        one = _One(self._loader)
        if making.workers and asked:
            return _processes(one, asked, making)
        batches = _each(one, asked, making.pin)
        return ahead(batches, making.prefetch) if making.prefetch and asked else batches

    def state_dict(self, *, batches: int | None = None) -> dict[str, Any]:
        """Where the newest iteration stands: after the batch that it gave last. Plain JSON.

        It is the same on every rank, and continues with another batch size, world size or number of
        workers as well: the rows that are left of the epoch are then cut anew. `batches` says how many
        batches of the epoch were taken, where this object cannot know: see `set_epoch`.
        """
        at = self._at
        if batches is not None:
            if not 0 <= batches <= len(self):
                raise ValueError(f"batches: expected 0 to {len(self)}, found {batches}")
            at = _At(at.epoch, int(self._borders[batches]))
            if batches == len(self):
                at = _At(at.epoch + 1, 0)
        return {"epoch": at.epoch, "rows": at.rows, **self._described}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` stood: the next iteration gives the rest of that epoch, bit by bit.

        RowsError where the state is of another order (other keys, seed, shuffle or number of views),
        or where fewer rows are left than there are ranks.
        """
        for name, mine in self._described.items():
            if state.get(name) != mine:
                raise RowsError(
                    f"the state is of another order of rows: its {name} is {state.get(name)!r}, this "
                    f"loader's is {mine!r}. Make the loader with the keys and settings of then, or "
                    "begin an epoch: set_epoch()"
                )
        epoch, rows = state.get("epoch"), state.get("rows")
        if not isinstance(epoch, int) or not isinstance(rows, int) or epoch < 0:
            raise RowsError(f"the state names no place: epoch {epoch!r}, rows {rows!r}")
        if not 0 <= rows < self._order.rows:
            raise RowsError(
                f"the state is at row {rows:,} of an epoch of {self._order.rows:,} rows"
            )
        self._shares.borders(rows, self._order.rows)
        self._at, self._resumed = _At(epoch, rows), True

    @cached_property
    def _described(self) -> dict[str, Any]:
        """What decides the order of rows, and of which view they are."""
        return {
            "seed": self._order.seed if self._order.shuffle else None,
            "shuffle": self._order.shuffle,
            "views": self._views,
            "keys": hash_whole([("", self.keys)]),
        }


class _One:
    """A data set whose items are batches: asked for by what is in them."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getitem__(self, asked: tuple[Int64s, int]) -> Tensors:
        chosen, view = asked
        return {**self._loader.batch(chosen, view), "batch.index": torch.from_numpy(chosen.copy())}


def _each(one: _One, asked: list[tuple[Int64s, int]], pin: bool) -> Generator[Tensors, None, None]:
    for some in asked:
        batch = one[some]
        if pin:
            batch = {n: t.pin_memory() if hasattr(t, "pin_memory") else t for n, t in batch.items()}
        yield batch


def _processes(
    one: _One, asked: list[tuple[Int64s, int]], making: Making
) -> Generator[Tensors, None, None]:
    """The batches in their order, from processes that live as long as this is held."""
    dataset: Any = one
    batches: Any = DataLoader(
        dataset,
        batch_size=None,
        sampler=asked,
        num_workers=min(making.workers, len(asked)),
        prefetch_factor=max(making.prefetch, 1),
        collate_fn=_as_it_is,
        pin_memory=making.pin,
        multiprocessing_context="spawn" if making.spawned else None,
    )
    try:
        yield from batches
    except Exception as error:
        # Its frames would hold the processes as long as it is held, and then end them in an order in
        # which torch waits five seconds for each. Where it came from is in the message.
        raise error.with_traceback(None)  # noqa: B904


def _as_it_is(batch: Any) -> Any:
    return batch
