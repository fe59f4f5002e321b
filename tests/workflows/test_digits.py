"""The demo, small: what is computed the first time, the second time, and after a change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner, Run, execute
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.storage import Cache, Reader
from stillroom.workflows.digits import ROSTER, UnknownStudentError, digits, student
from stillroom.workflows.digits_data import digits_rows, digits_splits
from stillroom.workflows.intervals import interval

SMALL = {"epochs": 1, "teacher_epochs": 1, "seeds": 2}
Done = tuple[Path, dict[str, Any]]


def test_the_first_run_computes_every_step_and_leaves_table_and_page(digits_run: Done) -> None:
    folder, said = digits_run
    assert said["computed"] == ["teacher", "teach", "students", "report"]
    results = json.loads((folder / "results.json").read_text())
    assert [s["name"] for s in results["students"]] == list(ROSTER)
    assert all(len(s["runs"]) == 2 for s in results["students"])
    assert len({s["architecture"] for s in results["students"]}) >= 2
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ROSTER)


def test_the_cache_answers_for_every_digit_with_what_the_teacher_says(digits_run: Done) -> None:
    folder, said = digits_run
    snapshot = Cache(folder / "digits.cache").snapshot()
    keys = digits_rows().keys.to_pylist()
    chosen = keys[::97]
    cached: dict[str, Any] = dict(Reader(snapshot).gather(chosen))
    weights = folder / said["results"]["teacher"]["weights"]
    from functools import partial

    from stillroom.workflows.digits_models import cnn

    teacher = ModuleTeacher("cnn20", partial(cnn, 20), weights=weights)
    live = teacher.load()(digits_rows().read(np.arange(0, len(keys), 97), ["image"]))
    logits: Any = live["logits"]
    # float16 keeps 11 bits; the live batch is composed differently, which moves the last bits too.
    np.testing.assert_allclose(cached["logits"], logits, rtol=2e-3, atol=2e-3)
    assert np.asarray(cached["feature"]).shape == (len(chosen), 320)


def test_a_second_run_computes_nothing_and_imports_no_torch(digits_run: Done) -> None:
    import subprocess
    import sys

    folder, _ = digits_run
    program = (
        "import sys; from stillroom.pipeline import Run, execute; "
        "from stillroom.workflows.digits import digits; from pathlib import Path; "
        f"said = []; execute(digits(**{SMALL!r}), Run(Path({str(folder)!r}), listen=said.append)); "
        "fresh = [e.fresh for e in said if type(e).__name__ == 'StepFinished']; "
        "sys.exit(0 if fresh == [True] * 4 and 'torch' not in sys.modules else str(said))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_more_student_trains_only_that_one(digits_run: Done, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(digits_run[0], folder)
    before = {p.name for p in (folder / "students").iterdir()}
    said: list[Any] = []
    run = Run(folder, LocalRunner(), said.append)
    execute(digits(**SMALL, extra=("mlp8-kd",)), run)
    trained = {e.name for e in said if type(e).__name__ == "StudentTrained"}
    new = {p.name for p in (folder / "students").iterdir()} - before
    assert trained == {"mlp8-kd"}
    assert len(new) == SMALL["seeds"]
    assert not any(type(e).__name__ == "RowsTaught" for e in said)


def test_another_teacher_teaches_again_and_leaves_label_only_students_alone(
    digits_run: Done, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(digits_run[0], folder)
    said: list[Any] = []
    settings = {**SMALL, "teacher_epochs": 2}
    execute(digits(**settings), Run(folder, LocalRunner(), said.append))  # type: ignore[arg-type]
    taught = sum(e.rows for e in said if type(e).__name__ == "RowsTaught")
    assert taught == 5000
    assert Cache(folder / "digits.cache").snapshots() == [1, 2]


def test_splits_are_disjoint_and_complete() -> None:
    splits = digits_splits()
    assert len(splits["train"]) == 4000
    assert len(splits["test"]) == 1000
    assert not set(splits["train"]) & set(splits["test"])
    assert set(splits["few"]) < set(splits["train"])
    assert {*splits["train"], *splits["test"]} == set(digits_rows().keys.to_pylist())


@pytest.mark.parametrize("name", ["cnn-kd", "rnn4-kd", "cnn4-kdd", "cnn4", "cnn0-kd", ""])
def test_a_wrong_student_name_is_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(UnknownStudentError, match="expected cnn or mlp"):
        student(name, epochs=1, seed=0)


def test_an_interval_is_the_t_interval_over_seeds() -> None:
    from scipy import stats

    values = [0.91, 0.93, 0.92, 0.95, 0.90]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    found = interval(values)
    assert found["low"] == pytest.approx(low, abs=1e-5)
    assert found["high"] == pytest.approx(high, abs=1e-5)
    assert interval([0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}
