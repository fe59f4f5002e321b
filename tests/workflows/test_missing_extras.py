"""A command whose extra is not installed says so in one sentence, with pip's command, and exits with 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom.workflows.schedules.ledger import runs
from stillroom.workflows.schedules.state import State
from tests.workflows.conftest import Inside

FLOW = """
from pathlib import Path
from stillroom.pipeline import Step
from stillroom.stages import Decode, FunctionTeacher, ImageFolderRows, teach
from stillroom.storage import Cache

def half(image):
    return {"half": image.reshape(len(image), -1) / 2}

def run_teach(run, inputs):
    Path("images").mkdir()
    Path("images", "one.gif").write_bytes(b"GIF89a")
    data = ImageFolderRows(Path("images"), decode=Decode())
    teacher = FunctionTeacher("half", half, ("image",), ("half",))
    return {"rows": teach(Cache.at(run.folder / "c"), data, teacher, runner=run.runner).rows}

def run_report(run, inputs):
    from stillroom.workflows.reporting.writing import page_text
    page_text({"students": [1]})
    return {}

def nothing(run, inputs):
    return {}

def workflow(*, what: str = "nothing"):
    return [Step(what, {"teach": run_teach, "report": run_report, "nothing": nothing}[what])]
"""
EVERY = ("run", "lacking.py", "--workers", "0")


@pytest.mark.parametrize(
    ("absent", "extra", "command"),
    [
        (("uvicorn",), "page", ("page", "--page-at", "0")),
        (("starlette",), "page", ("page", "--page-at", "0")),
        (("uvicorn",), "page", ("serve", "--page-at", "0")),
        (("dbos",), "schedule", ("serve",)),
        (("croniter",), "schedule", ("schedule", "add", "n", "lacking.py", "--cron", "@daily")),
        (("tensorboardX",), "tensorboard", (*EVERY, "--tensorboard", "board")),
        (("obstore",), "objects", ("cache", "show", "s3://bucket/cache")),
        (("PIL",), "images", (*EVERY, "--what", "teach")),
        (("jinja2",), "report", (*EVERY, "--what", "report")),
        (("mlxtend",), "demo", ("run", "digits", "--workers", "0")),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else value,
)
def test_a_missing_extra_is_one_sentence(
    absent: tuple[str, ...],
    extra: str,
    command: tuple[str, ...],
    inside: Inside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "lacking.py").write_text(FLOW)
    monkeypatch.setenv("STILLROOM_STATE", str(tmp_path / "state"))
    forget(absent, monkeypatch)
    done = inside(*command)
    assert done.code == 2, done.err
    said = done.err.splitlines()[-1]
    assert said.startswith("stillroom: ")
    assert f"pip install 'stillroom[{extra}]'" in said
    assert "Traceback" not in done.err
    every = runs(State(tmp_path / "state"))
    assert len(every) == (command[0] == "run")
    for run in every:
        assert (run.state, run.exit_code) == ("failed", 2)
        assert str(run.error) in said


def forget(absent: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """No import finds these, nor what was made with them before."""
    users = ("stillroom.workflows.page.app",)
    for name in list(sys.modules):
        if name.split(".")[0] in absent:
            monkeypatch.setitem(sys.modules, name, None)
        elif name in users:
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.delattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2])
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)


BARE = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
from stillroom.workflows.cli import main
for command in {commands!r}:
    sys.argv = ["stillroom", *command]
    try:
        main()
    except SystemExit as end:
        print("exit code", end.code, flush=True)
"""
ALL = (
    *(
        "uvicorn",
        "starlette",
        "jinja2",
        "dbos",
        "croniter",
        "matplotlib",
        "tensorboardX",
        "obstore",
    ),
    *("PIL", "dagster", "mlxtend", "onnxruntime", "transformers", "moto", "optuna"),
)


def test_without_any_extra_runs_are_recorded_and_the_page_is_refused(tmp_path: Path) -> None:
    """A process in which none of them can be imported, from its start."""
    (tmp_path / "lacking.py").write_text(FLOW)
    code = BARE.format(absent=ALL, commands=(EVERY, ("runs",), ("page", "--page-at", "0")))
    call = [sys.executable, "-c", code]
    where = {**os.environ, "STILLROOM_STATE": str(tmp_path / "state")}
    done = subprocess.run(
        call, cwd=tmp_path, env=where, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("exit code")] == [
        *["exit code 0", "exit code 0", "exit code 2"]
    ]
    assert [(run.state, run.exit_code) for run in runs(State(tmp_path / "state"))] == [("done", 0)]
    assert done.stderr == (
        "stillroom: the page needs Starlette and uvicorn (import of uvicorn halted; None in "
        "sys.modules): pip install 'stillroom[page]'\n"
    )


def test_a_dagster_job_without_dagster(monkeypatch: pytest.MonkeyPatch) -> None:
    from stillroom.storage.errors import MissingPackageError
    from stillroom.workflows.dagster_job import dagster_job

    monkeypatch.setitem(sys.modules, "dagster", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'stillroom\[dagster\]'"):
        dagster_job("digits")
