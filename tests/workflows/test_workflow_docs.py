"""docs/workflows.md is true: its flows run as they are, and print what it shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflows.conftest import Inside
from tests.workflows.schedules.builders import until

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


@pytest.mark.slow  # as above
def test_the_sweep_that_stops_losers_trains_the_others_and_then_nothing(inside: Inside) -> None:
    pytest.importorskip("optuna")
    stops = block("python", "from stillroom.stages import halve")
    Path("sweep.py").write_text(block("python", '"""sweep.py') + "\n\n" + stops)
    flow = ("sweep.py", "--workers", "0", "--seeds", "2", "--json")
    done = inside("run", *flow)
    assert done.code == 0, done.err
    assert json.loads(done.out)["results"]["choice"]["students"] == 2  # of eight, a factor of 3
    made = sorted(Path("out/sweep/students").glob("*/*.json"))
    assert [path.name for path in made].count("stopped.json") == 6
    planned = json.loads(inside("plan", "sweep.py", "--seeds", "2", "--json").out)
    assert [step["why"] for step in planned] == ["", "", ""]
    assert inside("run", *flow).code == 0
    assert sorted(Path("out/sweep/students").glob("*/*.json")) == made


@pytest.mark.slow  # as above
def test_rounds_go_on_in_the_round_that_was_killed(inside: Inside) -> None:
    """Earlier rounds' students and caches stay as they were, under their names."""
    Path("generations.py").write_text(block("python", '"""generations.py'))
    three = ("generations.py", *("--widths", "16") * 3, "--epochs", "60")
    command = [str(Path(sys.executable).with_name("stillroom")), "run", *three, "--workers", "0"]
    out = Path("out/generations")
    with open("printed", "w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=printed)
        until(lambda: list(out.glob("students/born-2-*/record.json")), 240)
        process.kill()
        process.wait()
    assert not list(out.glob("students/born-3-*/record.json"))
    kept = {f: f.stat().st_mtime_ns for f in out.rglob("*born-[12]*/**/*") if f.is_file()}
    kept = {file: at for file, at in kept.items() if "leases" not in file.parts}
    assert {file.parts[2] for file in kept} == {"students", "born-2.cache"}
    planned = json.loads(inside("plan", *three, "--json").out)
    assert planned[0]["why"] == ""
    done = inside("run", *three, "--workers", "0", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["results"]["round-3"]["student"].startswith("students/born-3-3-")
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    four = ("generations.py", *("--widths", "16") * 3, "--widths", "4", "--epochs", "60")
    whys = [step["why"] for step in json.loads(inside("plan", *four, "--json").out)]
    assert whys[:3] == ["", "", ""]
    assert whys[3].startswith("round 4: before: 400 rows: ")
