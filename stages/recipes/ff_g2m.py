"""FF-G2M: low and high frequencies of a graph network for an MLP (Wu et al. 2023, arXiv:2305.10758).

    lamb CE(s, y on labelled nodes) + (1 - lamb) (L_low + L_high)
    L_low  = mean over edges (i, j), self-loops too, of   KL(softmax(t_j) || softmax(s_i))
    L_high = mean over edges (i, j), self-loops not, of   KL(softmax(|t_i - t_j| / tau) ||
                                                             softmax(|s_i - s_j| / tau))

A node's student agrees with the teacher's answers for its neighbours, and differs from them as the
teacher's answers do; |.| is taken of each class's logit. The student sees features alone, so that nodes
outside the graph can be asked. `table.edges` are places in the student's split, self-loops among them;
the means are over those edges whose two ends are in the batch: with one batch for all nodes that is the
paper, with smaller ones an estimate of it. Released code takes all nodes at once, and does the same.
The paper tunes lamb and tau for each data set; these are the released ones of Citeseer with a GCN.
Defaults: lamb 0.1, tau 1.5.

>>> import torch
>>> edges, nodes = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]), torch.arange(2)
>>> t = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
>>> high_frequency(t + torch.tensor([3.0, -1.0]), t, edges, nodes, tau=1.5)
tensor(0.)
>>> low_frequency(t, t, edges, nodes) > low_frequency(t, t, edges[:, [0, 3]], nodes)
tensor(True)
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from stillroom.stages.data.rows import find_rows
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.proving.graphs import Graph, block_graph, graph_network, karate_club
from stillroom.stages.proving.models import mlp
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.recipes import labels
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import term
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.proving.bench import Bench


def recipe(*, lamb: float = 0.1, tau: float = 1.5) -> Recipe:
    """Both frequencies, and labels of the stream `labelled` where lamb is above 0."""
    if not 0 <= lamb < 1:
        raise ValueError(
            f"ff-g2m: lamb must be in [0, 1), found {lamb}; for labels only use `labels`"
        )
    if not tau > 0:
        raise ValueError(f"ff-g2m: tau must be above 0, found {tau}")
    on_edges = ("student.logits", "teacher.logits", "table.edges", "batch.index")
    terms = [
        term(low_frequency, *on_edges, weight=1 - lamb),
        term(high_frequency, *on_edges, weight=1 - lamb, tau=tau),
    ]
    logits = ("student.logits", "row.label")
    if lamb > 0:
        terms.append(term(cross_entropy, *logits, weight=lamb, where="batch.labelled"))
    return Recipe(
        "ff-g2m",
        tuple(terms),
        paper="arXiv:2305.10758",
        family="graph",
        shapes={
            "student.logits": "float n classes",
            "teacher.logits": "float n classes",
            "table.edges": "int 2 edges below n",
            **({"row.label": "int n below classes"} if lamb > 0 else {}),
        },
    )


def low_frequency(student: Tensor, teacher: Tensor, edges: Tensor, index: Tensor) -> Tensor:
    """Mean over edges of KL(softmax(teacher at the target) || softmax(student at the source)).

    No gradient reaches the teacher.

    Args:
        student, teacher: (n, classes) logits.
        edges: (2, edges) sources and targets, self-loops among them, as places in the split.
        index: (n,) the rows' places in the split; -1 for rows of other streams.

    Returns:
        () loss in nats; 0 where no edge has both ends in the batch.
    """
    source, target = _inside(edges, index)
    return _mean(kl(student[source], teacher[target]), student)


def high_frequency(
    student: Tensor, teacher: Tensor, edges: Tensor, index: Tensor, *, tau: float
) -> Tensor:
    """Mean over edges of KL(softmax(|t_i - t_j| / tau) || softmax(|s_i - s_j| / tau)), self-loops left out.

    Arguments and result as of `low_frequency`. There is no factor tau^2.
    """
    source, target = _inside(edges, index)
    source, target = source[source != target], target[source != target]
    apart = [(logits[source] - logits[target]).abs() / tau for logits in (student, teacher)]
    return _mean(kl(*apart), student)


def _inside(edges: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Edges with both ends in the batch, as rows of it."""
    most = max(int(places.max()) if places.numel() else 0 for places in (edges, index))
    row, own = index.new_full((most + 1,), -1), (index >= 0).nonzero().squeeze(-1)
    row[index[own]] = own
    source, target = row[edges.long()]
    there = (source >= 0) & (target >= 0)
    return source[there], target[there]


def _mean(losses: Tensor, student: Tensor) -> Tensor:
    return losses.mean() if len(losses) else student.sum() * 0


def _arms() -> dict[str, Recipe]:
    """The method, its two halves, and the same with the teacher's answer for the node itself."""
    full = recipe()
    low, high, hard = full.terms
    nodes = replace(low, function=kl, inputs=low.inputs[:2], where="batch.main")
    without = {name: said for name, said in full.shapes.items() if name != "table.edges"}
    return {
        "labels": labels.recipe(),
        "node KL": replace(full, name="glnn", terms=(nodes, hard), shapes=without),
        "low only": replace(full, name="low", terms=(low, hard)),
        "high only": replace(full, name="high", terms=(high, hard)),
        "ff-g2m": full,
    }


def _prove_on(bench: Bench, name: str, graph: Graph, few: int) -> None:
    rows, classes = graph.rows, int(graph.labels.max()) + 1
    splits = bench.split(rows, few=few, test=0) | {"nodes": rows.keys.to_pylist()}
    seen = partial(graph_network, graph.features, graph.edges, 32, classes)
    fit = Fit(
        epochs=(epochs := bench.size(100, 2)),
        batch_size=len(rows),
        optimizer="adam",
        learning_rate=1e-2,
        weight_decay=5e-4,
        schedule="constant",
        evaluate_every=epochs,
    )
    teacher = f"sage-{name}"
    weights = bench.trained(teacher, seen, rows, splits["few"], inputs=("node",), fit=fit)
    whole = ModuleTeacher(teacher, seen, weights=weights, inputs=("node",))
    student = partial(Student, "mlp", partial(mlp, graph.features.shape[1], 64, classes), fit=fit)
    arms = {}
    for arm, made in _arms().items():
        split = "few" if made.name == "labels" else "nodes"
        beside = {"labelled": "few"} if made.streams else {}
        arms[f"{name}: {arm}"] = student(made, inputs=("x",), split=split, beside=beside)
    snapshot = bench.teach(rows, whole, cache=name)
    bench.train(arms, rows, snapshot, splits=splits, tables={"edges": graph.edges})
    said = np.asarray(Reader(snapshot, ["logits"]).gather(splits["test"])["logits"]).argmax(1)
    held_out = rows.read(find_rows(rows, as_keys(splits["test"])), ["label"])["label"]
    bench.note(f"{name}: teacher", accuracy=float((said == held_out).mean()))


def _prove(bench: Bench) -> None:
    blocks = partial(block_graph, bench.seed, blocks=5, size=bench.size(60, 20), dim=16, noise=2.5)
    few = bench.size(100, 25)
    _prove_on(bench, "alike", blocks(inside=0.08, across=0.008), few)
    _prove_on(bench, "unlike", blocks(inside=0.008, across=0.08), few)
    _prove_on(bench, "karate", karate_club(), 8)


PROOF = Proof(
    _prove,
    data="two stochastic block models, 5 blocks of 60, neighbours mostly of one block (alike) or of "
    "others (unlike), and Zachary's karate club; teacher GraphSAGE 32 on 100 (8) labels, student MLP "
    "64 on all nodes' features without edges; accuracy on nodes without labels",
    claims=(
        Claim("alike: ff-g2m", "alike: labels", says="a graph's knowledge reaches an MLP"),
        Claim("alike: ff-g2m", "alike: node KL", says="neighbours and edges tell more than nodes"),
        Claim("alike: ff-g2m", "alike: low only", says="high frequencies are not drowned"),
        Claim("alike: ff-g2m", "alike: teacher", says="the MLP beats its teacher"),
        Claim("unlike: ff-g2m", "unlike: labels"),
        Claim(
            "unlike: ff-g2m",
            "unlike: node KL",
            says="high frequencies count where neighbours differ",
        ),
        Claim("unlike: ff-g2m", "unlike: low only"),
        Claim("karate: ff-g2m", "karate: labels"),
        Claim("karate: ff-g2m", "karate: node KL"),
    ),
    tried="blocks of 100 and 200 epochs, one seed: the same order; L_low asks to agree with neighbours",
)
