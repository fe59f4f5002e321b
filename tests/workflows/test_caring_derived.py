"""`stillroom repair FLOW` and `audit FLOW` for routed teachers and for signals that were derived."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillroom.storage import verify
from tests.storage.caches import content, flip, only
from tests.workflows.test_caring import Run, run

__all__ = ["run"]

FLOW = """
import numpy as np
from stillroom.pipeline import Step
from stillroom.stages import (
    ArrayRows, FunctionTeacher, RoutedTeacher, audit, derivations, derive_signals,
    derived_as_taught, teach)
from stillroom.storage import Cache
from stillroom.workflows.caring import mend, mend_derived

def double(image):
    return {"logits": image * 2}

def negate(image):
    return {"logits": -image}

def given():
    image = np.random.default_rng(0).standard_normal((20, 4)).astype("f4")
    kind = ["a", "b", "b"] * 6 + ["a", "a"]
    return ArrayRows([f"r{i}" for i in range(20)], image=image, kind=kind)

EXPERTS = RoutedTeacher("experts", "kind", {
    "a": FunctionTeacher("double", double, ("image",), ("logits",)),
    "b": FunctionTeacher("negate", negate, ("image",), ("logits",)),
})
MEAN = derivations.ensemble(["experts/logits", "experts/logits"], name="mean")

def cache(run):
    return Cache.at(run.folder / "c")

def run_teach(run, inputs):
    rows = EXPERTS.rows(given())
    return {"snapshot": teach(cache(run), rows, EXPERTS, runner=run.runner, shard_rows=5).number}

def mend_teacher(run, inputs):
    return mend(run.folder / "c", EXPERTS.rows(given()), EXPERTS, run.runner)

def audit_teacher(run, inputs):
    return audit(cache(run), EXPERTS.rows(given()), EXPERTS, runner=run.runner).to_json()

def run_derive(run, inputs):
    found = derive_signals(cache(run), cache(run).snapshot(), MEAN, shard_rows=5)
    return {"snapshot": found.number}

def mend_mean(run, inputs):
    return mend_derived(run.folder / "c", MEAN, run.runner)

def audit_mean(run, inputs):
    return audit(cache(run), *derived_as_taught(cache(run), MEAN), runner=run.runner).to_json()

def workflow():
    first = Step("teach", run_teach, actions={"repair": mend_teacher, "audit": audit_teacher})
    actions = {"repair": mend_mean, "audit": audit_mean}
    return [first, Step("derive", run_derive, needs=(first,), actions=actions)]
"""


@pytest.fixture
def flow(tmp_path: Path, run: Run) -> tuple[object, ...]:
    """The arguments that name the workflow and where it ran."""
    (tmp_path / "flow.py").write_text(FLOW)
    where = (tmp_path / "flow.py", "--out", tmp_path / "out")
    assert run("run", *where, "--workers", "0").code == 0
    return where


def test_one_command_mends_a_routed_teacher_and_what_was_derived_from_it(
    tmp_path: Path, flow: tuple[object, ...], run: Run
) -> None:
    path = tmp_path / "out/c"
    before = content(path)
    flip(only(path, "segments/0002-mean-*/signals/mean/c/1/0"), 78)
    audited = run("audit", *flow)
    assert audited.code == 3
    assert "derive: 0002-mean-" in audited.out
    flip(only(path, "segments/0001-experts-*/signals/logits/c/2/0"), 77)
    done = run("repair", *flow)
    assert done.code == 0, done.out + done.err
    assert "teach: 5 rows were computed again" in done.out
    assert "derive: 5 rows were computed again" in done.out
    assert "not repairable" not in done.out
    assert content(path) == before
    assert run("audit", *flow).code == 0
    flip(only(path, "segments/0002-mean-*/rows.arrow"), 601)
    said = run("repair", *flow, "--json").json
    assert [said[step]["rows"] for step in ("teach", "derive")] == [0, 0]
    assert verify(path).problems == ()
    assert content(path) == before
