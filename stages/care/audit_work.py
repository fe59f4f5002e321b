"""One worker's part of an audit: ask the live teacher several times, compare stored rows with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.care.audit_logits import judged, sparse
from stillroom.stages.data.rows import Rows
from stillroom.stages.teachers.teacher import Answer, Teacher
from stillroom.stages.worker.asking import Asking
from stillroom.stages.worker.live import difference, live, magnitude
from stillroom.storage.encodings.head import Head
from stillroom.storage.encodings.product import Product
from stillroom.storage.errors import SignalError, StillroomError
from stillroom.storage.opening import open_rows, with_book
from stillroom.storage.pairs import spelled
from stillroom.storage.place import Place
from stillroom.storage.ragged import Ragged
from stillroom.storage.segment import Segment
from stillroom.storage.signal import Signal

Array = NDArray[Any]
_UNEVEN = (1, 5, 2, 3)
"""Batches of the second live pass: other sizes meet other code paths of a matrix product."""


@dataclass(frozen=True)
class AuditTask:
    """Rows of one shard to compare."""

    segment: str
    shard: int
    signals: tuple[str, ...]
    slots: NDArray[np.int64]
    """In the segment, rising."""
    places: NDArray[np.int64]
    """Of the same rows in the data set."""


@dataclass(frozen=True)
class RowVerdict:
    """One stored row of one signal beside the live answers."""

    segment: str
    shard: int
    signal: str
    key: str
    deviation: float
    """From the nearest live answer, after both went through the encoding; inf: no comparison."""
    rounding: float
    """What rounding to the encoding can add to a difference of the answers."""
    scale: float
    """The row's largest absolute live value."""
    band: float
    """The largest difference between live answers to this row."""
    why: str = ""
    """In words, where the deviation is no number."""


Verdicts = tuple[list[RowVerdict], dict[str, dict[str, float]]]


@dataclass(frozen=True)
class AuditWork:
    """Builds a worker; small enough to be sent to one."""

    teacher: Teacher
    rows: Rows
    cache: Place
    batch_size: int

    def __call__(self) -> AuditWorker:
        """Load the teacher in this process."""
        return AuditWorker(self)


class AuditWorker:
    """A loaded teacher that is asked for rows several times."""

    def __init__(self, work: AuditWork) -> None:
        """Load the teacher, and once more with another number of threads where it has one."""
        self._work = work
        self._answer = work.teacher.load()
        self._other = _with_more_threads(work.teacher) or self._answer

    def __call__(self, tasks: tuple[AuditTask, ...]) -> Verdicts:
        """Every row of these shards, and what the encodings lose of the live answers."""
        places = np.concatenate([task.places for task in tasks])
        unique, back = np.unique(places, return_inverse=True)
        lives = [
            live(self._asking(self._answer), unique),
            live(self._asking(self._other), unique, _UNEVEN * len(unique), reverse=True),
            live(self._asking(self._answer), unique, [3]),
        ]
        found: list[RowVerdict] = []
        losses: dict[str, dict[str, float]] = {}
        start = 0
        for task in tasks:
            at = back[start : start + len(task.places)]
            start += len(at)
            for name in task.signals:
                rows = [[live[name][i] for i in at] for live in lives]
                verdicts, loss = self._compared(task, name, rows)
                found += verdicts
                known = losses.setdefault(name, {})
                known |= {k: max(v, known.get(k, 0.0)) for k, v in loss.items()}
        return found, losses

    def _asking(self, answer: Answer) -> Asking:
        return Asking(self._work.teacher, answer, self._work.rows, self._work.batch_size)

    def _compared(
        self, task: AuditTask, name: str, lives: list[list[Any]]
    ) -> tuple[list[RowVerdict], dict[str, float]]:
        segment = Segment(self._work.cache / "segments" / task.segment)
        signal = segment.signals[name]
        keys = spelled(segment.keys.take(task.slots))

        def verdict(row: int, figures: Any, why: str) -> RowVerdict:
            deviation, rounding, scale, band = figures
            key = repr(keys[row])
            return RowVerdict(
                task.segment, task.shard, name, key, deviation, rounding, scale, band, why
            )

        try:
            signal = with_book(self._work.cache, signal)
            stored = _stored(segment, signal, task.slots)
        except StillroomError as error:
            each = range(len(keys))
            return [verdict(r, (np.inf, 0.0, 0.0, 0.0), str(error)) for r in each], {}
        found, losses = [], []
        for row in range(len(keys)):
            answers = [live[row] for live in lives]
            judged, loss = _row(signal, stored[row], answers)
            found.append(verdict(row, judged[:4], judged[4]))
            losses += [loss]
        names = {key for loss in losses for key in loss}
        return found, {key: max(loss.get(key, 0.0) for loss in losses) for key in names}


def _with_more_threads(teacher: Teacher) -> Answer | None:
    changed = _threaded(teacher)
    return None if changed is None else changed.load()


def _threaded(teacher: Any) -> Teacher | None:
    """The teacher with one thread more, also inside another; None where it has no number of threads."""
    names = {field.name for field in fields(teacher)} if is_dataclass(teacher) else set()
    if "threads" in names:
        changed: Teacher = replace(teacher, threads=teacher.threads + 1)
        return changed
    inner = _threaded(teacher.teacher) if "teacher" in names else None
    return None if inner is None else replace(teacher, teacher=inner)


def _stored(segment: Segment, signal: Signal, slots: NDArray[np.int64]) -> list[dict[str, Array]]:
    """The parts of each row as they were stored, each with one row (ragged: its elements)."""
    runs = [run for i, at in enumerate(slots) for run in segment.runs(signal.name, i, int(at), 1)]
    rows = open_rows(segment.path, signal, runs, check=True)
    parts = signal.unpacked(rows.read(np.arange(len(slots)), decode=False))
    return [
        {n: part[i] if isinstance(part, Ragged) else part[i : i + 1] for n, part in parts.items()}
        for i in range(len(slots))
    ]


_Judged = tuple[float, float, float, float, str]


def _row(
    signal: Signal, stored: Mapping[str, Array], lives: list[Any]
) -> tuple[_Judged, dict[str, float]]:
    """(deviation, rounding, scale, band, why) of one row, and the encoding's loss on it."""
    if signal.kind == "text":
        text = bytes(stored[""]).decode(errors="replace")
        band = float(len(set(lives)) > 1)
        return (
            float(text not in lives),
            0.0,
            0.0,
            band,
            "" if text in lives else "another text",
        ), {}
    arrays = [np.asarray(x) if signal.ragged else np.asarray(x)[None] for x in lives]
    length = len(next(iter(stored.values())))
    if all(len(array) != length for array in arrays):
        why = f"has {length} elements, the teacher gives {len(arrays[0])}"
        return (np.inf, 0.0, 0.0, 0.0, why), {}
    if arrays[0].shape[1:] != signal.inner_shape or arrays[0].dtype != signal.value_dtype:
        why = f"the teacher now gives {arrays[0].dtype} of row shape {arrays[0].shape[1:]}"
        return (np.inf, 0.0, 0.0, 0.0, why), {}
    band = max(difference(a, b) for a in arrays for b in arrays)
    scale = magnitude(arrays[0])
    # Of a head the hidden states are judged, which are what is stored.
    coding = signal.coding.states if isinstance(signal.coding, Head) else signal.coding
    try:
        coded = [coding.encode(array) for array in arrays]
        decoded = [coding.decode(parts, signal.inner_shape) for parts in coded]
        loss = {} if signal.encoding == "raw" else coding.error(arrays[0], decoded[0])
    except SignalError as error:
        return (np.inf, 0.0, scale, band, f"the live answer cannot be encoded: {error}"), {}
    if any(_identical(stored, parts) for parts in coded):
        return (0.0, 0.0, scale, band, ""), loss
    if sparse(coding):
        deviation, rounding, why = judged(coding, stored, arrays[0])
        return (deviation, rounding, scale, band, why), loss
    if isinstance(coding, Product):
        try:
            return (coding.excess(stored, arrays[0]), 0.0, scale, band, ""), loss
        except StillroomError as error:
            return (np.inf, 0.0, scale, band, str(error)), loss
    try:
        mine = coding.decode(stored, signal.inner_shape)
    except StillroomError as error:
        return (np.inf, 0.0, scale, band, str(error)), loss
    deviation = min(difference(mine, theirs) for theirs in decoded)
    # A value beside a rounding border falls to either side of it: once this far, once that far.
    rounding = 2 * max(difference(a, d) for a, d in zip(arrays, decoded, strict=True))
    return (deviation, rounding, scale, band, "" if np.isfinite(deviation) else "NaN"), loss


def _identical(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(
        one[n].shape == other[n].shape and one[n].tobytes() == other[n].tobytes() for n in other
    )
