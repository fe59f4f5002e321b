"""Knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv:1503.02531).

    alpha T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) CE(s, y)

With alpha = 1 no label is read. Defaults: alpha 0.9, temperature 4; the paper leaves both open, these
are customary.

>>> recipe(alpha=1.0).columns, recipe().columns
((), ('label',))
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from stillroom.stages.fit import Fit
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.proving.data import small_digits
from stillroom.stages.proving.models import mlp
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.recipes import labels
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import term

if TYPE_CHECKING:
    from stillroom.stages.proving.bench import Bench


def recipe(*, alpha: float = 0.9, temperature: float = 4.0) -> Recipe:
    """Soft targets, and labels where alpha is below 1."""
    if not 0 < alpha <= 1:
        raise ValueError(
            f"kd: alpha must be in (0, 1], found {alpha}; for labels only use `labels`"
        )
    terms = [term(kl, "student.logits", "teacher.logits", weight=alpha, temperature=temperature)]
    if alpha < 1:
        terms.append(term(cross_entropy, "student.logits", "row.label", weight=1 - alpha))
    return Recipe(
        "kd",
        tuple(terms),
        paper="arXiv:1503.02531",
        family="logits",
        shapes={
            "student.logits": "float n classes",
            "teacher.logits": "float n classes",
            **({"row.label": "int n below classes"} if alpha < 1 else {}),
        },
    )


def _prove(bench: Bench) -> None:
    rows = small_digits()
    splits = bench.split(rows, few=60, train=940, test=0)
    both = splits["few"] + splits["train"]
    big, small = partial(mlp, 64, 256, 256, 10), partial(mlp, 64, 16, 10)
    weights = bench.trained("big", big, rows, both, inputs=("image",))
    snapshot = bench.teach(rows, ModuleTeacher("big", big, weights=weights))
    fit = Fit(epochs=bench.size(60, 1), batch_size=50, evaluate_every=60)
    student = partial(Student, "mlp", small, fit=fit)
    arms = {
        "labels on 60": student(labels.recipe(), split="few"),
        "labels on 940": student(labels.recipe()),
        "kd, 940 without labels": student(recipe(alpha=1.0)),
    }
    bench.train(arms, rows, snapshot, splits=splits)


PROOF = Proof(
    _prove,
    data="scikit-learn digits; teacher MLP 256-256 on 1,000 labels, student MLP 16 on 60 or 940 rows",
    claims=(
        Claim("kd, 940 without labels", "labels on 60", says="soft targets teach without labels"),
        Claim("kd, 940 without labels", "labels on 940", margin=0.01, says="as well as labels"),
    ),
)
