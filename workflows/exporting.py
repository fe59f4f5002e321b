"""Exporting a workflow's students: what `stillroom export` asks of its steps, and what they answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stillroom.pipeline.execute import act
from stillroom.pipeline.runner import LocalRunner
from stillroom.pipeline.step import Result, Run
from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.exporting.exporting import export_student
from stillroom.stages.student import Record, Student
from stillroom.stages.training import plan_train
from stillroom.storage.errors import SettingsError, nearest
from stillroom.storage.keys import KeyList
from stillroom.storage.snapshot import Snapshot
from stillroom.workflows.flows import open_flow
from stillroom.workflows.running import default_folder
from stillroom.workflows.spelling import amount
from stillroom.workflows.students import NoStudentsError

ACTION = "export"


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for."""

    student: str
    seed: int | None
    formats: tuple[str, ...]
    weights: str
    outputs: tuple[str, ...]
    folder: str
    """Empty: `export/NAME-SEED` in the run's folder."""


def export_wanted(
    run: Run,
    students: Sequence[Student],
    *,
    rows: Rows,
    snapshot: Snapshot | None,
    splits: Mapping[str, KeyList],
    evaluation: Evaluation,
    folder: str | Path,
    available: bool = False,
    tables: Mapping[str, Any] = MappingProxyType({}),
) -> Result:
    """Export the student that the command line named, if it is one of these; plain JSON.

    For a step's `actions={"export": ...}`: a function with the arguments of the step's own, which calls
    this with what it gives to `train`. NoStudentsError when that student is not trained, or was trained
    otherwise than it is defined now.
    """
    wanted = Wanted(**run.options[ACTION])
    known = {student.name: student.seed for student in reversed(students)}
    if wanted.student not in known:
        return {"known": sorted(known)}
    seed = known[wanted.student] if wanted.seed is None else wanted.seed
    found = [s for s in students if (s.name, s.seed) == (wanted.student, seed)]
    if not found:
        seeds = [str(s.seed) for s in students if s.name == wanted.student]
        raise NoStudentsError(
            f"student {wanted.student!r} has no seed {seed}; it has {', '.join(seeds)}"
        )
    plan = plan_train(
        *(found, rows, snapshot),
        splits=splits,
        evaluation=evaluation,
        folder=Path(folder),
        available=available,
        tables=tables,
    )
    if plan.stale:
        raise NoStudentsError(
            f"student {wanted.student!r}, seed {seed}, is not trained as it is defined now; "
            "`stillroom run` the workflow first"
        )
    place = (
        Path(wanted.folder) if wanted.folder else run.folder / "export" / f"{found[0].name}-{seed}"
    )
    done = export_student(
        *(Record.read(plan.fresh[0].folder), found[0], rows, place),
        formats=wanted.formats,
        weights=wanted.weights,  # type: ignore[arg-type]
        outputs=wanted.outputs,
        keys=splits[evaluation.split],
        evaluation=evaluation,
        snapshot=snapshot,
        tables=tables,
    )
    return {"folder": str(place), "student": dict(done.content)}


def export_workflow(
    flow: str, arguments: list[str], out: Path | None, wanted: Wanted, as_json: bool
) -> None:
    """Export a student of a workflow that ran, and print where it lies."""
    steps = open_flow(flow, arguments)
    if not any(ACTION in step.actions for step in steps):
        raise SettingsError(
            f"no step of workflow {flow} can export its students; give the step that trains them "
            "actions={'export': FUNCTION}, where FUNCTION has the step's own arguments and calls "
            "stillroom.workflows.exporting.export_wanted with what the step gives to train()"
        )
    run = Run(out or default_folder(flow), LocalRunner(), options={ACTION: asdict(wanted)})
    answers = act(steps, run, ACTION).values()
    done = [answer for answer in answers if "folder" in answer]
    if not done:
        names = [name for answer in answers for name in answer["known"]]
        raise NoStudentsError(f"no student {wanted.student!r}; {nearest(wanted.student, names)}")
    if as_json:
        print(json.dumps(done[0], indent=2, ensure_ascii=False))
        return
    said = done[0]["student"]
    for form, written in said["forms"].items():
        place = Path(done[0]["folder"]) / written["file"]
        checked = f"{written['largest_difference']:.2g} apart on {said['checked']['rows']} rows"
        print(f"{place}  {form}, {amount(written['bytes'])}, {checked}")
