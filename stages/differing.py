"""Where a trained student and its teacher differ: both on the held-out rows, the furthest apart first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.student import Record, Student
from stillroom.storage.errors import RowsError, StillroomError
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.loading import Loader

Apart = Callable[[Mapping[str, Any]], "Tensor"]
"""Tensors of n rows by name (student.*, teacher.*, row.*) -> (n,): how far apart the two are."""
_BATCH = 256


class NotAnsweringError(StillroomError, ValueError):
    """A student's answer that cannot be set beside its teacher's."""


@dataclass(frozen=True)
class Differing:
    """A student beside its teacher on rows that neither was asked for while training."""

    keys: list[Any]
    """Of the rows that are furthest apart, those first."""
    apart: NDArray[np.float64]
    """(k,) how far apart they are."""
    student: NDArray[np.float32]
    """(k, ...) what the student answers."""
    teacher: NDArray[np.float32]
    """(k, ...) what the cache holds of the teacher."""
    every: NDArray[np.float64]
    """(n,) how far apart all held-out rows are, in the order of the keys that were given."""
    choices: NDArray[np.int64]
    """(n, 2) the first choices of student and teacher, where each row has one vector of answers; else
    (0, 2)."""


def kl_apart(student: Tensor, teacher: Tensor, length: Tensor | None = None) -> Tensor:
    """(n,) KL divergence from the teacher's to the student's classes, nats; the mean over the places
    of a row, where it has several: of the first `length` (n,) of them, where rows differ.

    Both are logits (n, ..., classes). It is never negative, and zero only where both say the same.
    """
    theirs, mine = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    share = theirs.exp()
    # A class that the teacher excludes (-inf) adds nothing; 0 times infinity would be a NaN.
    each = (share * (theirs - mine)).masked_fill(share == 0, 0.0).sum(-1).clamp_min(0)
    return _mean(each, length)


def distance_apart(student: Tensor, teacher: Tensor, length: Tensor | None = None) -> Tensor:
    """(n,) root of the mean squared difference of two answers (n, ...), over the first `length` places
    of each row where rows differ."""
    return _mean((student.double() - teacher.double()).square(), length).sqrt()


def _mean(each: Tensor, length: Tensor | None) -> Tensor:
    """(n, ...) -> (n,); with a length over the first places of the second axis."""
    import torch

    if each.ndim < 2:
        return each
    flat = each.flatten(2).mean(2) if each.ndim > 2 else each
    if length is None:
        return flat.mean(1)
    there = torch.arange(flat.shape[1]) < length[:, None]
    return flat.masked_fill(~there, 0.0).sum(1) / length.clamp_min(1)


def differing_rows(
    record: Record,
    student: Student,
    rows: Rows,
    reader: Reader,
    keys: KeyList,
    *,
    k: int = 12,
    signal: str = "logits",
    output: str = "logits",
    columns: Sequence[str] = (),
    apart: Apart | None = None,
    tables: Mapping[str, NDArray[Any]] | None = None,
) -> Differing:
    """Let the student of a record answer `keys` once more and put the cache's answers beside it.

    `student` is what `record` was trained from; `reader` serves `signal`. `apart` judges rows by any
    tensors, the data set's `columns` among them; without it `kl_apart` of signals that are called
    logits, `distance_apart` of others. `tables` are those that `train` was given, where the answer reads
    one. Memory holds one batch and three numbers a row.

    Raises ExportError when the record is of another student or its parts are not there,
    NotAnsweringError where its answer cannot be set beside the teacher's, RowsError or UnknownRowError for
    rows that are not there.
    """
    import torch

    from stillroom.stages.loading import Loader

    wanted = tuple(dict.fromkeys((*student.inputs, *_answer_columns(student), *columns)))
    names = f"student.{output}", f"teacher.{signal}"
    cached = reader if reader.names == (signal,) else Reader(reader.snapshot, [signal])
    measure = kl_apart if "logit" in signal else distance_apart

    def loaded(some: KeyList) -> Loader:
        return Loader(rows, some, wanted, cached, batch_size=_BATCH)

    given = as_keys(keys)
    few = loaded(given).batch(np.arange(min(len(given), 2)))
    answers = _answering(record, student, output, few, tables or {}, reader.snapshot)

    def both(batch: dict[str, Any]) -> dict[str, Any]:
        every = batch | answers(batch)
        mine, theirs = (every[name] for name in names)
        if apart is None and mine.shape != theirs.shape:
            raise NotAnsweringError(
                f"student {student.name!r}: {names[0]} is {tuple(mine.shape)}, {names[1]} is "
                f"{tuple(theirs.shape)}; say how far apart they are: apart=FUNCTION"
            )
        return every

    far: list[NDArray[np.float64]] = []
    choices: list[NDArray[np.int64]] = []
    with torch.inference_mode():
        for batch in loaded(given).ordered():
            every = both(batch)
            if apart is not None:
                found = apart(every)
            else:
                length = every.get(f"{names[1]}.length")
                found = measure(every[names[0]], every[names[1]], length)
            if found.shape != (len(every[names[0]]),):
                raise RowsError(
                    f"apart gave {tuple(found.shape)} for {len(every[names[0]])} rows; expected one "
                    "number for each"
                )
            far.append(found.double().numpy())
            if every[names[0]].ndim == every[names[1]].ndim == 2:
                choices.append(torch.stack([every[n].argmax(-1) for n in names], 1).numpy())
        whole = np.concatenate(far)
        # A NaN is as far apart as can be; of equal rows the first.
        worst = np.argsort(-np.nan_to_num(whole, nan=np.inf), kind="stable")[:k]
        shown = both(loaded(given.take(worst)).batch(np.arange(len(worst))))
    return Differing(
        [given[int(i)].as_py() for i in worst],
        whole[worst],
        shown[names[0]].float().numpy(),
        shown[names[1]].float().numpy(),
        whole,
        np.concatenate(choices) if choices else np.zeros((0, 2), np.int64),
    )


def teacher_measured(
    rows: Rows, reader: Reader, keys: KeyList, evaluation: Evaluation
) -> dict[str, Any]:
    """What the evaluation says of the teacher itself: its cached answers in the student's place.

    As stored, so with the encoding's loss; its own signal is also what it is compared with, so that its
    agreement is 1. Errors are those of the evaluation's measure.
    """
    import torch

    from stillroom.stages.loading import Loader
    from stillroom.stages.streams import joined

    cached = Reader(reader.snapshot, evaluation.signals)
    collected: dict[str, list[Any]] = {}
    for batch in Loader(rows, keys, evaluation.columns, cached, batch_size=_BATCH).ordered():
        for name, tensor in batch.items():
            if isinstance(tensor, torch.Tensor):
                collected.setdefault(name, []).append(tensor)
    found = {name: joined(each) for name, each in collected.items()}
    instead = {f"student.{n.removeprefix('teacher.')}": t for n, t in found.items()}
    with torch.inference_mode():
        return evaluation.measure({**instead, **found})


def _answering(
    record: Record,
    student: Student,
    output: str,
    first: Mapping[str, Any],
    tables: Mapping[str, NDArray[Any]],
    snapshot: Snapshot,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function of a loaded batch that gives `student.NAME` of each of its outputs, and heads.

    `first` is a batch of a few rows: heads take their shapes from it.
    """
    from stillroom.stages.exporting.parts import read_parts, require_same_student
    from stillroom.stages.exporting.whole import asked_of, assembled

    require_same_student(record, student)
    asked = asked_of(student, (output,))
    columns = {name: first[f"row.{name}"] for name in asked.columns}
    trained = read_parts(record, student, asked, columns, tables, snapshot, "best")
    every = replace(asked, layers={**student.layers, **asked.layers})
    whole = assembled(
        student, every, trained.module, trained.heads, trained.tables, trained.settings
    )
    return lambda batch: whole.everything({name: batch[f"row.{name}"] for name in asked.columns})


def _answer_columns(student: Student) -> tuple[str, ...]:
    """What its answer reads of the data set besides the student's inputs."""
    answer = student.recipe.answer
    names = () if answer is None else answer.inputs
    heads = [name for head in student.recipe.heads if head.kept for name in head.inputs]
    return tuple(n.removeprefix("row.") for n in (*names, *heads) if n.startswith("row."))
