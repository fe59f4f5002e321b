"""docs/workflows.md is true: its flows run as they are, and print what it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.workflows.conftest import Inside

PAGE = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
SAID = ("--config", "flow.yaml", "--set", "fit.rate=1e-3", "--fit.epochs", "20")


def block(kind: str, start: str) -> str:
    """The one block of that kind that begins so."""
    (found,) = [text for name, text in BLOCKS if name == kind and text.startswith(start)]
    return str(found)


def test_the_first_flow_its_file_and_what_is_shown_of_them(inside: Inside) -> None:
    Path("flow.py").write_text(block("python", '"""flow.py'))
    config = block("yaml", "schema: 1")
    Path("flow.yaml").write_text(config)
    assert inside("config", "show", "flow.py", *SAID).out == block("", "schema: 1")
    Path("flow.yaml").write_text(config.replace("rows", "rwos").replace(": 5", ": many"))
    wrong = inside("config", "show", "flow.py", "--config", "flow.yaml", "--kinds", "rnn")
    assert wrong.err == "stillroom: " + block("", "settings of workflow")
    command = re.findall(r"^stillroom (run flow\.py --config.*)$", PAGE, re.MULTILINE)
    Path("flow.yaml").write_text(config)
    assert inside(*command[0].split(), "--workers", "0").code == 0


def test_reasons_and_the_graph_are_as_shown(inside: Inside) -> None:
    Path("flow.py").write_text(block("python", '"""flow.py'))
    assert inside("run", "flow.py", "--workers", "0").code == 0
    shown = inside("graph", "flow.py", "--kinds", "cnn", "--kinds", "mlp").out
    assert shown == block("", "○ teach")
    reasons = block("", "setting fit.epochs").splitlines()
    assert inside("run", "flow.py", "--fit.epochs", "5", "--workers", "0").code == 0
    assert reasons[0] in inside("graph", "flow.py", "--fit.epochs", "20").out
    Path("flow.py").write_text(
        Path("flow.py").read_text().replace("sum(range(rows))", "sum(range(2 * rows))")
    )
    assert reasons[1] in inside("graph", "flow.py", "--fit.epochs", "5").out
    assert reasons[3] in inside("run", "flow.py", "--fit.epochs", "5", "--workers", "0").out


def test_migrations_read_a_file_of_before(inside: Inside) -> None:
    flow = block("python", '"""flow.py') + "\n\n" + block("python", "def rows_were_size")
    Path("flow.py").write_text(flow)
    Path("flow.yaml").write_text("schema: 1\nsize: 7\n")
    done = inside("config", "show", "flow.py", "--config", "flow.yaml", "--json")
    assert json.loads(done.out)["settings"]["rows"] == 7
    assert "was read as schema 2 (size gone, rows new)" in done.err


@pytest.mark.slow  # imports torch and its optimisers, seconds for each process
def test_the_sweep_trains_new_students_alone(inside: Inside) -> None:
    Path("sweep.py").write_text(block("python", '"""sweep.py'))

    def run(*arguments: str) -> tuple[int, int]:
        done = inside("run", "sweep.py", "--workers", "0", *arguments, "--json")
        assert done.code == 0, done.err
        made = len(list(Path("out/sweep/students").iterdir()))
        return int(json.loads(done.out)["results"]["choice"]["students"]), made

    assert run("--seeds", "1") == (4, 4)
    segments = sorted(Path("out/sweep/cache/segments").iterdir())
    assert run("--seeds", "1", "--temperatures", "1", "--temperatures", "9") == (4, 6)
    planned = json.loads(inside("plan", "sweep.py", "--drawn", "3", "--json").out)
    assert [step["why"] for step in planned] == ["", "3 students have no record", "after students"]
    assert run("--drawn", "3") == (7, 9)
    assert sorted(Path("out/sweep/cache/segments").iterdir()) == segments
    names = {path.name.rpartition("-")[0] for path in Path("out/sweep/students").iterdir()}
    assert "kd-temperature4-alpha0p5-0" in names
