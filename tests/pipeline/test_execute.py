"""Steps run when their code, settings, files or inputs changed, and say so; no other step runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import Run, Step, Stopped, execute, execute_step
from stillroom.pipeline.execute import StepFinished, StepStarted, WorkflowError, ordered
from stillroom.storage.code import code_digest
from stillroom.storage.identity import digest
from tests.pipeline.conftest import Watch

Inputs = Mapping[str, dict[str, Any]]


def number(run: Run, inputs: Inputs, *, value: int = 1) -> dict[str, Any]:
    return {"value": value}


def parity(run: Run, inputs: Inputs) -> dict[str, Any]:
    return {"odd": sum(result["value"] for result in inputs.values()) % 2}


def said(run: Run, inputs: Inputs) -> dict[str, Any]:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "said.txt").write_text(str(dict(inputs)))
    return {"outputs": ["said.txt"]}


def broken(run: Run, inputs: Inputs) -> dict[str, Any]:
    raise ArithmeticError("cannot")


def chain(value: int = 1) -> Step:
    first = Step("number", number, {"value": value})
    return Step("said", said, needs=(Step("parity", parity, needs=(first,)),))


def test_steps_run_in_order_and_then_never_again(watch: Watch) -> None:
    results = watch.execute(chain())
    assert results["parity"] == {"odd": 1}
    assert watch.why == dict.fromkeys(["number", "parity", "said"], "it never ran here")
    assert watch.execute(chain()) == results
    assert (watch.why, watch.fresh) == ({}, ["number", "parity", "said"])


def test_events_come_in_pairs_with_the_result(watch: Watch) -> None:
    watch.execute(Step("number", number))
    started, finished = watch.events
    assert started == StepStarted("number", "it never ran here")
    assert isinstance(finished, StepFinished)
    assert (finished.fresh, finished.result) == (False, {"value": 1})
    assert finished.seconds >= 0


def test_a_changed_setting_is_named_and_what_gives_the_same_result_stops_there(
    watch: Watch,
) -> None:
    watch.execute(chain(1))
    watch.execute(chain(3))
    assert watch.why["number"] == "setting value: 1 became 3"
    assert watch.why["parity"] == "result of number: value: 1 became 3"
    assert watch.fresh == ["said"]  # 3 is odd as well
    watch.execute(chain(4))
    assert watch.why["said"] == "result of parity: odd: 1 became 0"


def load(folder: Path, source: str, name: str = "flow") -> ModuleType:
    """A module of steps from source, as `stillroom run flow.py` loads it."""
    (folder / f"{name}.py").write_text(source)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_changed_code_is_noticed_and_changed_comments_are_not(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = "def step(run, inputs):\n    return {'n': 1}\n"
    watch.execute(Step("one", load(tmp_path, source).step))
    commented = "def step(run, inputs):\n    # a word\n    return {'n': 1}\n"
    watch.execute(Step("one", load(tmp_path, commented).step))
    assert watch.fresh == ["one"]
    watch.execute(Step("one", load(tmp_path, source.replace("1", "22")).step))
    assert watch.why == {"one": "code of step changed"}


FLOW = """
import helpers
LIMIT = 3
def scaled(x):
    return x * LIMIT
def step(run, inputs):
    return {'n': scaled(helpers.base())}
def unused():
    return 1
"""
HELPERS = "def base():\n    return 1\ndef other():\n    return 2\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("flow", "x * LIMIT", "LIMIT * x", "code of scaled changed"),
        ("flow", "LIMIT = 3", "LIMIT = 5", "LIMIT of scaled: 3 became 5"),
        ("helpers", "return 1", "return 9", "code of base changed"),
        ("flow", "def step(run, inputs)", "def step(run, inputs, more=2)", "code of step changed"),
        ("flow", "return 1", "return 4", None),
        ("helpers", "return 2", "return 4", None),
        ("flow", "return x * LIMIT", "# LIMIT is three\n    return (x *\n  LIMIT)", None),
        ("flow", "def unused", "def x(n):\n    return n\ndef unused", None),
    ],
)
def test_whose_code_changed_is_said(
    watch: Watch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    old: str,
    new: str,
    why: str | None,
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    texts = {"helpers": HELPERS, "flow": FLOW}
    for edited in (texts, {**texts, file: texts[file].replace(old, new)}):
        modules = {name: load(tmp_path, text, name) for name, text in edited.items()}
        watch.execute(Step("one", modules["flow"].step))
    assert edited != texts
    assert watch.why.get("one", "").split("; ")[0] == (why or "")
    assert watch.fresh == ([] if why else ["one"])


def test_every_change_is_said_and_of_many_the_first_three(watch: Watch) -> None:
    def counted(run: Run, inputs: Inputs, **settings: Any) -> dict[str, Any]:
        return {"value": 1, "long": "x" * 300, **settings}

    def steps(**settings: Any) -> Step:
        return Step("after", parity, needs=(Step("count", counted, settings),))

    watch.execute(steps(a=1, deep={"b": [1]}))
    watch.execute(steps(a=2, deep={"b": [2]}))
    assert watch.why == {
        "count": "setting a: 1 became 2; setting deep.b: [1] became [2]",
        "after": "result of count: a: 1 became 2; result of count: deep.b: [1] became [2]",
    }
    watch.execute(steps(**dict.fromkeys("vwxyz", 1)))
    assert watch.why["count"] == "setting a: gone; setting deep: gone; setting v: new; and 4 more"
    watch.execute(steps(v=1, w=1, x=1, y=1, z=1, long="y" * 300))
    assert watch.why["after"] == "result of count: long changed"


def test_settings_that_look_like_code_are_compared_in_full(watch: Watch) -> None:
    """Of code not every difference has words; none may pass as no difference."""
    for n in (1, 2):
        step = Step("one", number, {"value": {"root": "f", "code": {"f": {"more": n}}}})
        watch.execute(step)
    assert watch.why == {"one": "setting values changed"}


def test_needs_that_come_and_go_are_named(watch: Watch) -> None:
    one, two = Step("one", number), Step("two", number)
    watch.execute(Step("sum", parity, needs=(one,)))
    watch.execute(Step("sum", parity, needs=(two,)))
    assert watch.why["sum"] == "it no longer needs one; it now needs two"


def test_records_of_before_reasons_are_still_true(watch: Watch) -> None:
    """One digest of the code and one of each input, as records were written first."""
    watch.execute(chain())
    for name in ("number", "parity"):
        path = watch.folder / "steps" / f"{name}.json"
        record = json.loads(path.read_text())
        record["identity"]["code"] = code_digest({"number": number, "parity": parity}[name])
        if name == "parity":
            record["identity"]["inputs"] = {"number": digest({"value": 1})}
        path.write_text(json.dumps(record))
    watch.execute(chain())
    assert watch.fresh == ["number", "parity", "said"]
    path.write_text(path.read_text().replace(digest({"value": 1}), digest({"value": 2})))
    watch.execute(chain())
    assert watch.why == {"parity": "result of number changed"}
    record["identity"]["code"] = "0" * 64
    path.write_text(json.dumps(record))
    assert watch.plan(chain())["parity"] == "its code changed"


def test_a_file_that_cannot_be_read_names_the_step(watch: Watch, tmp_path: Path) -> None:
    for file in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(
            WorkflowError, match=r"step 'one' reads the file .*, which cannot be read"
        ):
            watch.execute(Step("one", number, files=(file,)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"needs": Step("a", number)}, "needs should be a tuple of steps, found Step"),
        ({"needs": ("a",)}, "needs should be a tuple of steps, found tuple of str"),
        ({"files": "data.csv"}, "files should be a tuple of paths, found str"),
        ({"settings": ["epochs"]}, "settings should be a mapping, found list"),
        ({"function": "number"}, "its function is a str"),
    ],
)
def test_a_step_of_wrong_parts_is_refused_where_it_is_made(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError, match=f"step 'one': {words}"):
        Step("one", **{"function": number, **fields})


def test_a_function_without_identity_names_its_step(watch: Watch) -> None:
    with pytest.raises(WorkflowError, match=r"step 'one': its function: .*no stable identity"):
        watch.execute(Step("one", [].append))  # type: ignore[arg-type]


def test_a_changed_file_is_named_and_a_moved_one_is_the_same(watch: Watch, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.csv").write_text(name)
    both = (tmp_path / "a" / "data.csv", tmp_path / "b" / "data.csv")
    watch.execute(Step("one", number, files=both))
    (tmp_path / "c" / "data.csv").write_text("a")
    watch.execute(Step("one", number, files=(tmp_path / "c" / "data.csv", both[1])))
    assert watch.fresh == ["one"]
    both[0].write_text("A")  # the first of two files of one name
    watch.execute(Step("one", number, files=both))
    assert watch.why["one"] == "file data.csv changed"


def test_a_missing_output_is_made_again(watch: Watch) -> None:
    watch.execute(chain())
    (watch.folder / "said.txt").unlink()
    assert watch.plan(chain())["said"] == "its output said.txt is gone"
    watch.execute(chain())
    assert watch.why == {"said": "its output said.txt is gone"}
    assert (watch.folder / "said.txt").exists()


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "5", "{}", "\x00\xff", '{"identity": {}}'),
        '{"identity": 3, "result": {}}',
        '{"identity": {}, "result": [1]}',
        '{"identity": {}, "result": null}',
    ],
)
def test_a_damaged_record_is_a_step_that_never_ran(watch: Watch, content: str) -> None:
    watch.execute(chain())
    record = watch.folder / "steps" / "parity.json"
    record.write_text(content)
    assert watch.plan(chain())["parity"] == "it never ran here"
    watch.execute(chain())
    assert watch.why == {"parity": "it never ran here"}
    assert json.loads(record.read_text())["result"] == {"odd": 1}


def test_an_exception_keeps_what_earlier_steps_did(watch: Watch) -> None:
    first = Step("number", number)
    with pytest.raises(ArithmeticError, match="cannot"):
        watch.execute(Step("broken", broken, needs=(first,)))
    with pytest.raises(ArithmeticError, match="cannot"):
        watch.execute(Step("broken", broken, needs=(first,)))
    assert watch.fresh == ["number"]
    assert watch.why == {"broken": "it never ran here"}


def test_a_circle_is_named() -> None:
    inner = Step("b", number, needs=(Step("a", number),))
    with pytest.raises(WorkflowError, match="need each other: a -> b -> a"):
        ordered([Step("a", number, needs=(inner,))])


def test_two_steps_of_one_name_are_refused_and_one_step_twice_is_not() -> None:
    with pytest.raises(WorkflowError, match="two different steps are called 'a'"):
        ordered([Step("a", number), Step("a", number, {"value": 2})])
    shared = Step("a", number)
    both = [Step("b", parity, needs=(shared,)), Step("c", parity, needs=(shared,)), shared]
    assert [step.name for step in ordered(both)] == ["a", "b", "c"]


def test_a_deep_lattice_of_steps_is_ordered_at_once() -> None:
    level: tuple[Step, ...] = (Step("0", number),)
    for depth in range(1, 60):
        level = tuple(Step(f"{depth}{side}", parity, needs=level) for side in "ab")
    assert len(ordered(level)) == 119


def test_a_chain_deeper_than_the_stack_is_ordered() -> None:
    last = Step("0", number)
    for depth in range(1, 5000):
        last = Step(str(depth), parity, needs=(last,))
    assert [step.name for step in ordered([last])] == [str(depth) for depth in range(5000)]


def test_what_is_no_step_is_named() -> None:
    with pytest.raises(
        WorkflowError, match="the workflow returned a str, which is no Step: 'teach'"
    ):
        ordered(["teach"])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "a b"])
def test_a_name_that_is_no_file_name_is_refused(watch: Watch, name: str) -> None:
    with pytest.raises(WorkflowError, match="it names a file"):
        watch.execute(Step(name, number))


def test_settings_that_are_not_json_are_refused_before_the_step_runs(watch: Watch) -> None:
    def never(run: Run, inputs: Inputs, **settings: Any) -> dict[str, Any]:
        raise AssertionError("it ran")

    for setting in (Path("x"), {1, 2}, np.float32(1), float("nan")):
        with pytest.raises(TypeError, match="step 'one': settings must be plain JSON"):
            watch.execute(Step("one", never, {"setting": setting}))


@pytest.mark.parametrize("result", [None, 3, [1], {"x": np.float32(1)}, {"x": float("nan")}])
def test_a_result_that_is_not_a_dict_of_json_names_the_step(watch: Watch, result: object) -> None:
    def odd(run: Run, inputs: Inputs) -> Any:
        return result

    with pytest.raises(TypeError, match="step 'one'"):
        watch.execute(Step("one", odd))


def test_the_first_run_sees_a_result_as_every_later_run_does(watch: Watch) -> None:
    def tuples(run: Run, inputs: Inputs) -> dict[str, Any]:
        return {"pair": (1, 2), "by": {1: "one"}}

    step = Step("one", tuples)
    assert (
        watch.execute(step) == watch.execute(step) == {"one": {"pair": [1, 2], "by": {"1": "one"}}}
    )


def test_lists_and_tuples_are_the_same_setting(watch: Watch) -> None:
    def count(run: Run, inputs: Inputs, *, names: Any) -> dict[str, Any]:
        return {"n": len(names)}

    watch.execute(Step("one", count, {"names": ("a", "b")}))
    watch.execute(Step("one", count, {"names": ["a", "b"]}))
    assert watch.fresh == ["one"]


def test_a_step_alone_reads_what_its_needs_left(tmp_path: Path) -> None:
    """As a scheduler calls them, each by itself; together they do what one `execute` does."""
    first = Step("first", number, {"value": 3})
    last = Step("last", parity, needs=(first,))
    events: list[Any] = []
    run = Run(tmp_path, listen=events.append)
    with pytest.raises(
        WorkflowError, match=r"step 'first' never ran in .*; run the workflow first"
    ):
        execute_step(last, run)
    assert not events
    assert [execute_step(first, run), execute_step(last, run)] == [{"value": 3}, {"odd": 1}]
    assert execute([last], run) == {"first": {"value": 3}, "last": {"odd": 1}}
    ended = [(e.step, e.fresh) for e in events if isinstance(e, StepFinished)]
    assert ended == [("first", False), ("last", False), ("first", True), ("last", True)]
    run.stop.ask()
    with pytest.raises(Stopped):
        execute_step(first, run)
