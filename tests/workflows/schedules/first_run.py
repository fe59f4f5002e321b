"""Seconds from `pip install` in an empty environment to the end of the first scheduled run.

python -m tests.workflows.schedules.first_run FOLDER does what the README says, in FOLDER: installs a copy
of this tree with the extra `schedule`, adds a schedule, serves. It prints one JSON object. What pip has
in its cache, and the network behind it, decide most of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from stillroom.workflows.schedules.ledger import DONE, runs
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import until

ROOT = Path(__file__).parents[3]
COPIED = ("storage", "stages", "pipeline", "workflows")
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
FLOW = """
import numpy as np
from stillroom.pipeline import Step
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache

def half(number):
    return {"half": number / 2}

def run_teach(run, inputs, *, rows):
    data = ArrayRows(range(rows), number=np.arange(rows, dtype="f4"))
    teacher = FunctionTeacher("half", half, ("number",), ("half",))
    cache = Cache.at(run.folder / "cache")
    return {"snapshot": teach(cache, data, teacher, runner=run.runner, listen=run.listen).number}

def workflow(*, rows: int = 1000):
    return [Step("teach", run_teach, {"rows": rows})]
"""


def main(folder: Path) -> dict[str, float]:
    """Install, add, serve; how long each took."""
    source = folder / "source"
    for name in COPIED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    (folder / "flow.py").write_text(FLOW)
    begun, found = time.perf_counter(), {}

    def lap(name: str) -> None:
        found[name] = round(time.perf_counter() - begun, 1)

    venv.create(folder / "venv", with_pip=True)
    lap("environment_s")
    programs = folder / "venv" / "bin"
    constraints = ("--constraint", str(source / "constraints.txt"))
    pip = (str(programs / "python"), "-m", "pip", "install", "--quiet", *constraints)
    subprocess.run([*pip, f"{source}[schedule]"], check=True)
    lap("installed_s")
    stillroom, state = str(programs / "stillroom"), State(folder / "out" / ".stillroom")
    own = {**os.environ, "STILLROOM_STATE": str(state.folder), "PYTHONPATH": ""}
    add = ("schedule", "add", "often", "flow.py", "--workers", "0", "--every", "1s")
    subprocess.run([stillroom, *add], cwd=folder, env=own, check=True, stdout=sys.stderr)
    lap("added_s")
    with subprocess.Popen([stillroom, "serve"], cwd=folder, env=own, stdout=sys.stderr) as serving:
        try:
            until(lambda: [run for run in runs(state, last=None) if run.state == DONE], 300)
            lap("first_run_done_s")
        finally:
            serving.terminate()
    first = runs(state, last=None)[-1]
    found["first_run_itself_s"] = round(first.seconds or 0.0, 1)
    assert first.rows_taught == 1000, first
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1])), indent=2))
