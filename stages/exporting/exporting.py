"""Export a trained student: its weights and what they are, a torch.export program, an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.stages.data.rows import Rows, find_rows, require_columns
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.exporting.described import (
    DESCRIPTION,
    VERSION,
    WEIGHTS,
    ExportError,
    file_said,
    import_path,
    libraries,
    provenance,
)
from stillroom.stages.exporting.parts import Trained, Which, read_parts, require_same_student
from stillroom.stages.student import Record, Student
from stillroom.storage.errors import RowsError, nearest
from stillroom.storage.files import finishing, temporary_name, write_atomic, write_json
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from stillroom.stages.exporting.comparing import Arrays
    from stillroom.stages.exporting.whole import Asked, Whole

FILES = {"safetensors": WEIGHTS, "pt2": "student.pt2", "onnx": "student.onnx"}
TOLERANCES = {"safetensors": 0.0, "pt2": 1e-5, "onnx": 1e-4}
"""Largest difference of an output, in units of its largest value or of 1, whichever is larger."""
CHECKED = 64
"""Rows that every form is compared on."""


@dataclass(frozen=True)
class Exported:
    """A student as it was written."""

    folder: Path
    content: Mapping[str, Any]
    """`student.json`."""


def export_student(
    record: Record,
    student: Student,
    rows: Rows,
    folder: str | Path,
    *,
    formats: Sequence[str] = ("safetensors",),
    weights: Which = "best",
    outputs: Sequence[str] = (),
    keys: KeyList | None = None,
    evaluation: Evaluation | None = None,
    snapshot: Snapshot | None = None,
    tables: Mapping[str, Any] = MappingProxyType({}),
) -> Exported:
    """Write a trained student as inference needs it, and check every form on real rows.

    `weights.safetensors` holds the student, its kept heads and its tables; `student.json` says what it
    is. `formats` adds "pt2", a torch.export program, and "onnx" (extra `export`), both over any number
    of rows. Each form is loaded again and given up to 64 of the rows `keys` (all, if none are named):
    the weights must answer bit for bit as the trained student does, the others within `TOLERANCES`.

    `outputs` are names as evaluation has them, `student.NAME`; if none are given, the recipe's answer
    with its tuned settings, or what the module returns. `weights`: "best", those that the record's
    metrics are of; "last"; "average". With an `evaluation`, over the rows `keys`, what is exported is
    measured: the best must come to the record's metrics. `snapshot` is needed where the evaluation or a
    kept head reads a teacher, `tables` where the answer does.

    ExportError names what cannot be exported: a definition that is not the one that was trained, weights
    of another architecture, NaN, a module that cannot be traced, a form that answers otherwise;
    MissingPackageError, before anything is written, what ONNX lacks. What one form cannot do leaves the
    others written, and `student.json` names those alone.
    """
    import torch

    from stillroom.stages.exporting.comparing import answers, require_answers
    from stillroom.stages.exporting.opening import joined_state
    from stillroom.stages.exporting.whole import asked_of, assembled

    place = Path(folder)
    _require_formats(formats)
    if (place / "record.json").exists():
        raise ExportError(f"{place} holds a student's record; name another folder to export to")
    require_same_student(record, student)
    asked = asked_of(student, outputs)
    who = f"student {student.name!r}, seed {student.seed}"
    require_columns(rows, asked.columns, who)
    chosen = rows.keys if keys is None else as_keys(keys)
    if len(chosen) == 0:
        raise RowsError(f"{who}: no rows were given to check its exported forms on")
    some = np.unique(np.linspace(0, len(chosen) - 1, min(CHECKED, len(chosen))).astype(np.int64))
    shown = chosen.take(some)
    columns = _columns(rows, shown, asked.columns)
    trained = read_parts(record, student, asked, columns, tables, snapshot, weights)
    whole = assembled(
        student, asked, trained.module, trained.heads, trained.tables, trained.settings
    )
    names, given = shown.to_pylist(), list(columns.values())
    reference = answers(whole, given)
    require_answers(reference, answers(whole, given), names, who, len(names))
    metrics = dict(record.metrics)
    if evaluation is not None:
        from stillroom.stages.exporting.measuring import measured

        metrics = measured(
            *(record, student, asked, trained, rows, chosen),
            evaluation=evaluation,
            snapshot=snapshot,
            same=weights == "best",
        )
    elif weights != "best":
        metrics = {}
    said = _description(record, student, asked, trained, weights, columns, reference, metrics)
    written = dict.fromkeys(("safetensors", *formats))
    said["checked"] = {"rows": len(names), "tolerance": {f: TOLERANCES[f] for f in written}}
    _clear(place)
    heads = {name: head.state_dict() for name, head in trained.heads.items()}
    _write_weights(place, joined_state(trained.module.state_dict(), heads, trained.tables))
    made = _Made(place, said, student, reference, given, names, who)
    with torch.random.fork_rng(devices=[]):
        made.check_weights()
        failed = made.write([form for form in formats if form != "safetensors"], whole)
    write_json(place / DESCRIPTION, said)
    if failed:
        raise ExportError(f"{'; '.join(failed)}. Written and checked: {', '.join(said['forms'])}")
    return Exported(place, said)


class _Made:
    """A folder that is being written: each form under another name until it is checked."""

    def __init__(
        self,
        place: Path,
        said: dict[str, Any],
        student: Student,
        reference: Arrays,
        given: list[Any],
        names: list[Any],
        who: str,
    ) -> None:
        self._place, self._said, self._student = place, said, student
        self._reference, self._given, self._names, self._who = reference, given, names, who

    def _compare(self, form: str, run: Callable[[list[Any]], Arrays]) -> float:
        """On all rows at once, and on the first alone."""
        from stillroom.stages.exporting.comparing import compare

        what, tolerance = f"{FILES[form]} of {self._who}", TOLERANCES[form]
        whole = compare(self._reference, run(self._given), self._names, tolerance, what)
        if form == "safetensors":
            return whole  # the same code: what one row alone gives is the student's own affair
        first = {name: array[:1] for name, array in self._reference.items()}
        alone = run([column[:1] for column in self._given])
        return max(whole, compare(first, alone, self._names, max(tolerance, 1e-4), what))

    def check_weights(self) -> None:
        """What `load_student` makes of the file must answer bit for bit as the student does."""
        from stillroom.stages.exporting.comparing import answers
        from stillroom.stages.exporting.opening import opened

        student = self._student
        again = opened(self._place, self._said, student.build, student.recipe)
        worst = self._compare("safetensors", lambda columns: answers(again, columns))
        self._note("safetensors", worst)

    def write(self, forms: Sequence[str], whole: Whole) -> list[str]:
        """The forms that are traced; what went wrong with each that is not there then."""
        from stillroom.stages.exporting import forms as ways

        if not forms:
            return []
        columns = [given["name"] for given in self._said["inputs"]]
        try:
            program = ways.traced(whole, self._given, columns, self._who)
        except ExportError as error:
            return [str(error)]
        failed = []
        for form in forms:
            final = self._place / FILES[form]
            name = temporary_name(final.stem) + final.suffix
            with finishing(name):
                temporary = self._place / name
                try:
                    if form == "pt2":
                        ways.save_program(program, temporary)
                        worst = self._compare(form, ways.open_program(temporary))
                        more = {}
                    else:
                        outputs = list(self._reference)
                        opset = ways.save_onnx(program, columns, outputs, temporary)
                        more = {"opset": opset, "written_with": libraries("onnx", "onnxscript")}
                        worst = self._compare(form, ways.open_onnx(temporary, columns))
                    temporary.replace(final)
                    self._note(form, worst, **more)
                except ExportError as error:
                    failed.append(str(error))
                finally:
                    temporary.unlink(missing_ok=True)
        return failed

    def _note(self, form: str, worst: float, **more: Any) -> None:
        written = file_said(self._place / FILES[form])
        self._said["forms"][form] = {**written, "largest_difference": worst, **more}


def _require_formats(formats: Sequence[str]) -> None:
    for form in formats:
        if form not in FILES:
            raise ExportError(f"no form {form!r}; {nearest(form, FILES)}")
    if "onnx" in formats:
        from stillroom.stages.exporting.forms import require_onnx

        require_onnx()


def _columns(rows: Rows, keys: Any, names: Sequence[str]) -> dict[str, Any]:
    """Columns of these rows as a student is given them."""
    import torch

    read = rows.read(find_rows(rows, keys), names)
    return {
        name: column if isinstance(column := read[name], list) else torch.from_numpy(column)
        for name in names
    }


def _description(
    record: Record,
    student: Student,
    asked: Asked,
    trained: Trained,
    weights: str,
    columns: Mapping[str, Any],
    reference: Arrays,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    answer = asked.answer
    parts = [trained.module, *trained.heads.values()]
    return {
        "format": VERSION,
        "student": student.name,
        "seed": student.seed,
        "architecture": import_path(student.build),
        "inputs": [_input(name, column) for name, column in columns.items()],
        "student_inputs": list(student.inputs),
        "outputs": [
            {"name": n, "shape": ["rows", *a.shape[1:]], "dtype": str(a.dtype)}
            for n, a in reference.items()
        ],
        "layers": dict(student.layers),
        "needs": list(asked.layers),
        "heads": [
            {
                "name": head.name,
                "inputs": list(head.inputs),
                "shapes": [list(shape) for shape in trained.shapes[head.name][0]],
                "like": list(trained.shapes[head.name][1]),
                "build": import_path(head.build),
            }
            for head in asked.heads
        ],
        "tables": list(asked.tables),
        "answer": None
        if answer is None
        else {
            "function": import_path(answer.function),
            "inputs": list(answer.inputs),
            "settings": dict(trained.settings),
        },
        "recipe": student.recipe.name,
        "weights": {
            "which": weights,
            "parameters": sum(p.numel() for part in parts for p in part.parameters()),
        },
        "metrics": dict(metrics),
        "trained": provenance(record),
        "libraries": libraries("stillroom", "torch"),
        "forms": {},
    }


def _input(name: str, column: Any) -> dict[str, Any]:
    if isinstance(column, list):
        return {"name": name, "shape": ["rows"], "dtype": "text"}
    dtype = str(column.dtype).removeprefix("torch.")
    return {"name": name, "shape": ["rows", *column.shape[1:]], "dtype": dtype}


def _clear(place: Path) -> None:
    """What an earlier export left there is of other weights; its description goes first."""
    for name in (DESCRIPTION, *FILES.values(), f"{FILES['onnx']}.data"):
        (place / name).unlink(missing_ok=True)


def _write_weights(place: Path, state: Mapping[str, Any]) -> None:
    from safetensors.torch import save

    own = {n: t.detach().cpu().clone().contiguous() for n, t in state.items()}
    write_atomic(place / WEIGHTS, [save(own, {"format": "pt"})])
