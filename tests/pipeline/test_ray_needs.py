"""What a worker needs against what nodes have: room, and words for what is missing."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.pipeline import RayRunner
from stillroom.pipeline.ray_needs import Needs, Size


def needs(**given: Any) -> Needs:
    return RayRunner(**given).needs


def node(alive: bool = True, labels: dict[str, str] | None = None, **has: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": has, "Labels": labels or {}}


def test_a_worker_never_spans_two_nodes() -> None:
    halves = [node(CPU=3), node(CPU=3)]
    assert needs(num_cpus=2).fitting(halves) == 2
    assert needs(num_cpus=4).fitting(halves) == 0
    assert "no single node has all of that" in needs(num_cpus=4).lacking(halves, {})


def test_fractions_fill_a_gpu_exactly() -> None:
    for fraction, count in ((0.5, 2), (0.25, 4), (0.1, 10), (0.3, 3), (1 / 3, 3)):
        assert needs(num_cpus=0, num_gpus=fraction).fitting([node(GPU=1)]) == count


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_so_many_fit_and_not_one_more(
    nodes: list[tuple[int, int]], cpus: int, special: int
) -> None:
    wanted = needs(num_cpus=cpus, resources={"a100": special})
    count = 0
    for has_cpus, has_special in nodes:  # placed one by one
        while has_cpus >= cpus and has_special >= special:
            has_cpus, has_special, count = has_cpus - cpus, has_special - special, count + 1
    assert wanted.fitting([node(CPU=c, a100=s) for c, s in nodes]) == count


def test_dead_nodes_and_other_labels_have_no_room() -> None:
    fast = {"speed": "fast"}
    nodes = [node(CPU=8), node(CPU=2, labels=fast), node(alive=False, CPU=8, labels=fast)]
    assert needs(labels=fast).fitting(nodes) == 2
    assert needs(labels={"speed": "!fast"}).fitting(nodes) == 10  # left to Ray
    assert "no node has these labels" in needs(labels={"speed": "slow"}).lacking(nodes, {})


def test_what_is_missing_is_named_with_what_there_is() -> None:
    found = needs(num_gpus=2, resources={"a100": 1}).lacking([node(CPU=4, GPU=1)], {"CPU": 4})
    assert found == (
        "a worker needs 1 CPU, 2 GPU, 1 a100; GPU, a100 is missing: Ray has 4 CPU, 1 GPU, 0 a100 in "
        "all, on 1 node"
    )
    taken = needs(memory_bytes=3 << 30).lacking([node(CPU=4, memory=8 << 30)], {"CPU": 4})
    assert "Ray has 4 CPU, 8 GiB memory in all" in taken
    assert "of which 4 CPU, 0 GiB memory is free: others hold it, or workers start on it" in taken


def test_options_are_ray_s_own_names() -> None:
    asked = needs(
        num_cpus=2, num_gpus=0.5, memory_bytes=1 << 30, resources={"a100": 1}, labels={"zone": "b"}
    )
    assert asked.options() == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "memory": 1 << 30,
        "resources": {"a100": 1},
        "label_selector": {"zone": "b"},
    }


@pytest.mark.parametrize(
    ("workers", "fitting", "nodes", "wanted"),
    [
        (None, 5, 2, 5),
        (None, 0, 0, 1),  # nodes were there and may come back
        (None, inf, 3, 3),
        (4, 2, 1, 2),
        (4, 9, 1, 4),
        (4, inf, 1, 4),
        ((0, 8), 0, 1, 8),
        ((1, 2), 9, 1, 2),
    ],
)
def test_how_many_workers_are_asked_for(
    workers: int | tuple[int, int] | None, fitting: float, nodes: int, wanted: int
) -> None:
    assert Size.of(workers).wanted(fitting, nodes) == wanted


@pytest.mark.parametrize("workers", [(2, 1), (-1, 3), (0, 0)])
def test_sizes_that_cannot_be_are_refused(workers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= least <= most"):
        RayRunner(workers=workers)
