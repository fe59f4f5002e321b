"""MiniLM: deep self-attention distillation (Wang et al. 2020, arXiv:2002.10957).

    A = softmax(q k' / sqrt(d)), R = softmax(v v' / sqrt(d)), of the last layer, for each head and token
    attention KL(A of teacher || A of student)  +  value KL(R of teacher || R of student)

the mean over heads and over the tokens that are there (`row.there`). Nobody attends to tokens that are
not there, and they are no rows of the mean. Each side scales by its own head's width d, so widths and
depths are free; the numbers of heads must be equal. No projection, no temperature, no masked tokens are
guessed. The maps are worked out on reading from cached queries, keys and values, which are smaller than
the maps where 3 d < 2 tokens. Departure: the independent code that was read takes the mean of the two
losses; this is their sum, as in the paper. With a teacher assistant the same recipe runs twice.

Defaults: attention 1, value 1.

>>> import torch
>>> draw = torch.Generator().manual_seed(0)
>>> v, there = torch.randn(1, 2, 5, 3, generator=draw), torch.ones(1, 5, dtype=torch.bool)
>>> turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=draw))
>>> bool((relation_kl(v @ turn, v @ turn, v, v, there) < 1e-6).all())
True
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.proving import texts
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.proving.transformers import token_transformer
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import term

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.proving.bench import Bench

INSIDE = ("query", "key", "value")


def recipe(*, attention: float = 1.0, value: float = 1.0) -> Recipe:
    """Attention and value relations of one layer of each; either weight may be 0."""
    if min(attention, value) < 0 or attention + value == 0:
        raise ValueError(
            "minilm: attention and value are weights of at least 0, not both 0; found "
            f"{attention} and {value}"
        )
    read = [*INSIDE[:2]] * (attention > 0) + [*INSIDE[2:]] * (value > 0)
    terms = []
    for weight, left, right in ((attention, "query", "key"), (value, "value", "value")):
        inputs = (f"student.{left}", f"student.{right}", f"teacher.{left}", f"teacher.{right}")
        if weight:
            terms.append(
                term(
                    *(relation_kl, *inputs, "row.there"),
                    weight=weight,
                    where="row.there",
                    name="value" if left == right else "attention",
                )
            )
    return Recipe(
        "minilm",
        tuple(terms),
        paper="arXiv:2002.10957",
        family="relations",
        shapes={
            **{f"student.{name}": "float n heads tokens width" for name in read},
            **{f"teacher.{name}": "float n heads tokens dim" for name in read},
            "row.there": "bool n tokens",
        },
    )


def relations(left: Tensor, right: Tensor, there: Tensor) -> Tensor:
    """(n, heads, tokens, tokens) scores whose softmax over the last axis is a relation of tokens.

    Args:
        left, right: (n, heads, tokens, d): queries and keys, or values twice.
        there: (n, tokens) bool; scores of the others are so low that no softmax gives them anything.
    """
    scores: Tensor = left @ right.transpose(-1, -2) / sqrt(left.shape[-1])
    return scores.masked_fill(~there[:, None, None], -1e9)


def relation_kl(
    left: Tensor, right: Tensor, teacher_left: Tensor, teacher_right: Tensor, there: Tensor
) -> Tensor:
    """(n, tokens) KL(relation of the teacher || relation of the student), the mean over heads.

    Args:
        left, right: (n, heads, tokens, width) of the student.
        teacher_left, teacher_right: (n, heads, tokens, dim) as cached; no gradient reaches them.
        there: (n, tokens) bool.
    """
    if left.shape[:3] != teacher_left.shape[:3]:
        raise ValueError(
            f"minilm: student {tuple(left.shape)} against teacher {tuple(teacher_left.shape)}, as (n, "
            "heads, tokens, d): give the student as many heads as the teacher has"
        )
    theirs = relations(teacher_left.detach(), teacher_right.detach(), there)
    return kl(relations(left, right, there), theirs).mean(1)


def _masked() -> Recipe:
    """Masked language modelling: cross-entropy on hidden tokens."""
    hidden = term(cross_entropy, "student.logits", "row.whole", where="row.hidden")
    return Recipe("masked", (hidden,))


def _prove(bench: Bench) -> None:
    rows = texts.repeated_rows(bench.size(5000, 300), seed=bench.seed)
    splits = bench.split(
        rows, few=200, train=bench.size(2000, 32), test=bench.size(800, 32), more=0
    )
    big, small = (
        partial(token_transformer, vocabulary=33, tokens=12, width=width, depth=2, heads=4)
        for width in (64, 24)
    )
    inputs = ("tokens", "there")
    measured = Evaluation("test", texts.filling, columns=("whole", "hidden"))
    layers = {name: f"{name}(blocks.1.self_attn)" for name in INSIDE}
    weights = bench.trained(
        *("big", big, rows, [*splits["train"], *splits["more"]]),
        inputs=inputs,
        recipe=_masked(),
        fit=_fit(bench.size(2, 1)),  # 250 steps
        evaluation=measured,
        test=splits["test"],
    )
    coded = dict.fromkeys(layers, "float16")
    snapshot = bench.teach(rows, ModuleTeacher("big", big, weights, inputs, layers, coded))
    student = partial(Student, "small", small, inputs=inputs, layers={"logits": "", **layers})
    methods = {
        "attention alone": recipe(value=0.0),
        "values alone": recipe(attention=0.0),
        "minilm": recipe(),
    }
    fit = _fit(bench.size(4, 1))  # 250 steps
    arms = {arm: student(recipe=method, fit=fit) for arm, method in methods.items()}
    first = bench.train(arms, rows, snapshot, splits=splits, evaluation=measured, note=False)
    fit = _fit(bench.size(20, 1))  # 120 steps
    tuned = partial(student, recipe=_masked(), fit=fit, split="few")
    after = {arm: tuned(start=record.weights) for arm, record in first.items()}
    arms = {"no distillation": tuned(), **after}
    bench.train(arms, rows, snapshot, splits=splits, evaluation=measured)


def _fit(epochs: int) -> Fit:
    return Fit(epochs=epochs, batch_size=32, evaluate_every=epochs)


PROOF = Proof(
    _prove,
    data="runs of 4 random tokens of 32, written 2 or 3 times, 15% hidden; teacher transformer of 2 layers "
    "and width 64 (250 steps), students of width 24: 250 steps from 2,000 runs of cached queries, keys "
    "and values, then 120 steps on the hidden tokens of 200 runs",
    claims=(
        Claim("minilm", "attention alone", says="values teach what attention alone does not"),
        Claim(
            "minilm", "no distillation", says="the last layer's relations teach a narrower student"
        ),
    ),
    tried="once, by one seed, a teacher of 2,000 steps and blocks twice as wide inside, students on "
    "batches of 64: the same order. Cut to 250 steps, after which it fills as many of the hidden tokens",
)
