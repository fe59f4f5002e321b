"""How many groups students are put into, and on which workers; Ray's die, and the weights are the same."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.pipeline import RayRunner, WorkerLost
from stillroom.stages import Evaluation, Needs
from stillroom.stages.grouping import batches_of, groups_of
from stillroom.stages.student_work import StudentTask
from stillroom.storage import Snapshot
from tests.stages import group_builders
from tests.stages.builders import network, pupil, taught, trained
from tests.stages.group_builders import FIT, shaky, sharp


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A teacher of `logits` and `feature` over all 60 rows."""
    return taught(tmp_path_factory.mktemp("taught") / "c", teacher=network())


def task(name: str, *, batch_size: int = 8, epochs: int = 4, width: int = 6) -> StudentTask:
    """A student that is only planned."""
    build = partial(pupil, width)
    fit = replace(FIT, batch_size=batch_size, epochs=epochs)
    learner = sharp(name, 4.0, 0, build=build, fit=fit)
    return StudentTask(learner, {"student": {"build": f"width {width}"}}, name, Path(name))


def sizes(tasks: Sequence[StudentTask], places: int) -> list[int]:
    return [len(group.tasks) for group in groups_of(tasks, places, {"train": 40})]


def test_as_few_groups_as_there_are_workers() -> None:
    tasks = [task(f"t{i}") for i in range(16)]
    assert sizes(tasks, 1) == [16]
    assert sizes(tasks, 2) == [8, 8]
    assert sizes(tasks, 3) == [6, 5, 5]
    assert sizes(tasks, 5) == [4, 3, 3, 3, 3]
    assert sizes(tasks, 99) == [1] * 16
    other = [task(f"o{i}", batch_size=10) for i in range(16)]
    assert sizes(tasks + other, 2) == [16, 16]
    assert sizes(tasks + other[:8], 2) == [12, 8, 4]
    assert [len(g.tasks) for g in groups_of(tasks, 2, {"train": 40}, together=False)] == [1] * 16


def test_what_a_student_costs_decides_which_worker_it_is_for() -> None:
    long = [task("long", epochs=16), *(task(f"t{i}") for i in range(4))]
    assert [[t.digest for t in g.tasks] for g in groups_of(long, 2, {"train": 40})] == [
        ["long"],
        ["t0", "t1", "t2", "t3"],
    ]
    wide = [task("wide", width=50), *(task(f"t{i}") for i in range(4))]
    assert sizes(wide, 2) == [1, 4]
    # One that costs more than all others together is no reason to part those.
    assert sizes([task("huge", epochs=100), *(task(f"t{i}") for i in range(6))], 4) == [1, 6]
    before = torch.get_rng_state()
    groups_of(wide, 2, {"train": 40})
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    chosen=st.lists(st.tuples(st.integers(8, 10), st.integers(1, 9)), min_size=1, max_size=20),
    places=st.integers(0, 6),
)
def test_every_student_is_in_one_group_with_its_like(
    chosen: list[tuple[int, int]], places: int
) -> None:
    tasks = [task(f"t{i}", batch_size=b, epochs=e) for i, (b, e) in enumerate(chosen)]
    groups = groups_of(tasks, places, {"train": 40})
    assert sorted(id(t) for g in groups for t in g.tasks) == sorted(map(id, tasks))
    for group in groups:
        assert len({batches_of(t.student) for t in group.tasks}) == 1
    kinds = len({b for b, _ in chosen})
    assert kinds <= len(groups) <= kinds + max(places, 1) - 1
    loads = [sum(t.student.fit.epochs for t in g.tasks) for g in groups]
    assert loads == sorted(loads, reverse=True)
    # No group is more than a worker's fair share and one student.
    epochs = [t.student.fit.epochs for t in tasks]
    assert loads[0] <= 1.1 * sum(epochs) / max(places, 1) + max(epochs)


def test_what_a_student_needs_is_counted_from_nothing() -> None:
    with pytest.raises(ValueError, match=r"counted from 0, found Needs\(cpus=-1"):
        Needs(cpus=-1)
    assert Needs(1, 0.5, 3).times(4) == Needs(1, 0.5, 12)
    runner = RayRunner(workers=(0, 3), num_cpus=2, memory_bytes=5)
    assert runner.places() == 3
    one = runner.needing(None, 0.25, 0)
    assert (one.num_cpus, one.num_gpus, one.memory_bytes, one.in_flight) == (2, 0.25, 5, 1)


@pytest.fixture
def three(ray_runner: RayRunner) -> RayRunner:
    """A runner whose Ray is up, with three CPUs."""
    assert ray_runner.places() == 3
    return ray_runner


def by_value(register: Any) -> None:
    """Workers cannot import what tests import."""
    for module in (sys.modules[__name__], group_builders):
        register(module)


def deadly(tensors: Any, *, folder: str, at: int) -> dict[str, Any]:
    """Kills its process at one of the evaluations, and once; notes each one and who made it."""
    made = Path(folder)
    with open(made / "evaluations", "a") as file:
        file.write(f"{os.getpid()}\n")
    calls = (made / "evaluations").read_text().splitlines()
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": float(tensors["student.logits"].square().mean())}


@pytest.mark.slow
def test_a_group_whose_worker_is_killed_goes_on_elsewhere_to_the_same_bits(
    tmp_path: Path, snapshot: Snapshot, three: RayRunner
) -> None:
    from ray import cloudpickle

    fit = replace(FIT, epochs=6)
    students = [sharp(name, 4.0, i, build=shaky, fit=fit) for i, name in enumerate("abc")]
    weights = []
    by_value(cloudpickle.register_pickle_by_value)
    try:
        for name, at in (("whole", 0), ("killed", 8)):
            (tmp_path / name).mkdir()
            measure = partial(deadly, folder=str(tmp_path / name), at=at)
            lost = list[Any]()
            records = trained(
                tmp_path / name / "students",
                students,
                snapshot,
                evaluation=Evaluation("test", measure),
                runner=replace(three, workers=1, listen=lost.append),
                checkpoint_s=0,
            )
            weights.append([record.weights.read_bytes() for record in records])
            deaths = [event for event in lost if isinstance(event, WorkerLost)]
            pids = (tmp_path / name / "evaluations").read_text().splitlines()
            assert (len(deaths), len(set(pids))) == ((1, 2) if at else (0, 1))
        # Killed in the third epoch, when two of three students had evaluated it and one stored it.
        assert [r.content["resumed_after_epoch"] for r in records] == [3, 2, 2]
        assert [r.content["together"] for r in records] == [3] * 3
        assert "the students a, seed 0, b, seed 1, c, seed 2" in deaths[0].item
    finally:
        by_value(cloudpickle.unregister_pickle_by_value)
    assert weights[0] == weights[1]


def placed(tensors: Any, *, folder: str) -> dict[str, Any]:
    """Notes what Ray counts for the process that asks."""
    import ray

    has: Any = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    names = ("CPU", "memory")
    (Path(folder) / f"{os.getpid()}").write_text(json.dumps({n: has.get(n, 0) for n in names}))
    return {}


@pytest.mark.slow
def test_groups_are_on_workers_that_have_what_their_students_need(
    tmp_path: Path, snapshot: Snapshot, three: RayRunner
) -> None:
    from ray import cloudpickle

    large = Needs(cpus=2, memory_bytes=10 << 20)
    students = [sharp(f"large{i}", 4.0, i, needs=large) for i in range(4)]
    students += [sharp(f"small{i}", 4.0, i) for i in range(4)]
    by_value(cloudpickle.register_pickle_by_value)
    try:
        together = trained(
            tmp_path / "t",
            students,
            snapshot,
            evaluation=Evaluation("test", partial(placed, folder=str(tmp_path))),
            runner=three,
        )
    finally:
        by_value(cloudpickle.unregister_pickle_by_value)
    found = [json.loads(path.read_text()) for path in tmp_path.iterdir() if path.name.isdigit()]
    # Three CPUs: one worker of two, with the memory of four students, and workers of one.
    assert {(each["CPU"], each["memory"]) for each in found} == {(1, 0), (2, 40 << 20)}
    assert [r.content.get("together", 1) for r in together] == [4] * 4 + [1, 2, 2, 1]
    apart = trained(tmp_path / "a", students, snapshot, together=False)
    for one, other in zip(together, apart, strict=True):
        assert one.weights.read_bytes() == other.weights.read_bytes()


@pytest.mark.slow
def test_a_group_is_no_larger_than_a_worker_s_memory(
    tmp_path: Path, snapshot: Snapshot, three: RayRunner
) -> None:
    import ray

    with three:
        nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
        memory = sum(node["Resources"].get("memory", 0) for node in nodes)
        needs = Needs(cpus=0, memory_bytes=int(memory / 4.5))
        students = [sharp(f"s{i}", 4.0, i, needs=needs) for i in range(6)]
        one = replace(three, workers=1)
        records = trained(tmp_path, students, snapshot, runner=one)
    assert [r.content["together"] for r in records] == [3] * 6
