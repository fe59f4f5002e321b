"""In which order rows come, and which rank gets which of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.errors import RowsError

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order of rows in every epoch; the same on every rank, whatever the batch size."""

    rows: int
    seed: int
    shuffle: bool

    def of(self, epoch: int) -> Int64s:
        """(rows,) int64: a permutation that seed and epoch decide, or 0, 1, 2, ... unshuffled."""
        if not self.shuffle:
            return np.arange(self.rows)
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)


@dataclass(frozen=True)
class Shares:
    """How an order is cut into batches, and each batch into the parts of the ranks.

    Every rank gets the same number of batches, or ranks would wait for each other for ever. A batch
    of all ranks holds `batch_size * world_size` rows, `batch_size` for each. What is left at the end
    is a batch of its own, shared out evenly; where that would leave a rank with fewer than two rows
    (batch norm cannot train on one), it joins the batch before, whose parts are then up to two rows
    larger. With `drop_last` it is left out, and every part has exactly `batch_size` rows.
    """

    batch_size: int
    """Rows of one rank in one batch."""
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        """ValueError for a size below one or a rank that is not there."""
        if self.batch_size < 1 or self.world_size < 1:
            raise ValueError(
                f"batch_size and world_size: expected at least 1, found {self.batch_size} and "
                f"{self.world_size}"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank: expected 0 to {self.world_size - 1}, as there are {self.world_size} ranks; "
                f"found {self.rank}"
            )

    @property
    def together(self) -> int:
        """Rows that all ranks take in one batch."""
        return self.batch_size * self.world_size

    def borders(self, start: int, rows: int) -> Int64s:
        """Where batches of all ranks begin and end in an order of so many rows, from `start` on.

        (batches + 1,) int64, `start` first. RowsError where there are fewer rows than ranks, or, with
        `drop_last`, than make one whole batch of an epoch.
        """
        left = rows - start
        needed = self.together if self.drop_last else self.world_size
        if left < needed and not (self.drop_last and start):
            raise RowsError(
                f"{left:,} rows {'are left of this epoch' if start else 'were chosen'}, and one batch of "
                f"{self.world_size} ranks takes {needed:,}"
                f"{' (drop_last)' if self.drop_last else ' at least'}; take fewer ranks"
                f"{' or smaller batches' if self.drop_last else ''}"
                f"{', or go on with the next epoch: set_epoch()' if start else ''}"
            )
        borders = np.arange(start, rows + 1, self.together)
        rest = rows - int(borders[-1])
        if self.drop_last or rest == 0:
            return borders
        if rest < min(2 * self.world_size, self.together) and len(borders) > 1:
            borders[-1] = rows
            return borders
        return np.append(borders, rows)

    def part(self, start: int, stop: int) -> slice:
        """This rank's part of the batch of all ranks that lies there."""
        rows = stop - start
        return slice(
            start + rows * self.rank // self.world_size,
            start + rows * (self.rank + 1) // self.world_size,
        )
