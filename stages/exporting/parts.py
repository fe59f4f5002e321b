"""The parts of a trained student, read from its record's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.stages.exporting.described import ExportError, import_path, spelled
from stillroom.stages.student import Record, Student
from stillroom.stages.teachers.weights import load_state
from stillroom.storage.errors import NotACacheError, nearest
from stillroom.storage.identity import canonical
from stillroom.storage.opening import with_book
from stillroom.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.stages.exporting.whole import Asked

Which = Literal["best", "last", "average"]


def weights_file(record: Record, which: str) -> Path:
    """The file of the weights that were asked for.

    `best` are those that the record's metrics are of: of the best evaluation where one was watched, else
    of the last step. `last` are those of the last step, `average` their moving average.
    """
    if which not in ("best", "last", "average"):
        raise ExportError(f"weights {which!r}; {nearest(which, ('best', 'last', 'average'))}")
    last = record.folder / "last.safetensors"
    place = {"best": record.weights, "average": record.average}.get(
        which, last if last.exists() else record.weights
    )
    if not place.exists():
        way = "train it with Fit(average=0.999)" if which == "average" else "train it again"
        raise ExportError(f"student {record.name!r} has no {which} weights at {place}; {way}")
    if which != "best" and last.exists() and record.heads.exists():
        raise ExportError(
            f"student {record.name!r}: its heads are those of the best epoch "
            f"({record.content.get('best_epoch')}), and {which} weights are of another; export the best"
        )
    return place


def require_same_student(record: Record, student: Student) -> None:
    """ExportError when the definition is not the one that the record's student was trained with."""
    trained, now = record.content["identity"]["student"], student.identity()
    if record.name != student.name:
        raise ExportError(f"the record is of student {record.name!r}, not of {student.name!r}")
    for part in ("build", "recipe", "inputs", "layers"):
        if canonical(trained[part]) != canonical(now[part]):
            raise ExportError(
                f"student {student.name!r}, seed {record.seed}: its {part} is not the one that it was "
                f"trained with ({record.folder}); train it again, or export it with the definition that "
                "it had then"
            )


@dataclass(frozen=True)
class Trained:
    """Module, heads and tables with their weights."""

    module: nn.Module
    heads: Mapping[str, nn.Module]
    tables: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[list[tuple[int, ...]], tuple[int, ...]]]
    """What each head was built from: shapes of a row of its inputs, and of what it is like."""
    settings: Mapping[str, Any]
    """Those of the answer, as they were tuned."""
    file: Path


def read_parts(
    record: Record,
    student: Student,
    asked: Asked,
    columns: Mapping[str, Any],
    tables: Mapping[str, Any],
    snapshot: Snapshot | None,
    which: str,
) -> Trained:
    """Build the student and load what its training left.

    `columns` are of a few rows: heads take their shapes from them. ExportError for weights of another
    architecture, for NaN in them, and for a table or snapshot that is needed and not given.
    """
    import numpy as np
    import torch

    from stillroom.stages.exporting.whole import Whole, load_into, require_finite

    file = weights_file(record, which)
    build, what = spelled(import_path(student.build)), f"the weights {file}"
    with torch.random.fork_rng(devices=[]):
        module = load_into(student.build(), state := load_state(file), what, build)
    require_finite(state, what)
    for name in asked.tables:
        if name not in tables:
            raise ExportError(
                f"student {student.name!r} answers with table.{name}, an array about no row; give it: "
                f"tables={{{name!r}: array}}"
            )
    given = {n: torch.from_numpy(np.array(tables[n])) for n in asked.tables}
    bare = Whole(
        module,
        {},
        given,
        student=student.name,
        inputs=student.inputs,
        columns=asked.columns,
        layers=asked.layers,
        given={},
        outputs=(),
    )
    with torch.inference_mode():
        tensors = bare.everything(columns)
    heads: dict[str, Any] = {}
    shapes = {}
    stored = load_state(record.heads) if asked.heads else {}
    for head in asked.heads:
        inputs = [tuple(tensors[name].shape[1:]) for name in head.inputs]
        like = _like(head.like, tensors, student, snapshot, head.name)
        with torch.random.fork_rng(devices=[]):
            built = head.build(inputs[0] if isinstance(head.input, str) else tuple(inputs), like)
        prefix = f"{head.name}."
        mine = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
        whose = f"the weights of head {head.name!r} in {record.heads}"
        heads[head.name] = load_into(built, mine, whose, f"recipe {student.recipe.name!r}")
        require_finite(mine, whose)
        shapes[head.name] = (inputs, like)
    settings = record.content.get("answer", {}) if asked.answer else {}
    return Trained(module, heads, given, shapes, settings, file)


def _like(
    name: str, tensors: Mapping[str, Any], student: Student, snapshot: Snapshot | None, head: str
) -> tuple[int, ...]:
    """The shape of a row of what a head is like."""
    if not name:
        return ()
    if name in tensors:
        return tuple(tensors[name].shape[1:])
    origin, _, signal = name.partition(".")
    if origin != "teacher":
        raise ExportError(f"head {head!r} is like {name!r}, which is not there at export")
    if snapshot is None:
        raise NotACacheError(
            f"head {head!r} has the shape of {name!r}: give the snapshot that the student was trained from"
        )
    found = snapshot.find(student.signals.get(signal, signal))[1]
    shape = with_book(snapshot.cache, found).decoded_shape
    return tuple(int(n) for n in shape)
