"""The log of a student: every step of its training as one row of a Parquet file, `log.parquet`.

Written whole whenever a checkpoint is and at the end, so that a training that goes on from its checkpoint
goes on with its log, without a row twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stillroom.stages.listeners.tensor_board import EventFile
from stillroom.stages.term import Term
from stillroom.storage.files import write_atomic

LOG = "log.parquet"
_FIRST: tuple[tuple[str, pa.DataType], ...] = (
    ("epoch", pa.int32()),
    ("step", pa.int64()),
    ("rows", pa.int32()),
    ("loss", pa.float64()),
    ("learning_rate", pa.float64()),
    ("seconds", pa.float32()),
)


class StudentLog:
    """Steps as they are made, epochs as they end.

    | column | |
    |---|---|
    | `epoch`, `step` | from 1; steps are counted over the whole training, one a batch |
    | `rows` | of the student's own in the batch |
    | `loss` | of the batch; its mean weighted by `rows` is the epoch's |
    | `learning_rate` | of the first group of the optimiser in that step; null without an optimiser |
    | `seconds` | of the step itself, without the gathering of its batch |
    | `term.NAME` | the mean of a term, not weighted; null where the recipe has a step of its own |
    | `fit_seconds` | of the training so far, in the last row of each epoch, null in the others |
    | `metric.NAME`, `validation.NAME` | what was measured after that epoch, in its last row |
    """

    def __init__(self, folder: Path, terms: Sequence[Term], board: Path | None = None) -> None:
        """Nothing is read or written yet. With `board`, a folder, an event file for TensorBoard is
        written there whenever an epoch ends: it has the same names over steps."""
        self._place, self._board = folder / LOG, board
        self._events: EventFile | None = None
        self._names = _apart([f"term.{term.label}" for term in terms])
        self._whole: list[pa.Table] = []
        """Of epochs that have ended."""
        self._steps: list[tuple[int, int, int, float, float, float]] = []
        self._means: list[list[Any]] = []

    def take_up(self, epoch: int) -> None:
        """Keep what was written up to the end of an epoch; a file that cannot be read is begun anew."""
        import pyarrow.parquet as pq

        self._whole = []
        try:
            kept = pq.read_table(self._place) if epoch else None
            if kept is not None:
                self._whole = [kept.filter(pc.less_equal(kept["epoch"], epoch))]
        except (OSError, pa.ArrowException, LookupError):
            return

    def step(
        self,
        *,
        epoch: int,
        step: int,
        rows: int,
        loss: float,
        rate: float,
        seconds: float,
        means: Sequence[Any],
    ) -> None:
        """A step. The terms' means (0-d tensors) are asked for their numbers when the epoch ends, so
        that no GPU is waited for."""
        self._steps.append((epoch, step, rows, loss, rate, seconds))
        if means:
            self._means.append([mean.detach() for mean in means])

    def epoch_done(self, fit_seconds: float, point: Mapping[str, Any]) -> None:
        """The end of an epoch: seconds so far, and its point of the curve where it was evaluated."""
        if not self._steps:
            return
        columns = dict(
            zip((name for name, _ in _FIRST), zip(*self._steps, strict=True), strict=True)
        )
        made = {n: pa.array(columns[n], kind, from_pandas=True) for n, kind in _FIRST}
        if len(self._means) == len(self._steps):
            for name, means in zip(self._names, zip(*self._means, strict=True), strict=True):
                made[name] = pa.array(_numbers(means), pa.float32())
        measured = {f"metric.{n}": v for n, v in point.items() if n not in ("epoch", "loss")}
        measured |= {f"validation.{n}": v for n, v in point.get("validation", {}).items()}
        ends = {n: v for n, v in measured.items() if isinstance(v, float)}
        for name, value in {"fit_seconds": fit_seconds, **ends}.items():
            made[name] = pa.array([None] * (len(self._steps) - 1) + [value], pa.float64())
        table = pa.table(made)
        self._whole.append(table)
        self._steps, self._means = [], []
        if self._board is not None:
            self._events = self._events or EventFile(self._board)
            _tell(self._events, table)

    def write(self) -> None:
        """Write all epochs that have ended."""
        import pyarrow.parquet as pq

        if not self._whole:
            return
        # One table from now on: the next write need not join what this one has.
        self._whole = [pa.concat_tables(self._whole, promote_options="permissive").combine_chunks()]
        sink = pa.BufferOutputStream()
        pq.write_table(self._whole[0], sink)
        write_atomic(self._place, [sink.getvalue()])

    def close(self) -> None:
        """Nothing more is told to TensorBoard."""
        if self._events is not None:
            self._events.close()
            self._events = None


def read_log(folder: Path) -> pa.Table:
    """A student's log; FileNotFoundError for one that was trained before there were any."""
    import pyarrow.parquet as pq

    if not (folder / LOG).exists():
        raise FileNotFoundError(
            f"{folder} has no {LOG}: this student was trained by a version that wrote none"
        )
    return pq.read_table(folder / LOG)


def _numbers(means: Sequence[Any]) -> Any:
    import torch

    return torch.stack(list(means)).float().cpu().numpy()


def _apart(names: Sequence[str]) -> list[str]:
    """Terms of one name get numbers."""
    return [
        name if name not in names[:place] else f"{name}-{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]


def _tell(events: EventFile, table: pa.Table) -> None:
    steps = table["step"].to_pylist()
    for name in table.column_names:
        if name in ("epoch", "step", "rows"):
            continue
        for step, value in zip(steps, table[name].to_pylist(), strict=True):
            if value is not None and math.isfinite(value):
                events.scalar(name, value, step)
    events.flush()
