"""What can be known to be wrong with students before the first of them trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows, require_columns
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.student import Student
from stillroom.stages.views.replay import base_columns
from stillroom.storage.errors import (
    NotACacheError,
    RowsError,
    UnknownSignalError,
    listed,
    nearest,
)
from stillroom.storage.keys import KeyList
from stillroom.storage.snapshot import Snapshot


def check_students(
    students: Sequence[Student],
    rows: Rows,
    snapshot: Snapshot | None,
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
) -> None:
    """Everything that can be known to be wrong before the first student trains."""
    seen: set[tuple[str, int]] = set()
    for student in students:
        if (student.name, student.seed) in seen:
            raise ValueError(
                f"two students are called {student.name!r} with seed {student.seed}; give each its name"
            )
        seen.add((student.name, student.seed))
        columns = base_columns(student.columns) if student.fit.views else student.columns
        require_columns(rows, columns, f"student {student.name!r}")
        _require_signals(student.reads, snapshot, f"recipe {student.recipe.name!r}")
        _require_tokenizer(student, snapshot)
        if student.fit.views and snapshot is None:
            raise NotACacheError(
                f"student {student.name!r} trains on views, which are replayed from a cache; give "
                "train() the snapshot that teach() returned"
            )
        for split in (*student.splits, *([student.validation] * bool(student.validation))):
            if split not in splits:
                raise RowsError(f"no split {split!r}; {nearest(split, splits)}")
    require_columns(rows, evaluation.columns, "the evaluation")
    _require_signals(evaluation.signals, snapshot, "the evaluation")
    if evaluation.split not in splits:
        raise RowsError(f"no split {evaluation.split!r}; {nearest(evaluation.split, splits)}")


def require_tables(students: Sequence[Student], tables: Mapping[str, NDArray[Any]]) -> None:
    """ValueError for a table that a recipe reads and nobody gave."""
    for student in students:
        for name in student.recipe.tables:
            if name not in tables:
                raise ValueError(
                    f"student {student.name!r}: recipe {student.recipe.name!r} reads table.{name}, an "
                    f"array about no row; give it to train(): tables={{{name!r}: array}}"
                )


def _require_tokenizer(student: Student, snapshot: Snapshot | None) -> None:
    if student.tokenizer is None or snapshot is None or not student.reads:
        return
    from stillroom.stages.teachers.huggingface.agreement import require_tokenizer_of

    teachers = {}
    for name in student.reads:
        source = snapshot.sources[snapshot.find(name)[0]]
        teachers[source.teacher] = "tokenizer" in snapshot.identity(name)
    # Others read no texts; where none does, the first says so.
    for teacher in [t for t, reads_texts in teachers.items() if reads_texts] or list(teachers)[:1]:
        require_tokenizer_of(snapshot, teacher, student.tokenizer)


def _require_signals(signals: Sequence[str], snapshot: Snapshot | None, who: str) -> None:
    if signals and snapshot is None:
        raise NotACacheError(
            f"{who} reads {', '.join(signals)} of a teacher; give train() the snapshot that teach() "
            "returned"
        )
    for name in signals:
        assert snapshot is not None
        try:
            snapshot.find(name)
        except UnknownSignalError as error:
            if same := [n for n in snapshot.signals if n.endswith(f"/{name}")]:
                raise UnknownSignalError(
                    f"{who} reads {name!r}, and several teachers give one: {listed(same)}. Name the "
                    f"one that is meant: Student(signals={{{name!r}: {same[0]!r}}})"
                ) from None
            layers = f"layers={{..., {name!r}: 'module.name'}}"
            raise UnknownSignalError(
                f"{who} reads {name!r}: {error}. To make it, run teach() with a teacher that gives it: "
                f"ModuleTeacher(..., {layers})"
            ) from None
