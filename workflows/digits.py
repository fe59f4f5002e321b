"""The main job on real data: a CNN teaches once, eight students learn from its cache.

teacher (trained on 4,000 digits) -> teach (logits and one feature layer, by Ray) -> students (hard
labels, few and all; KD without and with labels; features; two architectures) -> report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from stillroom.pipeline.runner import LocalRunner
from stillroom.pipeline.step import Preview, Result, Run, Step
from stillroom.stages import recipes
from stillroom.stages.care.auditing import audit
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.fit import Fit
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teaching import teach
from stillroom.stages.training import plan_train, train
from stillroom.storage.cache import Cache
from stillroom.storage.errors import StillroomError, nearest
from stillroom.workflows.caring import mend
from stillroom.workflows.digits_data import TRAIN_ROWS, digits_file, digits_rows, digits_splits
from stillroom.workflows.digits_models import CNN_FEATURE, MLP_FEATURE, cnn, mlp
from stillroom.workflows.digits_report import report
from stillroom.workflows.exporting import export_wanted
from stillroom.workflows.plan_words import plan_options, preview_of

ROSTER = (
    *("cnn4-few", "cnn4-labels", "cnn4-kd", "cnn4-kdlabels", "cnn4-fitnet"),
    *("mlp32-labels", "mlp32-kd", "mlp32-kdlabels"),
)
"""Architecture and width, then how it learns."""
METHODS: Mapping[str, tuple[str, str, dict[str, float]]] = {
    "few": ("labels", "few", {}),
    "labels": ("labels", "train", {}),
    "kd": ("kd", "train", {"alpha": 1.0}),
    "kdlabels": ("kd", "train", {"alpha": 0.5}),
    "fitnet": ("fitnet", "train", {}),
}
"""Recipe, split and settings by the name's second half."""
EPOCHS_OF_FEW = 5
"""A tenth of the rows: more epochs, so that `few` is not merely under-trained."""
SHARD_ROWS = 1250
"""Four shards of the cache, for four workers."""
TEACHER = "cnn20"
ENCODINGS = {"logits": "float16", "feature": "float16"}


class UnknownStudentError(StillroomError, ValueError):
    """A student's name does not say what it is."""


def digits(
    *, epochs: int = 10, teacher_epochs: int = 10, seeds: int = 5, extra: tuple[str, ...] = ()
) -> list[Step]:
    """Teach once, train many, on 5,000 real digits.

    epochs: of every student; teacher_epochs: of the teacher; seeds: trainings of each student;
    extra: more students by name, such as cnn6-kd or mlp64-fitnet.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, found {seeds}")
    names = list(dict.fromkeys((*ROSTER, *extra)))
    for name in names:
        student(name, epochs=epochs, seed=0)  # a wrong name is an error before anything runs
    data = (digits_file(),)
    taught = {"seeds": seeds, "epochs": epochs, "names": names}
    first = Step("teacher", fit_teacher, {"epochs": teacher_epochs}, files=data)
    care = {"audit": audit_digits, "repair": repair_digits}
    shown = partial(preview_teach, epochs=epochs)
    second = Step("teach", teach_digits, {}, (first,), data, shown, care)
    third = Step(
        *("students", train_students, taught, (second,), data),
        preview=preview_students,
        actions={"export": export_digits},
    )
    return [Step("report", report, {"epochs": epochs}, (first, second, third))]


def student(name: str, *, epochs: int, seed: int) -> Student:
    """The student that a name such as cnn4-kd describes; UnknownStudentError when it is none."""
    match = re.fullmatch(r"(cnn|mlp)(\d{1,3})-(\w+)", name)
    if not match or match[3] not in METHODS or int(match[2]) < 1:
        method = name.partition("-")[2]
        raise UnknownStudentError(
            f"no student {name!r}: expected cnn or mlp, a width, '-' and a method, such as cnn6-kd; "
            f"for the method, {nearest(method, METHODS)}"
        )
    build, feature = (cnn, CNN_FEATURE) if match[1] == "cnn" else (mlp, MLP_FEATURE)
    recipe, split, settings = METHODS[match[3]]
    more = EPOCHS_OF_FEW if split == "few" else 1
    return Student(
        name,
        partial(build, int(match[2])),
        recipes.find(recipe, **settings),
        layers={"logits": "", "feature": feature},
        split=split,
        fit=Fit(epochs=epochs * more, evaluate_every=more),
        seed=seed,
    )


def students(names: list[str], epochs: int, seeds: int) -> list[Student]:
    """Every name with every seed."""
    return [student(name, epochs=epochs, seed=seed) for name in names for seed in range(seeds)]


def fit_teacher(run: Run, inputs: Mapping[str, Result], *, epochs: int) -> Result:
    """Train the teacher on labels, with shifted images; its weights are fixed from here on."""
    pupil = Student(
        TEACHER, partial(cnn, 20, shift=2), recipes.find("labels"), fit=Fit(epochs=epochs)
    )
    (record,) = train(
        [pupil],
        digits_rows(),
        None,
        splits=digits_splits(),
        evaluation=Evaluation("test", classification),
        folder=run.folder / "teacher",
        runner=LocalRunner(),
    )
    weights = str(record.weights.relative_to(run.folder))
    return {
        "outputs": [weights],
        "weights": weights,
        "digest": record.content["digest"],
        "parameters": record.content["parameters"],
        "metrics": dict(record.metrics),
    }


def digits_teacher(run: Run, inputs: Mapping[str, Result]) -> ModuleTeacher:
    """The trained CNN, its logits and its last feature layer."""
    return ModuleTeacher(
        TEACHER,
        partial(cnn, 20),
        weights=run.folder / inputs["teacher"]["weights"],
        layers={"logits": "", "feature": CNN_FEATURE},
        encodings=ENCODINGS,
    )


def cache_path(run: Run) -> Any:
    """The cache of a run."""
    return run.folder / "digits.cache"


def teach_digits(run: Run, inputs: Mapping[str, Result]) -> Result:
    """Cache what the teacher says about every digit."""
    cache = Cache.at(cache_path(run))
    teacher = digits_teacher(run, inputs)
    snapshot = teach(
        cache,
        digits_rows(),
        teacher,
        runner=run.runner,
        shard_rows=SHARD_ROWS,
        listen=run.listen,
    )
    return {"snapshot": snapshot.number, "rows": snapshot.rows}


def preview_teach(run: Run, inputs: Mapping[str, Result], *, epochs: int) -> Preview:
    """Which rows the teacher would answer, and what that takes; epochs: of the students to come."""
    plan = plan_teach(
        cache_path(run),
        digits_rows(),
        digits_teacher(run, inputs),
        shard_rows=SHARD_ROWS,
        epochs=epochs,
        rows_per_epoch=TRAIN_ROWS,
        **plan_options(run),
    )
    return preview_of(plan, cache_path(run))


def audit_digits(run: Run, inputs: Mapping[str, Result]) -> Result:
    """Compare some rows of every shard with the teacher."""
    teacher = digits_teacher(run, inputs)
    report = audit(Cache(cache_path(run)), digits_rows(), teacher, runner=run.runner)
    return report.to_json()


def repair_digits(run: Run, inputs: Mapping[str, Result]) -> Result:
    """Verify, audit, and compute again what either finds wrong."""
    teacher = digits_teacher(run, inputs)
    return mend(cache_path(run), digits_rows(), teacher, run.runner)


def _training(run: Run, inputs: Mapping[str, Result]) -> dict[str, Any]:
    return {
        "rows": digits_rows(),
        "snapshot": Cache(cache_path(run)).snapshot(inputs["teach"]["snapshot"]),
        "splits": digits_splits(),
        "evaluation": Evaluation("test", classification, signals=("logits",)),
        "folder": run.folder / "students",
    }


def train_students(
    run: Run, inputs: Mapping[str, Result], *, names: list[str], epochs: int, seeds: int
) -> Result:
    """Train and evaluate every student that has no record yet."""
    wanted = students(names, epochs, seeds)
    records = train(wanted, **_training(run, inputs), runner=run.runner, listen=run.listen)
    return {"records": [str(record.folder.relative_to(run.folder)) for record in records]}


def preview_students(
    run: Run, inputs: Mapping[str, Result], *, names: list[str], epochs: int, seeds: int
) -> str:
    """Which students would be trained."""
    plan = plan_train(students(names, epochs, seeds), **_training(run, inputs))
    if not plan.stale:
        return ""
    return f"{len(plan.stale)} trainings without a record: {', '.join(plan.names)}"


def export_digits(
    run: Run, inputs: Mapping[str, Result], *, names: list[str], epochs: int, seeds: int
) -> Result:
    """Write one trained student as inference needs it."""
    return export_wanted(run, students(names, epochs, seeds), **_training(run, inputs))
