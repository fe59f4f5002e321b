"""FF-G2M: exact properties of its two losses, and an MLP that needs no graph once it has learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.pipeline import LocalRunner
from stillroom.stages import Fit, ModuleTeacher, Record, Student, recipes, teach, train
from stillroom.stages.objectives.logits import kl
from stillroom.stages.proving.bench import TEST
from stillroom.stages.proving.graphs import Graph, block_graph, graph_network, karate_club
from stillroom.stages.proving.models import mlp
from stillroom.stages.recipes.ff_g2m import high_frequency, low_frequency
from stillroom.storage import Cache

NODES = 7


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and edges in both directions with every self-loop."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, NODES, 4, generator=generator, dtype=torch.float64)
    joined = torch.rand(NODES, NODES, generator=generator) < 0.3
    return student, teacher, (joined | joined.T | torch.eye(NODES).bool()).nonzero().T


def seeds(test: Callable[[int], None]) -> Callable[[], None]:
    """Run for drawn seeds; how long a case takes is not what is tested."""
    return settings(deadline=None, max_examples=25)(given(st.integers(0, 2**31))(test))


EVERY = torch.arange(NODES)
LOOPS = torch.stack([EVERY, EVERY])


@seeds
def test_losses_are_those_of_the_paper_edge_by_edge(seed: int) -> None:
    student, teacher, edges = drawn(seed)
    low, high = [], []
    for i, j in edges.T.tolist():
        q, p = student[i].softmax(-1), teacher[j].softmax(-1)
        low.append((p * (p / q).log()).sum())
        if i != j:
            u = ((teacher[i] - teacher[j]).abs() / 1.3).softmax(-1)
            v = ((student[i] - student[j]).abs() / 1.3).softmax(-1)
            high.append((u * (u / v).log()).sum())
    found = low_frequency(student, teacher, edges, EVERY)
    torch.testing.assert_close(found, torch.stack(low).mean())
    found = high_frequency(student, teacher, edges, EVERY, tau=1.3)
    wanted = torch.stack(high).mean() if high else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(found, wanted)


@seeds
def test_both_vanish_where_student_and_teacher_agree_and_only_self_loops_are_left(
    seed: int,
) -> None:
    student, teacher, edges = drawn(seed)
    assert low_frequency(teacher, teacher, LOOPS, EVERY).abs() < 1e-6
    assert high_frequency(student, teacher, LOOPS, EVERY, tau=1.0) == 0
    node = kl(student, teacher).mean()  # with self-loops alone it is distillation node by node
    torch.testing.assert_close(low_frequency(student, teacher, LOOPS, EVERY), node)
    # With neighbours that answer otherwise, agreeing with oneself is not enough.
    far = teacher + 5 * torch.eye(NODES, 4)
    if (edges[0] != edges[1]).any():
        assert low_frequency(far, far, edges, EVERY) > 1e-6
        assert high_frequency(far, far, edges, EVERY, tau=1.0).abs() < 1e-6


@seeds
def test_differences_know_neither_a_common_shift_nor_a_direction(seed: int) -> None:
    student, teacher, edges = drawn(seed)
    loss = partial(high_frequency, index=EVERY, tau=1.5)
    shift = torch.tensor([[9.0, -4.0, 0.5, 2.0], [-7.0, 0.0, 3.0, 11.0]], dtype=torch.float64)
    before = loss(student, teacher, edges)
    moved = loss(student + shift[0], teacher + shift[1], edges)
    torch.testing.assert_close(moved, before)
    torch.testing.assert_close(loss(student, teacher, edges.flip(0)), before)


@seeds
def test_every_edge_twice_changes_nothing(seed: int) -> None:
    student, teacher, edges = drawn(seed)
    twice = torch.cat([edges, edges], 1)
    for loss in (low_frequency, partial(high_frequency, tau=1.5)):
        torch.testing.assert_close(
            loss(student, teacher, twice, EVERY), loss(student, teacher, edges, EVERY)
        )


@seeds
def test_a_batch_counts_the_edges_that_it_holds_whole(seed: int) -> None:
    student, teacher, edges = drawn(seed)
    chosen = torch.tensor([5, 0, 3, 2])
    index = torch.cat([chosen, torch.tensor([-1, -1])])  # and two rows of another stream
    inside = edges[:, torch.isin(edges, chosen).all(0)]
    rows = torch.cat([chosen, torch.tensor([1, 1])])
    for loss in (low_frequency, partial(high_frequency, tau=1.5)):
        found = loss(student[rows], teacher[rows], edges, index)
        torch.testing.assert_close(found, loss(student, teacher, inside, EVERY))


def test_a_batch_without_an_edge_gives_zero_and_a_gradient_of_zeros() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    for edges in (torch.zeros(2, 0, dtype=torch.long), torch.tensor([[8], [9]])):
        for loss in (low_frequency, partial(high_frequency, tau=1.5)):
            found = loss(student, torch.randn(3, 4), edges, torch.arange(3))
            (gradient,) = torch.autograd.grad(found, student)
            assert found == 0
            assert (gradient == 0).all()


def test_settings_that_cannot_be_are_refused_and_labels_are_read_only_where_they_count() -> None:
    with pytest.raises(ValueError, match=r"ff-g2m: lamb must be in \[0, 1\), found 1"):
        recipes.find("ff-g2m", lamb=1.0)
    with pytest.raises(ValueError, match="ff-g2m: tau must be above 0, found 0"):
        recipes.find("ff-g2m", tau=0.0)
    alone, whole = recipes.find("ff-g2m", lamb=0.0), recipes.find("ff-g2m")
    assert (alone.columns, alone.streams, alone.tables) == ((), (), ("edges",))
    assert (whole.columns, whole.streams) == (("label",), ("labelled",))


def learned(folder: Path, graph: Graph, edges: object, batch_size: int) -> Record:
    """An MLP from a graph network's answers, in batches of so many nodes."""
    rows = graph.rows
    keys = rows.keys.to_pylist()
    seen = partial(graph_network, graph.features, graph.edges, 8, 3)
    cache = Cache.at(folder / "cache")
    snapshot = teach(
        cache, rows, ModuleTeacher("sage", seen, inputs=("node",)), runner=LocalRunner()
    )
    student = Student(
        "mlp",
        partial(mlp, 6, 8, 3),
        recipes.find("ff-g2m", lamb=0.0),
        inputs=("x",),
        split="nodes",
        fit=Fit(epochs=2, batch_size=batch_size),
    )
    (record,) = train(
        [student],
        rows,
        snapshot,
        splits={"nodes": keys, "test": keys[::2]},
        evaluation=TEST,
        folder=folder / str(batch_size),
        runner=LocalRunner(),
        tables={"edges": np.asarray(edges)},
    )
    return record


def test_it_learns_in_batches_and_other_edges_make_another_student(tmp_path: Path) -> None:
    graph = block_graph(0, blocks=3, size=10, inside=0.5, across=0.1, dim=6, noise=1.0)
    whole, parts = (learned(tmp_path, graph, graph.edges, size) for size in (30, 8))
    again = learned(tmp_path, graph, graph.edges, 30)
    none = learned(tmp_path, graph, np.stack([np.arange(30)] * 2), 30)
    assert whole.folder == again.folder != none.folder
    assert all(r.content["curve"][-1]["loss"] > 0 for r in (whole, parts, none))
    assert none.content["curve"][0]["loss"] != whole.content["curve"][0]["loss"]


def test_the_teacher_sees_the_graph_and_answers_a_node_alone_as_among_others() -> None:
    graph = block_graph(1, blocks=3, size=8, inside=0.5, across=0.1, dim=6, noise=1.0)
    torch.manual_seed(0)
    network = graph_network(graph.features, graph.edges, 8, 3)
    every = network(torch.arange(24))
    torch.testing.assert_close(network(torch.tensor([5, 2])), every[[5, 2]])
    alone = graph_network(graph.features, np.stack([np.arange(24)] * 2), 8, 3)
    alone.load_state_dict(network.state_dict())
    assert (alone(torch.arange(24)) - every).abs().max() > 1e-3
    other = replace(graph, features=graph.features + (np.arange(24) == 0)[:, None].astype("f4"))
    moved = graph_network(other.features, graph.edges, 8, 3)
    moved.load_state_dict(network.state_dict())
    near = {0, *graph.edges[1][graph.edges[0] == 0].tolist()}
    reached = near | {int(j) for i, j in graph.edges.T if int(i) in near}
    changed = (moved(torch.arange(24)) - every).abs().amax(1) > 1e-6
    assert set(changed.nonzero().flatten().tolist()) <= reached


def test_the_club_is_zacharys() -> None:
    club = karate_club()
    assert club.features.shape == (34, 34)
    assert club.edges.shape == (2, 2 * 78 + 34)  # 78 friendships, both ways, and self-loops
    assert club.labels.tolist().count(0) == 17
    assert (club.edges[0] == club.edges[1]).sum() == 34
