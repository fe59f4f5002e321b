"""DHO, dual-head optimization with few labels (Kang et al. 2025, arXiv:2505.07675).

    lam CE(z_label, y)  +  (1 - lam) [KD(z_teacher, t) on labelled rows + KD(z_teacher, t) on the others]
    KD(z, t) = T^2 KL(softmax(t / T) || softmax(z / T))

with z_label and z_teacher two linear heads on one feature f of the student. Every batch has as many
labelled rows (`batch.labelled`, drawn again and again) as unlabelled ones, which the epochs count; each
mean is over its own kind of rows. Labels of unlabelled rows are never looked at: below 0 will do. Both
heads are kept, and mixed at inference,

    alpha softmax(z_label) + (1 - alpha) softmax(z_teacher / beta),

with alpha and beta chosen by accuracy on the student's validation split, of equal ones the alpha nearest
to 1/2; without that split the two defaults hold. The answer is the logarithm of the mixture. Released
few-shot code chooses them on test rows; this does not. The released ImageNet script has weights 1 and 1,
twice the loss at lam 0.5. For a student from CLIP the paper normalises f, has z_teacher 100 times as
large, and starts both heads from class vectors; here heads start as torch makes them. Views (crop and
flip, replayed as the teacher saw them) are the student's: Fit(views=K).
Defaults: lam 0.5, temperature 2, alpha 0.5, beta 0.5.

>>> import torch
>>> label, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
>>> bool((mixed(label, teacher, alpha=1.0, beta=4.0) == label.log_softmax(-1)).all())
True
>>> recipe().streams, recipe().columns, recipe().reads
(('labelled',), ('label',), ('logits',))
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from stillroom.stages.fit import Fit
from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.parts import Answer, Head
from stillroom.stages.proving.data import Labels, few_of_each, relabelled, small_digits
from stillroom.stages.proving.gradients import watched
from stillroom.stages.proving.models import mlp, trunk
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import Term, term
from stillroom.stages.views.boxes import Crop
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.rows import ViewedRows
from stillroom.stages.views.teacher import ViewedTeacher

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.proving.bench import Bench

_ALPHAS = tuple(sorted((i / 20 for i in range(21)), key=lambda a: (round(abs(a - 0.5), 2), a)))
_BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


def recipe(
    *, lam: float = 0.5, temperature: float = 2.0, alpha: float = 0.5, beta: float = 0.5
) -> Recipe:
    """Two kept heads on `student.feature`, each with its own teacher, mixed at inference."""
    if not 0 < lam < 1 or not 0 <= alpha <= 1:
        raise ValueError(
            f"dho: lam must be in (0, 1) and alpha in [0, 1], found lam {lam} and alpha {alpha}"
        )
    if not temperature > 0 or not beta > 0:
        raise ValueError(
            f"dho: temperature and beta must be above 0, found {temperature} and {beta}"
        )
    return Recipe(
        "dho",
        _terms("head.teacher", lam, temperature),
        heads=(_head("label"), _head("teacher")),
        answer=Answer(
            mixed,
            ("head.label", "head.teacher"),
            {"alpha": alpha, "beta": beta},
            grid={"alpha": _ALPHAS, "beta": _BETAS},
            score=accuracy,
        ),
        paper="arXiv:2505.07675",
        family="semi-supervised",
        shapes={
            "student.feature": "float n dim",
            "teacher.logits": "float n classes",
            "row.label": "int n below classes",
        },
    )


def _head(name: str) -> Head:
    return Head(name, linear_projector, "student.feature", like="teacher.logits", kept=True)


def _terms(taught: str, lam: float, temperature: float) -> tuple[Term, ...]:
    soft = partial(term, kl, taught, "teacher.logits", weight=1 - lam, temperature=temperature)
    return (
        term(cross_entropy, "head.label", "row.label", weight=lam, where="batch.labelled"),
        soft(where="batch.labelled", name="kl_labelled"),
        soft(where="batch.main", name="kl_unlabelled"),
    )


def mixed(label: Tensor, teacher: Tensor, *, alpha: float, beta: float) -> Tensor:
    """log of alpha softmax(label) + (1 - alpha) softmax(teacher / beta): (n, classes) as both heads'."""
    import torch

    share = torch.tensor([alpha, 1 - alpha], dtype=label.dtype, device=label.device).log()
    return torch.logaddexp(
        share[0] + label.log_softmax(-1), share[1] + (teacher / beta).log_softmax(-1)
    )


def accuracy(answer: Tensor, label: Tensor) -> float:
    """The share of rows whose largest entry is the label's."""
    return float((answer.argmax(-1) == label).double().mean())


def _confused(label: Labels, *, seed: int) -> Labels:
    wrong = np.random.default_rng(seed).random(len(label)) < 0.6
    named = np.select([label == 3, label == 9], [8, 4], label)
    return np.where(wrong, named, label)


def _unknown(label: Labels) -> Labels:
    return np.full_like(label, -1)


def _prove(bench: Bench) -> None:
    digits = small_digits()
    splits = bench.split(digits, test=539, validation=180, taught=539, train=0)
    splits["few"] = few_of_each(digits, splits["train"], 2)
    splits["train"] = [key for key in splits["train"] if key not in {*splits["few"]}]
    rows = relabelled(digits, splits["taught"], partial(_confused, seed=bench.seed))
    rows = relabelled(rows, splits["train"], _unknown)
    plan, views = ViewPlan((Crop((0.5, 1.0)),), seed=bench.seed), bench.size(4, 2)
    big = partial(mlp, 64, 128, 128, 10)
    seen = ViewedRows(rows, plan, views=views, only=splits["taught"])  # so that it knows crops
    learned = seen.keys.to_pylist()[len(rows) :]
    ten = Fit(epochs=bench.size(10, 1))
    weights = bench.trained("big", big, seen, learned, inputs=("image",), fit=ten)
    shown = ViewedRows(rows, plan, views=views, only=[*splits["few"], *splits["train"]])
    teacher = ViewedTeacher(ModuleTeacher("big", big, weights=weights), plan)
    snapshot = bench.teach(shown, teacher)
    bench.note_teacher(rows, snapshot, splits["test"])
    fit = Fit(epochs=bench.size(40, 2), batch_size=64, evaluate_every=40, views=views)
    beside, layers = {"labelled": "few"}, {"feature": ""}
    student = partial(Student, "mlp", partial(trunk, 64, 32), layers=layers, beside=beside, fit=fit)
    single = replace(
        recipe(),
        name="single",
        terms=_terms("head.label", 0.5, 2.0),
        heads=(_head("label"),),
        answer=Answer(_alone, ("head.label",)),
    )
    arms = {
        "labels": student(replace(single, name="labels", terms=single.terms[:1])),
        "single head": student(watched(single)),
        "dho": student(watched(recipe()), validation="validation"),
        "dho, not tuned": student(recipe()),
    }
    records = bench.train(arms, rows, snapshot, splits=splits)
    for arm in ("single head", "dho"):
        bench.note(arm, cosine=records[arm].content["state"]["cosine"])


def _alone(logits: Tensor) -> Tensor:
    return logits


PROOF = Proof(
    _prove,
    data="scikit-learn digits; student MLP 32 on 20 labelled and 519 unlabelled rows in 4 crops; teacher "
    "MLP 128-128 on 539 others, where most 3s were called 8 and most 9s 4; 180 rows to tune on",
    claims=(
        Claim("dho", "single head", says="two heads beat one"),
        Claim("dho", "labels", says="and labels only"),
        Claim("dho, not tuned", "single head", says="also with alpha and beta 1/2"),
        Claim("dho", "single head", "cosine", says="gradients on the shared layers agree more"),
    ),
)
