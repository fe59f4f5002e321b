"""Streams: a student's own rows and those of further splits, joined into one batch."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillroom.stages.loading import Loader, Tensors
from stillroom.stages.recipe import INDEX, MAIN

Int64s = NDArray[np.int64]


class Streams:
    """Batches of a student's own split with as many rows of every other stream behind them.

    Which rows of a stream a batch holds is decided by the seed and by how many rows came before: the
    stream is gone through in one random order after another. `batch.NAME` (n,) bool marks a stream's
    rows, `batch.main` the student's own; `batch.index` (n,) int64 are their places in the split's
    keys, -1 for rows of other streams.
    """

    def __init__(
        self,
        main: Loader,
        beside: Mapping[str, Loader] | None = None,
        *,
        seed: int = 0,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """`names`: the recipe's name for a signal, and the cache's."""
        self._main, self._beside, self._seed = main, dict(beside or {}), seed
        self._names = {given: name for name, given in (names or {}).items() if given != name}
        self._orders: dict[str, tuple[int, Int64s]] = {}
        self.keys = main.keys

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._main)

    def epoch(self, number: int) -> Iterator[tuple[Int64s, Tensors]]:
        """Shuffled batches: indices of the student's own rows, and the tensors of all."""
        gone = (number - 1) * len(self.keys)
        for chosen, tensors in self._main.epoch(number):
            yield chosen, self._joined(chosen, tensors, number, gone)
            gone += len(chosen)

    def batch(self, number: int, chosen: Int64s, gone: int) -> Tensors:
        """A batch of `epoch` once more: its rows, and how many rows came before it in that epoch."""
        view = 1 if self._main.views == 0 else 1 + number % self._main.views
        gone += (number - 1) * len(self.keys)
        return self._joined(chosen, self._main.batch(chosen, view), number, gone)

    def named(self, names: Mapping[str, str]) -> Streams:
        """The same batches, with signals as another recipe calls them."""
        return Streams(self._main, self._beside, seed=self._seed, names=names)

    def first(self, rows: int = 2) -> Tensors:
        """The first rows of each stream: what shapes are taken from."""
        chosen = np.arange(min(rows, len(self.keys)))
        return self._joined(chosen, self._main.batch(chosen), 1, 0)

    def _joined(self, chosen: Int64s, main: Tensors, epoch: int, gone: int) -> Tensors:
        rows = len(chosen)
        if not self._beside:
            marks = {INDEX: torch.from_numpy(chosen), MAIN: torch.ones(rows, dtype=torch.bool)}
            return self.renamed({**main, **{f"batch.{n}": t for n, t in marks.items()}})
        each = [main]
        for name, loader in self._beside.items():
            view = 1 if loader.views == 0 else 1 + epoch % loader.views
            each.append(loader.batch(self._drawn(name, len(loader.keys), gone, rows), view))
        tensors = self.renamed(_together(each))
        owner = np.repeat(np.arange(len(each)), rows)
        index = np.full(len(owner), -1, np.int64)
        index[:rows] = chosen
        tensors[f"batch.{INDEX}"] = torch.from_numpy(index)
        for place, name in enumerate((MAIN, *self._beside)):
            tensors[f"batch.{name}"] = torch.from_numpy(owner == place)
        return tensors

    def _drawn(self, name: str, rows: int, gone: int, count: int) -> Int64s:
        """Which rows of a stream are the next `count` after `gone`."""
        places = np.arange(gone, gone + count)
        drawn = np.empty(count, np.int64)
        for turn in np.unique(places // rows):
            mine = places // rows == turn
            drawn[mine] = self._order(name, rows, int(turn))[places[mine] % rows]
        return drawn

    def _order(self, name: str, rows: int, turn: int) -> Int64s:
        """A stream's order in one turn; kept, as many batches in a row are of the same."""
        if self._orders.get(name, (-1,))[0] != turn:
            drawn = np.random.default_rng([self._seed, zlib.crc32(name.encode()), turn])
            self._orders[name] = (turn, drawn.permutation(rows))
        return self._orders[name][1]

    def renamed(self, tensors: Tensors) -> Tensors:
        """`teacher.` names as the recipe has them."""
        if not self._names:
            return tensors
        made: Tensors = {}
        for name, tensor in tensors.items():
            origin, _, rest = name.partition(".")
            signal, dot, part = rest.partition(".")
            if origin == "teacher" and signal in self._names:
                name = f"teacher.{self._names[signal]}{dot}{part}"
            made[name] = tensor
        return made


def _together(each: Sequence[Tensors]) -> Tensors:
    return {name: _joined([tensors[name] for tensors in each]) for name in each[0]}


def _joined(values: Sequence[Any]) -> Any:
    if isinstance(values[0], list):
        return [text for some in values for text in some]
    return joined(values)


def joined(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches after one another; those of ragged rows, each as wide as its longest row, get the width
    of the widest, filled with zeros as their rows are."""
    sizes = [max(size) for size in zip(*(batch.shape[1:] for batch in batches), strict=True)]
    return torch.cat([_filled(batch, sizes) for batch in batches])


def _filled(batch: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    lacking = [wide - has for wide, has in zip(sizes, batch.shape[1:], strict=True)]
    if not any(lacking):
        return batch
    # The last axis first, in front and behind.
    return torch.nn.functional.pad(batch, [n for lack in reversed(lacking) for n in (0, lack)])
