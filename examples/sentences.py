"""A sentence encoder that somebody else trained teaches once; small students learn to search from it.

texts (docstrings of installed packages) -> teach (both texts of each row, by Ray) -> students (four
recipes) -> table. Run: stillroom run examples/sentences.py, or python examples/sentences.py.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sentences_data import PACKAGES, docstrings, sentence_rows, sentence_splits, version
from sentences_learning import RECIPES, compared
from sentences_student import bag
from sentences_teacher import SIGNALS, sentence_teacher

from stillroom.pipeline.step import Preview, Result, Run, Step
from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.student import Record, Student
from stillroom.stages.teaching import teach
from stillroom.stages.training import plan_train, train
from stillroom.storage.cache import Cache
from stillroom.storage.files import write_atomic, write_json
from stillroom.storage.reader import Reader
from stillroom.workflows.plan_words import plan_options, preview_of

STUDENT = partial(bag, 192, drop=0.3)
TEACHING: Mapping[str, Any] = {"batch_size": 64, "shard_rows": 1024}


def sentences(
    *, epochs: int = 10, seeds: int = 3, packages: tuple[str, ...] = PACKAGES, rows: int = 6000
) -> list[Step]:
    """Distil all-MiniLM-L6-v2 into bags of words, on the docstrings of `packages`.

    epochs: of every student; seeds: trainings of each student; packages: names as imported, or
    stdlib; rows: how many docstrings at most (0: all).
    """
    if seeds < 1 or rows < 0:
        raise ValueError(f"seeds must be at least 1 and rows at least 0, found {seeds} and {rows}")
    versions = {name: version(name) for name in packages}
    first = Step("texts", read_texts, {"versions": versions, "rows": rows})
    shown = partial(preview_teach, epochs=epochs)
    second = Step("teach", teach_sentences, {}, (first,), preview=shown)
    taught = {"epochs": epochs, "seeds": seeds}
    third = Step("students", train_students, taught, (first, second), preview=preview_students)
    return [Step("table", write_table, {}, (first, second, third))]


def students(epochs: int, seeds: int) -> list[Student]:
    """Every recipe with every seed; all have the same architecture and see the same rows."""
    return [
        Student(
            name,
            STUDENT,
            recipe,
            inputs=("summary_ids", "details_ids"),
            layers={signal: f":{signal}" for signal in SIGNALS},
            fit=Fit(epochs=epochs, batch_size=256, learning_rate=1e-2),
            seed=seed,
        )
        for name, recipe in RECIPES.items()
        for seed in range(seeds)
    ]


def _reader_of_docstrings() -> Callable[[str], list[tuple[str, str, str]]]:
    return docstrings


def read_texts(
    run: Run, inputs: Mapping[str, Result], *, versions: Mapping[str, str], rows: int
) -> Result:
    """Collect the docstrings, one package after another on each worker; equal texts count once."""
    read = [row for some in run.runner.map(_reader_of_docstrings, versions) for row in some]
    # Ordered by a hash of the key: a smaller number of rows is a part of a larger one.
    read.sort(key=lambda row: hashlib.sha256(row[0].encode()).digest())
    kept, seen = [], set[str]()
    for row in read:
        if seen.isdisjoint(row):
            seen.update(row)
            kept.append(row)
    kept = kept[: rows or None]
    write_json(run.folder / "texts.json", {"rows": kept})
    digest = hashlib.sha256((run.folder / "texts.json").read_bytes()).hexdigest()
    return {"outputs": ["texts.json"], "digest": digest, "rows": len(kept)}


def _rows(run: Run, inputs: Mapping[str, Result]) -> ArrayRows:
    return sentence_rows(run.folder / "texts.json", inputs["texts"]["digest"])


def teach_sentences(run: Run, inputs: Mapping[str, Result]) -> Result:
    """Cache what the teacher says about every text."""
    cache = Cache.at(run.folder / "sentences.cache")
    rows, teacher = _rows(run, inputs), sentence_teacher()
    snapshot = teach(cache, rows, teacher, runner=run.runner, listen=run.listen, **TEACHING)
    return {"snapshot": snapshot.number, "rows": snapshot.rows}


def preview_teach(run: Run, inputs: Mapping[str, Result], *, epochs: int) -> Preview:
    """Which rows the teacher would answer, and what that takes; epochs: of the students to come."""
    place = run.folder / "sentences.cache"
    rows, teacher = _rows(run, inputs), sentence_teacher()
    given = {**TEACHING, **plan_options(run)}
    return preview_of(plan_teach(place, rows, teacher, epochs=epochs, **given), place)


def _training(run: Run, inputs: Mapping[str, Result]) -> dict[str, Any]:
    rows = _rows(run, inputs)
    return {
        "rows": rows,
        "snapshot": Cache(run.folder / "sentences.cache").snapshot(inputs["teach"]["snapshot"]),
        "splits": sentence_splits(rows.keys.to_pylist()),
        "evaluation": Evaluation("test", compared, columns=(), signals=SIGNALS),
        "folder": run.folder / "students",
    }


def train_students(run: Run, inputs: Mapping[str, Result], *, epochs: int, seeds: int) -> Result:
    """Train and evaluate every student that has no record yet."""
    given = _training(run, inputs)
    records = train(students(epochs, seeds), **given, runner=run.runner, listen=run.listen)
    return {"records": [str(record.folder.relative_to(run.folder)) for record in records]}


def preview_students(run: Run, inputs: Mapping[str, Result], *, epochs: int, seeds: int) -> str:
    """Which students would be trained."""
    plan = plan_train(students(epochs, seeds), **_training(run, inputs))
    names = ", ".join(plan.names)
    return f"{len(plan.stale)} trainings without a record: {names}" if plan.stale else ""


def write_table(run: Run, inputs: Mapping[str, Result]) -> Result:
    """Write table.md: the students beside what needs no training."""
    from sentences_table import references, table, trained

    given = _training(run, inputs)
    records = [Record.read(run.folder / place) for place in inputs["students"]["records"]]
    reader = Reader(given["snapshot"], SIGNALS)
    lines = {**references(given["rows"], given["splits"], reader, STUDENT), **trained(records)}
    write_atomic(run.folder / "table.md", [table(lines).encode()])
    sizes = {name: len(keys) for name, keys in given["splits"].items()}
    return {"outputs": ["table.md"], "show": "table.md", "lines": lines, "sizes": sizes}


if __name__ == "__main__":
    from stillroom.workflows.cli import main

    sys.argv[1:1] = ["run", __file__]
    main()
