"""Distillation without labels from one strong teacher: SSLD (Cui et al. 2021, arXiv:2103.05959).

    1/2 [KL(p || q) + KL(q || p)]  =  1/2 sum over classes of (p - q) (log p - log q)

with p = softmax(t / T), q = softmax(s / T), times T^2; the student learns from that alone, on every
image that there is, labelled or not, and for many epochs. The paper speaks of the Jensen-Shannon
divergence, 1/2 KL(p || m) + 1/2 KL(q || m) with m = (p + q) / 2; its released loss is the formula
above, half of Jeffreys' divergence. Both are here: divergence "jeffreys_half" or "jensen_shannon".
The released loss clamps probabilities at 1e-8; here logarithms are never taken of probabilities, and
nothing is clamped. Further images are mined by `most_confident`; keeping near-duplicates of held-out
images out of them is left to whoever gathers them. Defaults: divergence jeffreys_half, temperature 1.

>>> import torch
>>> a, b = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 3.0]])
>>> bool(jeffreys_half(a, b) == jeffreys_half(b, a)), jeffreys_half(a, a + 5.0)
(True, tensor([0.]))
>>> jensen_shannon(100 * a, 100 * b) / torch.log(torch.tensor(2.0))
tensor([1.])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.stages.fit import Fit
from stillroom.stages.proving.data import small_digits
from stillroom.stages.proving.models import mlp
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.recipes import kd, labels
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import term
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.proving.bench import Bench


def recipe(
    *,
    divergence: Literal["jeffreys_half", "jensen_shannon"] = "jeffreys_half",
    temperature: float = 1.0,
) -> Recipe:
    """One divergence between the student's and the teacher's classes; no label is read."""
    known = {"jeffreys_half": jeffreys_half, "jensen_shannon": jensen_shannon}
    if divergence not in known:
        raise ValueError(f"ssld: divergence is one of {', '.join(known)}, found {divergence!r}")
    if not temperature > 0:
        raise ValueError(f"ssld: temperature must be above 0, found {temperature}")
    between = ("student.logits", "teacher.logits")
    return Recipe(
        "ssld",
        (term(known[divergence], *between, temperature=temperature),),
        paper="arXiv:2103.05959",
        family="logits",
        shapes=dict.fromkeys(between, "float n classes"),
    )


def jeffreys_half(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 / 2 [KL(p || q) + KL(q || p)] of (n, classes) logits over T: (n,) losses in nats.

    Not bounded: it grows with the square of the difference of logits. No gradient reaches the teacher.
    """
    p, q = _log_probabilities(student, teacher, temperature)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2 * temperature**2


def jensen_shannon(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 / 2 [KL(p || m) + KL(q || m)] of (n, classes) logits over T, m = (p + q) / 2: (n,) losses.

    At most T^2 log 2 nats. No gradient reaches the teacher.
    """
    import torch

    p, q = _log_probabilities(student, teacher, temperature)
    m = torch.logaddexp(p, q) - torch.log(p.new_tensor(2.0))
    return (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1) / 2 * temperature**2


def _log_probabilities(
    student: Tensor, teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ValueError(
            f"ssld: student {tuple(student.shape)} against teacher {tuple(teacher.shape)}; both need "
            "the same classes"
        )
    p = (teacher.detach() / temperature).log_softmax(-1)
    return p, (student / temperature).log_softmax(-1)


def most_confident(keys: Sequence[Any], logits: Any, *, each: int) -> list[Any]:
    """The rows to mine: of every class that the teacher names, the `each` of which it is surest.

    Args:
        keys: n keys.
        logits: (n, classes) of the teacher, as numpy has them.
        each: how many rows of a class are kept at most.

    Returns:
        Keys, surest first within a class, classes in rising order.

    >>> most_confident("abcd", np.array([[9, 0], [0, 1], [3, 0], [6, 0]]), each=2)
    ['a', 'd', 'b']
    """
    logits = np.asarray(logits, np.float64)
    said = logits.argmax(1)
    sure = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    found = []
    for one in np.unique(said):
        mine = np.flatnonzero(said == one)
        found += [keys[i] for i in mine[np.argsort(-sure[mine], kind="stable")][:each]]
    return found


def _prove(bench: Bench) -> None:
    rows = small_digits()
    splits = bench.split(rows, few=60, more=940, test=0)
    splits["all"] = splits["few"] + splits["more"]
    big, small = partial(mlp, 64, 256, 256, 10), partial(mlp, 64, 16, 10)
    weights = bench.trained("big", big, rows, splits["all"], inputs=("image",))
    snapshot = bench.teach(rows, ModuleTeacher("big", big, weights=weights))
    said = Reader(snapshot, ["logits"]).gather(splits["more"])["logits"]
    splits["mined"] = splits["few"] + most_confident(splits["more"], said, each=44)
    # As many steps for all: 20 batches in an epoch of 1,000 rows, 10 in one of 500, 2 in one of 60.
    epochs = {"all": bench.size(30, 1), "mined": bench.size(60, 1), "few": bench.size(300, 1)}

    def student(how: Recipe, split: str) -> Student:
        fit = Fit(epochs=epochs[split], batch_size=50, evaluate_every=epochs[split])
        return Student("mlp", small, how, split=split, fit=fit)

    arms = {
        "labels on 60": student(labels.recipe(), "few"),
        "ssld on 60": student(recipe(), "few"),
        "ssld on 1000": student(recipe(), "all"),
        "ssld on 1000, Jensen-Shannon": student(recipe(divergence="jensen_shannon"), "all"),
        "ssld on 500, mined": student(recipe(), "mined"),
        "soft targets on 1000": student(kd.recipe(alpha=1.0, temperature=1.0), "all"),
        "labels on 1000": student(labels.recipe(), "all"),
    }
    bench.train(arms, rows, snapshot, splits=splits)


PROOF = Proof(
    _prove,
    data="scikit-learn digits; teacher MLP 256-256 on 1,000 labels, student MLP 16 on 60 to 1,000 rows",
    claims=(
        Claim("ssld on 1000", "labels on 60", says="labels are not what is needed"),
        Claim("ssld on 1000", "labels on 1000", margin=0.01, says="as well as with all labels"),
        Claim("ssld on 1000", "soft targets on 1000", says="symmetric beats one-sided"),
        Claim("ssld on 1000", "ssld on 60", says="unlabelled images help"),
    ),
    tried="Twice as many epochs (60): 0.007 below labels and soft targets on 1,000 in place of 0.01.",
)
