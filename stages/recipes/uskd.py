"""Universal self-knowledge distillation, USKD: no teacher (Yang et al. 2023, arXiv:2303.13005).

    CE(s, y) - alpha P_y log S_y - beta sum over i != y of P_i log N(s)_i + mu CE(W, 0.9 [y] + 0.1 / C)

    P_y = S_y^2 + 1 - mean of S_y^2 over the batch      W = softmax of a linear head on a middle feature
    P_i = 1 / rank of class i by W_i / (1 - W_y) + S_i / (1 - S_y), without y's, over their sum

with S = softmax(s) and N(s) = softmax over the other classes alone. P has no gradient: a student makes
its own soft targets, its label's weight from how sure it is, the others' by Zipf's law in an order that
its weak head has a say in. The head is dropped after training. The released loss adds 1e-6 to 1 - W_y
and 1 - S_y; here the ratios are made from logits and need none. Mixed labels (two for a row) are not
offered. The released code writes softmax and log-softmax into one variable; the order is as above.
Defaults: alpha 1, beta 0.1, mu 0.005.

>>> import torch
>>> student, weak = torch.tensor([[5.0, 2.0, 1.0, 0.0]]), torch.zeros(1, 4)
>>> zipf(student, weak, torch.tensor([0]))        # 1/2, 1/3 and 1/4, as the label itself is first
tensor([[0.4615, 0.3077, 0.2308]])
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from stillroom.stages.fit import Fit
from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.logits import cross_entropy, other_classes, soft_cross_entropy
from stillroom.stages.parts import Head
from stillroom.stages.proving.data import flipped, relabelled, small_digits
from stillroom.stages.proving.models import mlp
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.recipes import labels
from stillroom.stages.student import Student
from stillroom.stages.term import term

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.stages.proving.bench import Bench


def recipe(*, alpha: float = 1.0, beta: float = 0.1, mu: float = 0.005) -> Recipe:
    """Labels, soft targets of the student's own making, and the weak head on `student.middle`."""
    if min(alpha, beta, mu) < 0:
        raise ValueError(
            f"uskd: alpha, beta and mu must be at least 0, found {alpha}, {beta} and {mu}"
        )
    own = ("student.logits", "row.label")
    return Recipe(
        "uskd",
        (
            term(cross_entropy, *own),
            term(target, *own, weight=alpha),
            term(non_target, "student.logits", "head.weak", "row.label", weight=beta),
            term(smoothed, "head.weak", "row.label", weight=mu, smoothing=0.1),
        ),
        heads=(Head("weak", weak_head, "student.middle", like="student.logits"),),
        paper="arXiv:2303.13005",
        family="logits",
        shapes={
            "student.logits": "float n classes",
            "student.middle": "float n width",
            "row.label": "int n below classes",
        },
    )


def target(student: Tensor, label: Tensor) -> Tensor:
    """-P_y log S_y: (n,) losses from (n, classes) logits; the mean of P_y over the batch is 1."""
    right = student.detach().softmax(-1).gather(-1, label.long().unsqueeze(-1)).squeeze(-1)
    weight = right.square() + 1 - right.square().mean()
    return weight * cross_entropy(student, label)


def non_target(student: Tensor, weak: Tensor, label: Tensor) -> Tensor:
    """-sum over i != y of P_i log N(s)_i: (n,) losses; no gradient to `weak` nor to the label's logit."""
    return soft_cross_entropy(other_classes(student, label), zipf(student, weak, label))


def zipf(student: Tensor, weak: Tensor, label: Tensor) -> Tensor:
    """P over the other classes: (n, classes - 1) summing to 1, from (n, classes) logits of both heads.

    All classes are ranked, the label's among them, and of equal ones the lower comes first; its share
    is then left out.
    """
    score = _odds(student, label) + _odds(weak, label)
    rank = score.argsort(stable=True, dim=-1, descending=True).argsort(-1) + 1
    shares = other_classes(1 / rank.to(student.dtype), label)
    return shares / shares.sum(-1, keepdim=True)


def _odds(logits: Tensor, label: Tensor) -> Tensor:
    """softmax / (1 - softmax of the label), (n, classes) float64: infinite at most at the label."""
    logits = logits.detach().double()
    return (logits - other_classes(logits, label).logsumexp(-1, keepdim=True)).exp()


def smoothed(logits: Tensor, label: Tensor, *, smoothing: float) -> Tensor:
    """Cross-entropy against (1 - smoothing) [label] + smoothing / classes: (n,) losses."""
    even = -logits.log_softmax(-1).mean(-1)
    return (1 - smoothing) * cross_entropy(logits, label) + smoothing * even


def weak_head(given: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """One linear layer over a feature, or over the means of a map (channels, height, width)."""
    from torch import nn

    if len(given) != 3:
        return linear_projector(given, wanted)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), linear_projector((given[0], 1, 1), wanted))


def _prove(bench: Bench) -> None:
    splits = bench.split(small_digits(), train=300, test=0)
    wrong = partial(flipped, share=0.2, classes=10, seed=bench.seed)
    rows = relabelled(small_digits(), splits["train"], wrong)
    fit = Fit(epochs=bench.size(60, 1), batch_size=50, evaluate_every=60)
    layers = {"logits": "", "middle": "2"}
    student = partial(Student, "mlp", partial(mlp, 64, 32, 32, 10), layers=layers, fit=fit)
    even = term(smoothed, "student.logits", "row.label", smoothing=0.1)
    arms = {
        "labels": student(labels.recipe()),
        "label smoothing": student(Recipe("smoothing", (even,))),
        "uskd": student(recipe()),
        "uskd without other classes": student(recipe(beta=0.0, mu=0.0)),
    }
    bench.train(arms, rows, None, splits=splits)


PROOF = Proof(
    _prove,
    data="scikit-learn digits; no teacher; student MLP 32-32 on 300 rows with 20% wrong labels",
    claims=(
        Claim("uskd", "labels", says="soft targets of one's own beat labels"),
        Claim("uskd", "label smoothing", says="and even smoothing"),
        Claim("uskd", "uskd without other classes", says="Zipf's law over the others helps"),
        Claim("uskd", "labels", "ece", larger=False, says="better calibrated"),
    ),
)
