"""TGeo-KD: a ratio of teacher and label for every row, learned (Hu et al. 2023, arXiv:2312.15112).

With S, T the predictions of student and teacher, G the label as a one-hot vector, A the teacher's
average prediction for the rows of that label, all in the simplex of C classes:

    state = S, T, G, A, (A-S)^2, (G-S)^2, (T-S)^2, (T-G)^2, (A-G)^2, element by element: 9 C numbers
    alpha = sigmoid(MLP(state)), of no effect on S
    L = mean of alpha T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) CE(s, y)
    student: a step down L with alpha as it is
    MLP: a step of Adam down CE of theta - ahead grad L(theta; alpha) on validation rows

The released script computes alpha without a gradient, so only weight decay moves the MLP
(`unrolled=False`), and takes the cross-entropy of probabilities, not of logits; here the look ahead is
differentiated. A is what `derivations.class_answers` derives of the training rows. The script's decay
of 0.05 outweighs the small gradient of the look ahead: in the proof all rows then get one alpha.
Defaults: temperature 1.5, hidden 128, ahead 0.1, rate 0.1, decay 0.05, unrolled True.

>>> import torch
>>> s, t, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
>>> bool((blended(s, t, y, torch.zeros(4), temperature=1.5) == cross_entropy(s, y)).all())
True
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.stages.deriving.deriving import derive, derive_signals
from stillroom.stages.deriving.methods.class_answers import class_answers
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.parts import Head
from stillroom.stages.proving.data import small_digits
from stillroom.stages.proving.flaws import doubtful, swapped
from stillroom.stages.proving.measures import doubting
from stillroom.stages.proving.models import mlp
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.recipes import kd, labels
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.storage.cache import Cache

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.stages.learning import Learning
    from stillroom.stages.proving.bench import Bench

_SEEN = ("student.logits", "teacher.logits", "row.label", "table.averages")


def state(student: Tensor, teacher: Tensor, label: Tensor, averages: Tensor) -> Tensor:
    """(n, 9 C): what the ratio hangs on, of (n, C) logits, (n,) labels and the (C, C) averages."""
    import torch

    s, t, a = student.detach().softmax(-1), teacher.detach().softmax(-1), averages.detach()[label]
    g = torch.nn.functional.one_hot(label, s.shape[-1]).to(s)
    apart = [(a - s).square(), (g - s).square(), (t - s).square(), (t - g).square()]
    return torch.cat([s, t, g, a, *apart, (a - g).square()], dim=-1)


def blended(
    student: Tensor, teacher: Tensor, label: Tensor, alpha: Tensor, *, temperature: float
) -> Tensor:
    """(n,) the teacher's soft targets for the share `alpha` (n,), the label for what is left."""
    soft = kl(student, teacher, temperature=temperature)
    return alpha * soft + (1 - alpha) * cross_entropy(student, label)


def ratio(given: tuple[tuple[int, ...], ...], wanted: tuple[int, ...], *, hidden: int) -> nn.Module:
    """The MLP over `state`: (n,) shares of the teacher."""
    from torch import nn

    class Ratio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = nn.Linear(9 * given[0][0], hidden), nn.ReLU(), nn.Linear(hidden, 1)
            self.layers = nn.Sequential(*layers, nn.Flatten(0), nn.Sigmoid())

        def forward(self, *seen: Tensor) -> Tensor:
            made: Tensor = self.layers(state(*seen))
            return made

    return Ratio()


def _learn(
    learning: Learning, *, temperature: float, ahead: float, unrolled: bool, **adam: Any
) -> Tensor:
    """One step of the MLP, looking ahead, and one of the student."""
    import torch

    (head,) = learning.student.recipe.heads
    mine = list(learning.heads[head.name].parameters())
    optimizer = learning.keep("optimizer", partial(torch.optim.Adam, mine, **adam))
    rows, held = learning.of_stream("main"), learning.of_stream("validation")
    rows |= learning.outputs(rows)
    student, teacher, label = (rows[name] for name in _SEEN[:3])

    def loss(alpha: Tensor) -> Tensor:
        return blended(student, teacher, label, alpha, temperature=temperature).mean()

    alpha = learning.apply(head, rows)
    after = learning.ahead(loss(alpha if unrolled else alpha.detach()), ahead)
    answer = learning.outputs(held, after)["student.logits"]
    far = cross_entropy(answer, held["row.label"]).mean()
    # The student's forward pass is needed once more, below; without a way to the MLP: zeros.
    how: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    for parameter, gradient in zip(mine, torch.autograd.grad(far, mine, **how), strict=True):
        parameter.grad = gradient
    optimizer.step()
    made = loss(learning.apply(head, rows).detach())
    learning.descend(made)
    return made


def recipe(
    *,
    temperature: float = 1.5,
    hidden: int = 128,
    ahead: float = 0.1,
    rate: float = 0.1,
    decay: float = 0.05,
    unrolled: bool = True,
) -> Recipe:
    """It needs a stream `validation` of labelled rows and the table `averages`; `rate` is Adam's."""
    numbers = {"temperature": temperature, "hidden": hidden, "ahead": ahead, "rate": rate}
    if wrong := [name for name, value in numbers.items() if not value > 0]:
        raise ValueError(f"tgeo-kd: {wrong[0]} must be above 0, found {numbers[wrong[0]]}")
    settings: dict[str, Any] = {"temperature": temperature, "ahead": ahead, "unrolled": unrolled}
    return Recipe(
        "tgeo-kd",
        (),
        heads=(Head("ratio", partial(ratio, hidden=hidden), _SEEN, own_step=True),),
        paper="arXiv:2312.15112",
        family="logits",
        step=partial(_learn, **settings, lr=rate, weight_decay=decay),
        takes=(*_SEEN, "batch.validation"),
        shapes={
            "student.logits": "float n classes",
            "teacher.logits": "float n classes",
            "row.label": "int n below classes",
            "table.averages": "simplex classes classes",
        },
    )


def _prove(bench: Bench) -> None:
    rows = doubtful(small_digits(), (4, 9), share=0.75, seed=bench.seed)
    splits = bench.split(rows, train=900, validation=100, test=0)
    splits["both"] = splits["train"] + splits["validation"]
    big, small = partial(mlp, 64, 256, 10), partial(mlp, 64, 32, 10)
    weights = bench.trained("big", big, rows, splits["both"], inputs=("image",))
    teacher = ModuleTeacher("big", big, weights=weights, layers={"honest": ""})
    snapshot = bench.teach(rows, teacher)
    cache, flawed = Cache.at(snapshot.cache), swapped("honest", (4, 9))
    snapshot = derive_signals(cache, snapshot, flawed, rows=rows, runner=bench.runner)
    likely = class_answers("logits", "label")
    found = derive(cache, snapshot, likely, rows=rows, keys=splits["train"])
    sgd = partial(Fit, optimizer="sgd", learning_rate=0.1, schedule="cosine", evaluate_every=25)
    fit = sgd(epochs=bench.size(25, 1), batch_size=50)
    arms = {"labels": Student("s", small, labels.recipe(), split="both", fit=fit)}
    for alpha in (0.9, 0.5):
        fixed = kd.recipe(alpha=alpha, temperature=1.5)
        arms[f"kd, alpha {alpha}"] = Student("s", small, fixed, split="both", fit=fit)
    learned = {
        "tgeo-kd": recipe(rate=0.01, decay=0.0),
        "tgeo-kd, decay 0.05": recipe(),
        "tgeo-kd, as released": recipe(unrolled=False),
    }
    for arm, made in learned.items():
        seen = replace(made, heads=(replace(made.heads[0], kept=True),))  # to be measured
        arms[arm] = Student("s", small, seen, beside={"validation": "validation"}, fit=fit)
    test = Evaluation("test", doubting, columns=("label", "wrong"), signals=("logits",))
    tables = {"averages": found["answers"].astype(np.float32)}
    bench.train(arms, rows, snapshot, splits=splits, evaluation=test, tables=tables)


PROOF = Proof(
    _prove,
    data=(
        "scikit-learn digits; teacher MLP 256 whose logits of 4 and 9 are swapped for three in four of "
        "these rows (15% wrong); student MLP 32 on 1,000 rows, 100 of them for validation"
    ),
    claims=(
        Claim("tgeo-kd", "kd, alpha 0.5", says="a learned ratio is better than a fixed one"),
        Claim("tgeo-kd", "kd, alpha 0.9", says="and than one that trusts the teacher"),
        Claim("tgeo-kd", "labels", says="and than labels alone"),
        Claim("tgeo-kd", "tgeo-kd, as released", says="it is the look ahead that helps"),
        Claim("tgeo-kd", "tgeo-kd, as released", "auc", says="alpha is low where teachers err"),
    ),
    tried="Adam's rate 0.1, 0.01, 0.001 and decay 0.05, 5e-4, 0, by the validation loss of two seeds",
)
