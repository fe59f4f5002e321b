"""Flows on the command line: their settings and help, and what a broken flow says and returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.workflows.conftest import Inside

FLOW = '''
from dataclasses import asdict, dataclass
from stillroom.pipeline import Step

@dataclass(frozen=True)
class Fit:
    epochs: int = 3
    """Rounds."""

def scaled(run, inputs, *, fit, workers):
    return {"scaled": fit["epochs"] * workers}

def workflow(*, fit: Fit = Fit(), workers: int = 1, names: tuple[str, ...] = ()):
    """Scale.

    names: of the runs
    """
    return [Step("scaled", scaled, {"fit": asdict(fit), "workers": workers})]
'''


@pytest.fixture
def flow(tmp_path: Path) -> str:
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "flow.yaml").write_text("schema: 1\nfit:\n  epochs: 5\nworkers: 4\n")
    return "flow.py"


HERE = ("--out", "there")


def test_every_command_takes_the_same_settings(flow: str, inside: Inside) -> None:
    said = ("--config", "flow.yaml", "--set", "fit.epochs=7")
    done = inside("run", flow, *HERE, "--workers", "0", *said, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["results"] == {"scaled": {"scaled": 28}}
    # Options may stand before the flow as well, where a flow's flags cannot.
    again = inside("plan", *said, *HERE, flow, "--json")
    assert not json.loads(again.out)[0]["runs"]
    for command in ("plan", "graph"):
        done = inside(command, flow, *HERE, *said, "--fit.epochs", "8")
        assert "setting fit.epochs: 7 became 8" in done.out
    for command in ("audit", "repair"):
        done = inside(command, flow, *HERE, *said, "--fit.epochs", "many")
        assert (done.code, "--fit.epochs: Input should be a valid integer" in done.err) == (2, True)
        done = inside(command, flow, *HERE, *said)
        assert (done.code, f"no step of this workflow can {command}" in done.err) == (2, True)


def test_settings_are_shown_with_where_they_came_from(flow: str, inside: Inside) -> None:
    said = ("--config", "flow.yaml", "--set", "names=[a, b]")
    assert inside("config", "show", flow, *said).out.splitlines() == [
        "schema: 1",
        "fit:",
        "  epochs: 5    # flow.yaml:3",
        "workers: 4     # flow.yaml:4",
        "names: [a, b]  # --set names",
    ]
    assert json.loads(inside("config", "show", flow, *said, "--json").out) == {
        "schema": 1,
        "settings": {"fit": {"epochs": 5}, "workers": 4, "names": ["a", "b"]},
        "from": {"fit.epochs": "flow.yaml:3", "workers": "flow.yaml:4", "names": "--set names"},
    }


def test_help_goes_on_with_the_flows_settings(flow: str, inside: Inside) -> None:
    shown = inside("run", flow, "--help")
    assert shown.code == 0
    assert "Settings of workflow: Scale." in shown.out
    assert "--names                     of the runs; text, several times; default []" in shown.out
    assert "--fit.epochs                Rounds; int; default 3" in shown.out
    assert "--set workers=..." in shown.out  # --workers is the command's own
    assert "--workers" in inside("config", "show", flow, "--help").out.partition("Settings")[2]
    assert "run FLOW --help lists them" in inside("run", "--help").out
    Path("flow.py").write_text("1 / 0")
    broken = inside("run", "flow.py", "--help")
    assert (broken.code, "ZeroDivisionError" in broken.err) == (2, True)


def test_an_older_file_is_told_of_on_stderr_alone(flow: str, inside: Inside) -> None:
    moved = "def moved(s):\n    return {'fit': {'epochs': s['rounds']}}\nMIGRATIONS = (moved,)\n"
    Path(flow).write_text(FLOW + moved)
    Path("flow.yaml").write_text("schema: 1\nrounds: 6\n")
    done = inside("run", flow, *HERE, "--workers", "0", "--config", "flow.yaml", "--json")
    assert json.loads(done.out)["results"] == {"scaled": {"scaled": 6}}
    assert "flow.yaml is of schema 1 and was read as schema 2 (rounds gone, fit new)" in done.err


def test_a_graph_is_drawn_as_a_picture_as_text_and_as_json(flow: str, inside: Inside) -> None:
    assert inside("graph", flow).out == "● scaled  run: it never ran here\n"
    assert inside("graph", flow, "--mermaid").out.startswith("flowchart TD\n")
    assert json.loads(inside("graph", flow, "--json").out)["steps"][0]["state"] == "stale"
    assert inside("graph", flow, "--svg", "made/flow.svg").out == ""
    assert Path("made/flow.svg").read_text().startswith("<svg ")
    assert not Path("out/flow").exists()


STEPS = "from stillroom.pipeline import Step\ndef f(run, inputs):\n    return {}\ndef workflow():\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import not_there", "flow.py cannot be imported:\nTraceback"),
        ("def workflow(:\n", "SyntaxError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("def f():\n    1 / 0\nf()\n", "line 2, in f"),
        ("x = '\0'", "cannot be imported"),
        (
            STEPS + "    pass",
            "should return a list of steps, found NoneType; is a `return` missing?",
        ),
        (STEPS + "    return Step('a', f)", "found Step; write [step]"),
        (STEPS + "    return []", "returned no steps"),
        (STEPS + "    return ['a']", "returned a str, which is no Step: 'a'"),
        (STEPS + "    return 3", "found int"),
        (
            STEPS + "    return [Step('a', f), Step('a', f, {'n': 1})]",
            "two different steps are called 'a'",
        ),
        (
            STEPS + "    return [Step('a', f, needs=(Step('b', f, needs=(Step('a', f),)),))]",
            "a -> b -> a",
        ),
        (STEPS + "    return [Step('a b', f)]", "because it names a file"),
        (
            STEPS + "    return [Step('a', f, needs=Step('b', f))]",
            "needs should be a tuple of steps",
        ),
        (STEPS + "    raise RuntimeError('nothing to teach')", "RuntimeError: nothing to teach"),
        ("def workflow(x: Missing = 1):\n    pass", "NameError: name 'Missing' is not defined"),
        ("def other():\n    pass", "has no function `workflow` or `flow`"),
        (
            STEPS + "    return [Step('a', f, files=('none.csv',))]",
            "reads the file none.csv, which cannot",
        ),
        (STEPS + "    return [Step('a', f, {'p': {1, 2}})]", "settings must be plain JSON"),
        (STEPS + "    return [Step('a', [].append)]", "step 'a': its function: "),
    ],
)
def test_a_broken_flow_says_what_is_wrong_with_it(inside: Inside, source: str, words: str) -> None:
    Path("flow.py").write_text(source)
    done = inside("run", "flow.py", *HERE, "--workers", "0")
    assert done.code == 2
    assert done.err.startswith("stillroom: ")
    assert words in done.err
    # The user's own lines, and none of what led there.
    assert "importlib" not in done.err
    assert "workflows/flows.py" not in done.err


def test_a_generator_of_steps_is_a_workflow(inside: Inside) -> None:
    Path("flow.py").write_text(STEPS + "    for name in 'ab':\n        yield Step(name, f)\n")
    steps = json.loads(inside("graph", "flow.py", "--json").out)["steps"]
    assert [step["step"] for step in steps] == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("folder/none.py", "no file folder/none.py (looked in "),
        ("flwo.py", "did you mean 'flow.py'"),
        ("folder.py", "folder.py is a folder"),
        ("json.py", "a module 'json' is installed, which this file would hide"),
        ("numpy.py", "a module 'numpy' is installed"),
        ("flow", "no workflow 'flow': expected a Python file"),
        ("flow.yaml", "no workflow 'flow.yaml': expected a Python file"),
    ],
)
def test_what_is_no_flow_is_refused(flow: str, inside: Inside, path: str, words: str) -> None:
    Path("folder.py").mkdir()
    for name in ("json.py", "numpy.py"):
        Path(name).write_text(FLOW)
    done = inside("graph", path)
    assert (done.code, words in done.err) == (2, True), done.err
