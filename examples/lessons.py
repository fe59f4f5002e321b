"""What the small examples share: teach a lesson, train its students, write one table.

A lesson is rows, a teacher and splits; an example says what these are, who learns and what to compare
with. `sentences.py` spells the same steps out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from stillroom.pipeline.step import Preview, Result, Run, Step
from stillroom.stages.data.rows import Rows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.student import Record, Student
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.teaching import teach
from stillroom.stages.training import plan_train, train
from stillroom.storage.cache import Cache
from stillroom.storage.errors import MissingPackageError
from stillroom.storage.files import write_atomic
from stillroom.storage.reader import Reader
from stillroom.workflows.intervals import interval
from stillroom.workflows.plan_words import plan_options, preview_of

Line = Mapping[str, Sequence[float]]
"""The values of each metric, one for each seed."""
Keyed = TypeVar("Keyed")


@dataclass(frozen=True)
class Lesson:
    """What is taught, by whom, and which rows are held out (split `test`)."""

    rows: Rows
    teacher: Teacher
    splits: Mapping[str, list[str]]
    batch_size: int = 64
    shard_rows: int = 1024


@dataclass(frozen=True)
class Class:
    """Who learns from a lesson, how they are measured, and what they are compared with."""

    students: Callable[..., list[Student]]
    """`students(epochs=, seeds=)`."""
    evaluation: Evaluation
    metrics: Sequence[str]
    """Columns of the table."""
    references: Callable[[Lesson, Reader], Mapping[str, Line]]
    """Lines of the table that no student is trained for."""


def lesson_steps(
    lesson: Callable[[Path], Lesson],
    learn: Class,
    *,
    epochs: int,
    seeds: int,
    needs: tuple[Step, ...] = (),
) -> list[Step]:
    """teach -> students -> table; `lesson` gets the run's folder."""
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, found {seeds}")
    students = partial(learn.students, epochs=epochs, seeds=seeds)
    first = Step(
        "teach",
        partial(_teach, lesson),
        needs=needs,
        preview=partial(_preview_teach, lesson, epochs),
    )
    second = Step(
        "students",
        partial(_train, lesson, students, learn.evaluation),
        needs=(first,),
        preview=partial(_preview_train, lesson, students, learn.evaluation),
    )
    table = partial(_table, lesson, learn.metrics, learn.references)
    return [Step("table", table, needs=(first, second))]


def _cache(run: Run) -> Path:
    return run.folder / "answers.cache"


def _teach(lesson: Callable[[Path], Lesson], run: Run, inputs: Mapping[str, Result]) -> Result:
    given = lesson(run.folder)
    snapshot = teach(
        Cache.at(_cache(run)),
        given.rows,
        given.teacher,
        runner=run.runner,
        listen=run.listen,
        batch_size=given.batch_size,
        shard_rows=given.shard_rows,
    )
    return {"snapshot": snapshot.number, "rows": snapshot.rows}


def _preview_teach(
    lesson: Callable[[Path], Lesson], epochs: int, run: Run, inputs: Mapping[str, Result]
) -> Preview:
    given = lesson(run.folder)
    sizes = {"batch_size": given.batch_size, "shard_rows": given.shard_rows, "epochs": epochs}
    place, options = _cache(run), {**sizes, **plan_options(run)}
    return preview_of(plan_teach(place, given.rows, given.teacher, **options), place)


def _training(
    given: Lesson, evaluation: Evaluation, run: Run, inputs: Mapping[str, Result]
) -> dict[str, Any]:
    return {
        "rows": given.rows,
        "snapshot": Cache(_cache(run)).snapshot(inputs["teach"]["snapshot"]),
        "splits": given.splits,
        "evaluation": evaluation,
        "folder": run.folder / "students",
    }


def _train(
    lesson: Callable[[Path], Lesson],
    students: Callable[[], list[Student]],
    evaluation: Evaluation,
    run: Run,
    inputs: Mapping[str, Result],
) -> Result:
    given = _training(lesson(run.folder), evaluation, run, inputs)
    records = train(students(), **given, runner=run.runner, listen=run.listen)
    return {"records": [str(record.folder.relative_to(run.folder)) for record in records]}


def _preview_train(
    lesson: Callable[[Path], Lesson],
    students: Callable[[], list[Student]],
    evaluation: Evaluation,
    run: Run,
    inputs: Mapping[str, Result],
) -> str:
    plan = plan_train(students(), **_training(lesson(run.folder), evaluation, run, inputs))
    names = ", ".join(plan.names)
    return f"{len(plan.stale)} trainings without a record: {names}" if plan.stale else ""


def _table(
    lesson: Callable[[Path], Lesson],
    metrics: Sequence[str],
    references: Callable[[Lesson, Reader], Mapping[str, Line]],
    run: Run,
    inputs: Mapping[str, Result],
) -> Result:
    given = lesson(run.folder)
    snapshot = Cache(_cache(run)).snapshot(inputs["teach"]["snapshot"])
    lines: dict[str, dict[str, list[float]]] = {
        name: {metric: list(values) for metric, values in line.items()}
        for name, line in references(given, Reader(snapshot)).items()
    }
    for place in inputs["students"]["records"]:
        record = Record.read(run.folder / place)
        line = lines.setdefault(record.name, {})
        for metric in set(metrics) & record.metrics.keys():
            line.setdefault(metric, []).append(record.metrics[metric])
    sizes = {name: len(keys) for name, keys in given.splits.items()}
    counts = ", ".join(f"{name} {rows:,} rows" for name, rows in sizes.items())
    write_atomic(run.folder / "table.md", [f"{table(lines, metrics)}\n{counts}\n".encode()])
    return {"outputs": ["table.md"], "show": "table.md", "lines": lines, "sizes": sizes}


def table(lines: Mapping[str, Line], metrics: Sequence[str]) -> str:
    """Markdown: means, and behind ± half of the 95% t-interval where there are several seeds."""
    heads = ["", *metrics]
    body = [[name, *(_cell(line.get(m, ())) for m in metrics)] for name, line in lines.items()]
    rows = [heads, ["---", *["---:"] * len(metrics)], *body]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    seen = interval(values)
    half = (seen["high"] - seen["low"]) / 2
    return f"{seen['mean']:.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def shuffled(rows: Iterable[Keyed], key: Callable[[Keyed], str]) -> list[Keyed]:
    """Ordered by a hash of the key: a smaller number of rows is a part of a larger one."""
    return sorted(rows, key=lambda row: hashlib.sha256(key(row).encode()).digest())


def held_out(keys: Sequence[str], groups: Sequence[str]) -> dict[str, list[str]]:
    """Whole groups are held out, about one in five: `train` and `test` share none."""
    test = {group: zlib.crc32(group.encode()) % 5 == 0 for group in groups}
    both = list(zip(keys, groups, strict=True))
    return {"train": [k for k, g in both if not test[g]], "test": [k for k, g in both if test[g]]}


def package_file(package: str, file: str, install: str) -> Path:
    """A file inside an installed package, found without importing it.

    MissingPackageError says how to install it.
    """
    found = importlib.util.find_spec(package)
    for place in (found.submodule_search_locations or ()) if found else ():
        if (Path(place) / file).exists():
            return Path(place) / file
    raise MissingPackageError(f"{package} with {file} is not installed: {install}")
