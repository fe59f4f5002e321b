"""What exported weights measure on held-out rows, and whether that is what the record says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.exporting.described import ExportError
from stillroom.stages.exporting.parts import Trained
from stillroom.stages.exporting.whole import Asked, Whole, assembled
from stillroom.stages.loading import Loader
from stillroom.stages.streams import joined
from stillroom.stages.student import Record, Student
from stillroom.storage.keys import KeyList
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

NEAR = 1e-3
"""Sums in another order, as with more threads or on a GPU, move a metric by less."""


def measured(
    record: Record,
    student: Student,
    asked: Asked,
    trained: Trained,
    rows: Rows,
    keys: KeyList,
    *,
    evaluation: Evaluation,
    snapshot: Snapshot | None,
    same: bool,
) -> dict[str, Any]:
    """Metrics of the parts as they were read, on these rows.

    With `same` they must be those of the record: ExportError says which is not, as the rows or the code
    must then be others than the student was judged by.
    """
    reader = None
    if evaluation.signals:
        if snapshot is None:
            raise ExportError(
                f"the evaluation reads {', '.join(evaluation.signals)} of a teacher; give the snapshot"
            )
        reader = Reader(snapshot, evaluation.signals)
    columns = tuple(dict.fromkeys((*asked.columns, *evaluation.columns)))
    loader = Loader(rows, keys, columns, reader, batch_size=1024)
    every = replace(asked, layers={**student.layers, **asked.layers})
    whole = assembled(
        student, every, trained.module, trained.heads, trained.tables, trained.settings
    )
    metrics = evaluation.measure(_collected(whole, loader, asked.columns))
    if same:
        _require_same(record, metrics)
    return metrics


def _collected(whole: Whole, loader: Loader, names: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    tables: dict[str, Any] = {}
    with torch.inference_mode():
        for tensors in loader.ordered():
            given = {name: tensors[f"row.{name}"] for name in names}
            for name, value in (tensors | whole.everything(given)).items():
                if name.startswith("table."):
                    tables[name] = value
                elif isinstance(value, Tensor) and value.ndim:
                    found.setdefault(name, []).append(value)
    return {name: joined(values) for name, values in found.items()} | tables


def _require_same(record: Record, metrics: Mapping[str, Any]) -> None:
    for name, was in record.metrics.items():
        now = metrics.get(name)
        if not isinstance(was, float) or not isinstance(now, float):
            continue
        if not abs(now - was) <= NEAR * max(1.0, abs(was)):
            raise ExportError(
                f"student {record.name!r}, seed {record.seed}: {name} is {now:.6g} on these rows, its "
                f"record says {was:.6g}. The rows or the code are not those that it was measured with; "
                "train it again"
            )
