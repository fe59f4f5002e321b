"""What a workflow of 100 steps costs when there is nothing to do: a rerun, and a plan."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.measuring import Line, Section, Table, Timing, Way, interleaved, timed
from stillroom.pipeline.execute import execute, plan
from stillroom.pipeline.step import Run, Step
from stillroom.workflows.flows import open_flow

STEPS, WIDE = 100, 10
"""Each step needs the ten before it in its chain of layers: ten layers of ten."""
HEAD = '''"""Steps whose functions share one that they call."""

from stillroom.pipeline import Step


def shared(value):
    return {"value": value % 1000}

'''
ONE = """
def step_{n}(run, inputs, *, factor):
    return shared(factor * {n} + sum(each["value"] for each in inputs.values()))

"""
TAIL = """
def workflow(*, factor: int = 3):
    layers = [[]]
    for number in range({steps}):
        if number % {wide} == 0:
            layers.append([])
        function = globals()[f"step_{{number}}"]
        needs = tuple(layers[-2])
        layers[-1].append(Step(f"step-{{number}}", function, {{"factor": factor}}, needs))
    return layers[-1]
"""
SOURCE = "from stillroom.workflows.cli import main; main()"


def measure(work: Path, quick: bool) -> Section:
    """Whole commands, and their part in this process, against a workflow of one step."""
    rounds = 2 if quick else 5
    section = Section(
        "Workflows",
        f"A file of {STEPS} functions and {STEPS} steps, {WIDE} in a layer, each of which needs the "
        f"{WIDE} of the layer before (what is needed by nothing is not returned), run once; then "
        "fresh processes that find nothing to do, and the same calls in this process. Against it the "
        "same of one step, so that the difference is the steps.",
    )
    folders = {count: _flow(work, count) for count in (STEPS, 1)}
    what = {"run": ("--workers", "0"), "plan": ()}
    ways: dict[str, Way] = {
        f"{name} {count}": timed(partial(_command, folder, name, *more))
        for name, more in what.items()
        for count, folder in folders.items()
    }
    for count, folder in folders.items():
        steps = open_flow(str(folder / f"flow{count}.py"))
        run = Run(folder / "out" / f"flow{count}")
        ways[f"execute {count}"] = timed(partial(_called, execute, steps, run))
        ways[f"planned {count}"] = timed(partial(_called, plan, steps, run))
    times = interleaved(ways, rounds)
    words = {
        "run": "`stillroom run`, nothing to do, the whole process",
        "plan": "`stillroom plan`, nothing to do, the whole process",
        "execute": "`execute` in a process that has the steps",
        "planned": "`plan` in a process that has the steps",
    }
    rows = []
    for name, said in words.items():
        many, one = times[f"{name} {STEPS}"], times[f"{name} 1"]
        section.lines.append(Line(f"{said}, {STEPS} steps", "one step", many, one))
        rows.append((said, _milliseconds(many), _milliseconds(one), _each(many, one)))
    section.tables.append(
        Table(("what", f"{STEPS} steps", "one step", "each further step"), tuple(rows))
    )
    return section


def _flow(work: Path, count: int) -> Path:
    """A folder with the workflow, in which it has run once."""
    folder = work / str(count)
    folder.mkdir()
    body = "".join(ONE.format(n=number) for number in range(count))
    (folder / f"flow{count}.py").write_text(HEAD + body + TAIL.format(steps=count, wide=WIDE))
    _command(folder, "run", "--workers", "0")
    return folder


def _command(folder: Path, name: str, *more: str) -> None:
    command = [sys.executable, "-P", "-c", SOURCE, name, f"flow{folder.name}.py", *more]
    state = {**os.environ, "STILLROOM_STATE": str(folder / "state")}
    done = subprocess.run(
        command, cwd=folder, env=state, capture_output=True, text=True, check=True
    )
    asked = "everything is fresh" in done.stdout
    assert asked or not (folder / "ran").exists(), done.stdout
    (folder / "ran").touch()


def _called(
    function: Callable[[Sequence[Step], Run], object], steps: Sequence[Step], run: Run
) -> None:
    for _ in function(steps, run):  # type: ignore[attr-defined]
        pass


def _milliseconds(timing: Timing) -> str:
    return f"{timing.median * 1000:.0f} ms"


def _each(many: Timing, one: Timing) -> str:
    return f"{(many.median - one.median) / (STEPS - 1) * 1000:.2f} ms"
