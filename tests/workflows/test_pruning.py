"""Pruning as a step: what goes is planned, said and noted, and nothing that is still read goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner, Run
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache, Reader
from stillroom.storage.care.verifying import verify
from stillroom.workflows.pruning import outside, prune_step
from stillroom.workflows.schedules.ledger import runs
from stillroom.workflows.schedules.state import State
from tests.workflows.conftest import Inside

FLOW = """
import numpy as np
from stillroom.pipeline import Step
from stillroom.stages import ArrayRows, FunctionTeacher, plan_teach, teach
from stillroom.storage import Cache
from stillroom.workflows.plan_words import preview_of
from stillroom.workflows.pruning import prune_step

def double(image):
    return {"logits": image * 2}

TEACHER = FunctionTeacher("double", double, ("image",), ("logits",))

def given(rows):
    image = np.arange(rows * 2, dtype="f4").reshape(rows, 2)
    return ArrayRows([f"r{i}" for i in range(rows)], image=image)

def work(run, inputs, *, rows):
    cache = Cache.at(run.folder / "c")
    snapshot = teach(cache, given(rows), TEACHER, runner=run.runner, listen=run.listen)
    return {"snapshot": snapshot.number}

def untaught(run, inputs, *, rows):
    return preview_of(plan_teach(run.folder / "c", given(rows), TEACHER), run.folder / "c")

def workflow(*, rows: int = 4, keep: int = 2):
    taught = Step("teach", work, {"rows": rows}, preview=untaught)
    return [prune_step("prune", "c", keep_last=keep, needs=(taught,))]
"""


def test_each_night_drops_what_is_outside_the_policy(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLROOM_STATE", "state")
    Path("flow.py").write_text(FLOW)

    def night(rows: int) -> list[int]:
        done = inside("run", "flow.py", "--rows", str(rows), "--workers", "0", "--json")
        assert done.code == 0, done.err
        return Cache("out/flow/c").snapshots()

    assert [night(rows) for rows in (4, 5, 6, 6)] == [[1], [1, 2], [2, 3], [2, 3]]
    every = [[(s.step, s.fresh, s.why) for s in run.steps] for run in runs(State("state"))[::-1]]
    new = "double: 4 rows: this teacher has answered none yet"
    assert every[0] == [
        ("teach", False, f"it never ran here; {new}"),
        ("prune", False, "it never ran here"),
    ]
    assert every[1][1] == ("prune", False, "result of teach: snapshot: 1 became 2")
    (name, fresh, why) = every[2][1]
    assert (name, fresh) == ("prune", False)
    assert why.startswith("result of teach: snapshot: 2 became 3; 1 snapshot, ")
    assert why.endswith(" go; kept: the newest 2")
    assert every[3] == [("teach", True, ""), ("prune", True, "")]
    planned = inside("plan", "flow.py", "--rows", "6", "--keep", "1", "--json")
    teaching, pruning = json.loads(planned.out)
    assert teaching["why"] == ""
    assert pruning["why"].startswith("1 snapshot, ")
    assert pruning["details"]["snapshots"] == [2]
    assert Cache("out/flow/c").snapshots() == [2, 3]  # a plan removes nothing
    assert not verify("out/flow/c").problems
    found = Reader(Cache("out/flow/c").snapshot(), ["logits"]).gather(["r5", "r0"])["logits"]
    np.testing.assert_array_equal(found, [[20, 22], [0, 2]])


def answers(x: Any) -> dict[str, Any]:
    return {"logits": x}


def test_a_plan_before_there_is_a_cache_and_one_elsewhere(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    step = prune_step("prune", "c", keep_days=30)
    assert outside(run, {}, **step.settings).why == ""
    elsewhere = tmp_path / "shared" / "c"
    teacher = FunctionTeacher("t", answers, inputs=("x",), signals=("logits",))
    for count in (2, 3):
        rows = ArrayRows(list(range(count)), x=[[float(i)] for i in range(count)])
        teach(Cache.at(elsewhere), rows, teacher, runner=LocalRunner())
    step = prune_step("prune", str(elsewhere), keep_last=1, keep_days=0)
    shown = outside(run, {}, **step.settings)
    assert shown.why.endswith("go; kept: the newest, those of the last 0 days")
    assert shown.lines == ("snapshots: 1",)
    assert step.function(run, {}, **step.settings) == {"oldest": 2}
    assert Cache(elsewhere).snapshots() == [2]


@pytest.mark.parametrize(
    ("policy", "said"),
    [({}, "give keep_last or keep_days"), ({"keep_last": 0}, "at least 1, found 0")],
)
def test_a_policy_that_keeps_everything_or_nothing_is_refused(
    policy: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=f"step 'tidy'.*{said}"):
        prune_step("tidy", "c", **policy)
