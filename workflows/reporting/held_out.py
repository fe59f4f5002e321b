"""The held-out rows of a run: what a page needs to show where a student and its teacher differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Batch, Rows, find_rows, require_columns
from stillroom.stages.differing import Apart, Differing, differing_rows, teacher_measured
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.student import Record, Student
from stillroom.storage.errors import StillroomError
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot
from stillroom.workflows.reporting.inputs import shown_inputs
from stillroom.workflows.spelling import finite, share

_BARS, _CHOICES = 24, 3
"""Bars of the histogram, and classes of each answer that a card names."""


@dataclass(frozen=True)
class HeldOut:
    """Rows that were held out, the students that may answer them, and how both are shown."""

    rows: Rows
    keys: KeyList
    """Of the rows that are held out."""
    students: Sequence[Student]
    """As they were trained; the page chooses the best, or those whose records it is given."""
    evaluation: Evaluation | None = None
    """With it the teacher gets its own line in the table, measured as students are."""
    signal: str = "logits"
    """The teacher's, as the cache calls it."""
    output: str = "logits"
    """The student's that is set beside it."""
    show: tuple[str, ...] = ()
    """Columns that are shown of each row; empty: the student's inputs."""
    label: str = ""
    """The column with the right class, where there is one."""
    classes: Sequence[str] = ()
    """Names of the classes, in order; empty: their numbers."""
    apart: Apart | None = None
    """How far apart both are, where it is not the KL divergence of logits or a distance."""
    apart_is: str = ""
    """What that is called and, behind a comma, its unit: "KL a character, bits"."""
    words: Callable[[Batch], Sequence[str]] | None = None
    """Makes a text of each row of a batch of `show`, such as of token ids; it is shown instead."""
    tables: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Those that the students were trained with, where an answer reads one."""

    def student_of(self, record: Record) -> Student:
        """The one that a record is of; StillroomError when it is not among them."""
        for student in self.students:
            if (student.name, student.seed) == (record.name, record.seed):
                return student
        raise StillroomError(f"no student {record.name!r} with seed {record.seed} was given")

    def measured(self) -> tuple[str, str]:
        """What is measured between the two, and its unit."""
        if self.apart is not None:
            what, _, unit = self.apart_is.partition(",")
            return what.strip() or "distance", unit.strip()
        logits = "logit" in self.signal
        return ("KL divergence", "nats") if logits else ("root mean squared difference", "")


def shown_differing(
    record: Record, held: HeldOut, snapshot: Snapshot, k: int = 12
) -> dict[str, Any]:
    """A student beside its teacher, as the page shows them: plain JSON with pictures as data: URIs.

    Where it cannot be, such as of a student that is another by now, `note` says why.
    """
    entry: dict[str, Any] = {"student": record.name, "seed": record.seed, "note": "", "rows": []}
    try:
        student = held.student_of(record)
        wanted = held.show or student.inputs
        require_columns(held.rows, wanted, "the page")
        reader = Reader(snapshot, [held.signal])
        found = differing_rows(
            *(record, student, held.rows, reader, held.keys),
            k=k,
            signal=held.signal,
            output=held.output,
            columns=_columns(held),
            apart=held.apart,
            tables=held.tables,
        )
    except StillroomError as error:
        return {**entry, "note": f"The rows on which they differ are not shown: {error}."}
    labels = _labels(held)
    finite_ones = found.every[np.isfinite(found.every)]
    counts, edges = np.histogram(finite_ones, bins=_BARS) if len(finite_ones) else _NOTHING
    choices = found.choices
    return {
        **entry,
        "what": held.measured()[0],
        "unit": held.measured()[1],
        "compared": len(found.every),
        "mean": _number(finite_ones.mean()) if len(finite_ones) else 0.0,
        "largest": _number(finite_ones.max()) if len(finite_ones) else 0.0,
        "edges": [_number(edge) for edge in edges],
        "counts": [int(count) for count in counts],
        "agree": float((choices[:, 0] == choices[:, 1]).mean()) if len(choices) else None,
        "right": _right(choices, labels),
        "rows": _rows(found, held, wanted, labels),
    }


def teacher_reference(
    held: HeldOut, snapshot: Snapshot, name: str, parameters: int | None = None
) -> dict[str, Any] | None:
    """The teacher's own line: its cached answers, measured as a student's are; None where they cannot
    be, as the evaluation reads nothing that is the teacher's."""
    evaluation = held.evaluation
    if evaluation is None or held.signal not in evaluation.signals:
        return None
    try:
        metrics = teacher_measured(
            held.rows, Reader(snapshot, evaluation.signals), held.keys, evaluation
        )
    except (StillroomError, KeyError, RuntimeError, ValueError, TypeError):
        return None  # a measure that reads an output which no teacher gives
    numbers = {n: v for n, v in metrics.items() if isinstance(v, float) and finite(v)}
    numbers.pop("agreement", None)  # with itself
    return {
        "name": name,
        "what": "teacher",
        "parameters": parameters,
        "metrics": numbers,
        "reliability": list(metrics.get("reliability") or ()),
    }


_NOTHING: tuple[NDArray[Any], NDArray[Any]] = (np.zeros(1, int), np.array([0.0, 1.0]))


def _columns(held: HeldOut) -> tuple[str, ...]:
    """Columns that `apart` may read: numbers alone, as the evaluation names them."""
    return () if held.evaluation is None else held.evaluation.columns


def _labels(held: HeldOut) -> NDArray[Any] | None:
    """(n,) of the held-out rows, where the label is one number for each."""
    if not held.label:
        return None
    places = find_rows(held.rows, as_keys(held.keys))
    found = np.asarray(held.rows.read(places, [held.label])[held.label])
    return found if found.ndim == 1 and found.dtype.kind in "iub" else None


def _right(choices: NDArray[np.int64], labels: NDArray[Any] | None) -> dict[str, int] | None:
    if labels is None or len(choices) != len(labels):
        return None
    student, teacher = (choices[:, side] == labels for side in (0, 1))
    return {
        "both": int((student & teacher).sum()),
        "student": int((student & ~teacher).sum()),
        "teacher": int((~student & teacher).sum()),
        "neither": int((~student & ~teacher).sum()),
    }


def _rows(
    found: Differing, held: HeldOut, columns: Sequence[str], labels: NDArray[Any] | None
) -> list[dict[str, Any]]:
    keys = as_keys(held.keys)
    at = {key: place for place, key in enumerate(keys.to_pylist())}
    batch = held.rows.read(find_rows(held.rows, as_keys(found.keys)), list(columns))
    if held.words is None:
        inputs = shown_inputs(batch, columns, len(found.keys))
    else:
        texts: Batch = {"text": list(held.words(batch))}
        inputs = shown_inputs(texts, ("text",), len(found.keys))
    return [
        {
            "key": str(key),
            "apart": _number(found.apart[row]),
            "label": None if labels is None else _class(held, int(labels[at[key]])),
            "teacher": _answer(held, found.teacher[row]),
            "student": _answer(held, found.student[row]),
            "inputs": inputs[row],
        }
        for row, key in enumerate(found.keys)
    ]


def _answer(held: HeldOut, answer: NDArray[np.float32]) -> str:
    """Classes with their probabilities, of logits; of anything else its first numbers."""
    if answer.ndim != 1:
        places = " \N{MULTIPLICATION SIGN} ".join(f"{n:,}" for n in answer.shape)
        return f"{places} numbers"
    if "logit" not in held.signal or len(answer) < 2:
        first = ", ".join(f"{value:.3g}" for value in answer[:6].tolist())
        return first if len(answer) <= 6 else f"{first}, …"
    if not np.isfinite(answer).any():
        return "no number"
    shares = np.exp((answer - np.nanmax(answer)).astype(np.float64))
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")[:_CHOICES]
    named = [f"{_class(held, int(c))} ({share(float(shares[c]), 0)})" for c in best]
    return ", ".join(named[: max(1, int((shares[best] >= 0.005).sum()))])


def _class(held: HeldOut, number: int) -> str:
    return held.classes[number] if 0 <= number < len(held.classes) else str(number)


def _number(value: Any) -> float:
    """Six figures: the last bits of a sum say nothing, and would make equal runs differ."""
    return float(f"{float(value):.6g}") if np.isfinite(value) else 0.0


def best_taught(records: Sequence[Record], results: Mapping[str, Any]) -> Record | None:
    """The first seed of the student that reads a teacher and is best by the page's metric."""
    from stillroom.workflows.reporting.comparing import best_of
    from stillroom.workflows.reporting.metrics import metrics_from

    taught = [s for s in results["students"] if s["uses_teacher"]]
    main = next((m for m in metrics_from(results["metrics"]) if m.name == results["main"]), None)
    chosen = best_of(taught, main) if main else None
    names = [chosen["name"]] if chosen else [s["name"] for s in taught]
    return next((r for name in names[:1] for r in records if r.name == name), None)
