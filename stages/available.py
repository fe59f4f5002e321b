"""Rows that are there: what of each split a snapshot serves while teaching still runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.evaluating import Evaluation
from stillroom.stages.student import Student
from stillroom.storage.errors import RowsError
from stillroom.storage.keys import KeyIndex
from stillroom.storage.pairs import pair_keys
from stillroom.storage.snapshot import Snapshot


@dataclass(frozen=True)
class Available:
    """Splits without the rows that are still to be taught."""

    splits: Mapping[str, pa.Array]
    asked: Mapping[str, int] = field(default_factory=dict)
    """Rows of each split that was cut, before."""


def available_rows(
    students: Sequence[Student],
    splits: Mapping[str, pa.Array],
    evaluation: Evaluation,
    snapshot: Snapshot | None,
) -> Available:
    """Keep of each split the rows for which the snapshot serves all that any student reads there.

    All students of a split then train on the same rows, those that read no teacher among them. The
    split of the evaluation is cut by what the evaluation itself reads. Raises RowsError for a split
    of which nothing is there yet.
    """
    if snapshot is None:
        return Available(splits)
    index = KeyIndex(snapshot.keys)
    cut, asked = dict(splits), {}
    for name, keys in splits.items():
        kept = np.ones(len(keys), bool)
        for signal, views in _read(students, evaluation, name):
            # Of views all are needed: an epoch is of one of them.
            for view in range(1, views + 1) if views else [0]:
                positions = index.find(pair_keys(keys, view) if view else keys)
                kept &= (positions >= 0) & _served(snapshot, signal)[positions]
        if kept.all():
            continue
        if not kept.any():
            raise RowsError(
                f"snapshot {snapshot.number} serves none of the {len(keys):,} rows of split {name!r} yet; "
                "train once teaching has come to them"
            )
        cut[name], asked[name] = keys.filter(pa.array(kept)), len(keys)
    return Available(cut, asked)


def _read(students: Sequence[Student], evaluation: Evaluation, split: str) -> set[tuple[str, int]]:
    """Signals that are read of a split, each with the number of views."""
    found = {(s, st.fit.views) for st in students if split in st.splits for s in st.reads}
    if evaluation.split == split:
        found |= {(signal, 0) for signal in evaluation.signals}
    return found


def _served(snapshot: Snapshot, signal: str) -> NDArray[np.bool_]:
    """(rows,) bool by position: whether the signal's source serves it."""
    mine, _ = snapshot.find(signal)
    served = np.zeros(len(snapshot.keys), bool)
    for source, start, rows, *_ in snapshot.stretches():
        if source == mine:
            served[start : start + rows] = True
    return served
