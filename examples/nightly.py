"""A workflow for every night: two teachers, rows that keep coming, students, and a policy for snapshots.

rows (a folder of Parquet files) -> teach, once for each teacher -> students -> table, and old
snapshots go. What the rest of the world does meanwhile (rows arrive, a teacher is retrained) is in
nightly_world.py. To have it by night:

    python examples/nightly_world.py begin home
    stillroom schedule add nightly examples/nightly.py --config home/nightly.yaml --cron "0 2 * * *"
    stillroom serve
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.pipeline.step import Preview, Result, Run, Step
from stillroom.stages import recipes
from stillroom.stages.data.parquet_rows import ParquetRows
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.fit import Fit
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.student import Record, Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teaching import teach
from stillroom.stages.training import plan_train, train
from stillroom.storage.cache import Cache
from stillroom.workflows.plan_words import plan_options, preview_of
from stillroom.workflows.pruning import prune_step

if TYPE_CHECKING:
    from torch import nn

TEACHERS = ("wide", "deep")
WIDTH, CLASSES = 4, 3
CACHE = "nightly.cache"
SHARD_ROWS = 256
DEEP_TEMPERATURE = 2.0


def nightly(
    *, data: Path = Path("home"), temperature: float = 2.0, epochs: int = 4, keep: int = 0
) -> list[Step]:
    """Teach what is new, train whose data, teacher or recipe changed.

    data: folder with rows/*.parquet and teachers/*.safetensors;
    temperature: of the students that learn from the wide teacher;
    epochs: of every student;
    keep: snapshots that stay, the newest ones (0: all)
    """
    where = {"data": str(data)}
    taught: tuple[Step, ...] = ()
    for name in TEACHERS:
        settings = {"name": name, **where}
        taught += (Step(f"teach-{name}", teach_rows, settings, taught, preview=untaught),)
    learns = {"temperature": temperature, "epochs": epochs, **where}
    learnt = Step("students", train_students, learns, taught, preview=untrained)
    last = [Step("table", table, needs=(learnt,))]
    if keep:
        last.append(prune_step("prune", CACHE, keep_last=keep, needs=(learnt,)))
    return last


def wide() -> nn.Module:
    """One large hidden layer, and a second one."""
    from torch import nn

    layers = nn.Linear(WIDTH, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(1024, CLASSES))


def deep() -> nn.Module:
    """Several smaller ones."""
    from torch import nn

    layers: list[nn.Module] = [nn.Linear(WIDTH, 256)]
    for _ in range(4):
        layers += [nn.ReLU(), nn.Linear(256, 256)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(256, CLASSES))


def small() -> nn.Module:
    """A student."""
    from torch import nn

    return nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, CLASSES))


BUILDS = {"wide": wide, "deep": deep}


def rows_of(data: str) -> ParquetRows:
    """All rows that have arrived."""
    return ParquetRows(Path(data) / "rows", key="key")


def splits_of(rows: ParquetRows) -> dict[str, Any]:
    """A fifth of the rows by their keys, so that a row is always in the split that it was in."""
    held = [hashlib.sha256(str(key).encode()).digest()[0] < 51 for key in rows.keys.to_pylist()]
    every = rows.keys.to_pylist()
    return {
        "train": [key for key, out in zip(every, held, strict=True) if not out],
        "test": [key for key, out in zip(every, held, strict=True) if out],
    }


def teacher(data: str, name: str) -> ModuleTeacher:
    """That teacher with the weights that it has now."""
    weights = Path(data) / "teachers" / f"{name}.safetensors"
    return ModuleTeacher(name, BUILDS[name], weights=weights, inputs=("x",))


def teach_rows(run: Run, inputs: Mapping[str, Result], *, name: str, data: str) -> Result:
    """Have a teacher answer for the rows that it has not answered for."""
    snapshot = teach(
        *(Cache.at(run.folder / CACHE), rows_of(data), teacher(data, name)),
        runner=run.runner,
        shard_rows=SHARD_ROWS,
        listen=run.listen,
    )
    # What it stands for, not the snapshot's number, which grows with the other teacher's answers too.
    (source,) = [source for source in snapshot.sources if source.teacher == name]
    return {"teacher": source.digest, "data": source.dataset, "rows": snapshot.rows}


def untaught(run: Run, inputs: Mapping[str, Result], *, name: str, data: str) -> Preview:
    """Which rows that would be, and what they take."""
    place = run.folder / CACHE
    plan = plan_teach(
        *(place, rows_of(data), teacher(data, name)), shard_rows=SHARD_ROWS, **plan_options(run)
    )
    return preview_of(plan, place)


def students(temperature: float, epochs: int) -> list[Student]:
    """One of the wide teacher, one of the deep one, one without."""
    make = partial(Student, build=small, inputs=("x",), fit=Fit(epochs=epochs))
    soft = recipes.find("kd", alpha=1.0, temperature=temperature)
    of_deep = recipes.find("kd", alpha=1.0, temperature=DEEP_TEMPERATURE)
    return [
        make("of-wide", recipe=soft, signals={"logits": "wide/logits"}),
        make("of-deep", recipe=of_deep, signals={"logits": "deep/logits"}),
        make("labels", recipe=recipes.find("labels")),
    ]


def training(run: Run, data: str) -> dict[str, Any]:
    """What all students have in common."""
    rows = rows_of(data)
    return {
        "rows": rows,
        "snapshot": Cache(run.folder / CACHE).snapshot(),
        "splits": splits_of(rows),
        "evaluation": Evaluation("test", classification),
        "folder": run.folder / "students",
    }


def train_students(
    run: Run, inputs: Mapping[str, Result], *, data: str, temperature: float, epochs: int
) -> Result:
    """Train those that have no record of exactly this data, teacher and recipe."""
    wanted, given = students(temperature, epochs), training(run, data)
    records = train(wanted, **given, runner=run.runner, listen=run.listen)
    return {"records": [str(record.folder.relative_to(run.folder)) for record in records]}


def untrained(
    run: Run, inputs: Mapping[str, Result], *, data: str, temperature: float, epochs: int
) -> str:
    """Which those are."""
    plan = plan_train(students(temperature, epochs), **training(run, data))
    return f"without a record: {', '.join(plan.names)}" if plan.stale else ""


def table(run: Run, inputs: Mapping[str, Result]) -> Result:
    """Every student's accuracy."""
    records = [Record.read(run.folder / name) for name in inputs["students"]["records"]]
    lines = [f"{record.name:<8} {record.metrics['accuracy']:.3f}" for record in records]
    (run.folder / "table.txt").write_text("\n".join(lines) + "\n")
    return {"outputs": ["table.txt"], "show": "table.txt", "accuracy": lines}
