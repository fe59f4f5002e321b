"""Self-distillation with ground truth (Borup and Andersen 2021, arXiv:2102.13088): generations of a model.

    alpha MSE(softmax(s), onehot(y)) + (1 - alpha) MSE(softmax(s), softmax(previous))

each the mean over rows and classes, has the gradient of the MSE to the mixture of both targets. The
teacher is the generation before; the first learns with alpha 1. The paper adds 1e-4 times the sum of the
parameters' norms, which released code does not square; here it is `Fit(optimizer="adam", weight_decay=)`,
half the squared norm.

In kernel ridge regression all generations are known in closed form (`generations`): with alpha 0 the
answer shrinks to nothing, above 0 it converges to a fit with lambda / alpha in place of lambda (`limit`).
There answers are affine in alpha, so that the best alpha follows from two fits (`optimal_alpha`); for
networks that is an estimate.

Defaults: alpha 0.3, which is ours: the paper compares several and estimates the best.

>>> K = np.exp(-0.5 * (np.arange(6.0)[:, None] - np.arange(6)) ** 2)
>>> y = np.array([1.0, 0.0, 2.0, 1.0, 0.0, 3.0])
>>> after = partial(generations, K, y, ridge=0.3)
>>> bool(abs(after(alpha=0.2, count=400) - limit(K, y, ridge=0.3, alpha=0.2)).max() < 1e-12)
True
>>> np.array_equal(after(alpha=1.0, count=7), after(alpha=1.0, count=1))
True
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import find_rows
from stillroom.stages.fit import Fit
from stillroom.stages.proving.data import chosen, flipped, relabelled, small_digits
from stillroom.stages.proving.models import mlp
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import term
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.proving.bench import Bench

Floats = NDArray[np.float64]


def recipe(*, alpha: float = 0.3) -> Recipe:
    """Ground truth by alpha, the previous generation by the rest; alpha 1 is the first generation."""
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"self-distill-gt: alpha must be in [0, 1], found {alpha}; clip what `optimal_alpha` gave"
        )
    terms, shapes = [], {"student.logits": "float n classes"}
    if alpha > 0:
        terms.append(term(truth_error, "student.logits", "row.label", weight=alpha))
        shapes["row.label"] = "int n below classes"
    if alpha < 1:
        terms.append(term(previous_error, "student.logits", "teacher.logits", weight=1 - alpha))
        shapes["teacher.logits"] = "float n classes"
    return Recipe(
        "self-distill-gt",
        tuple(terms),
        paper="arXiv:2102.13088",
        family="dynamics-or-theory",
        shapes=shapes,
    )


def truth_error(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over the classes of (softmax(logits) - onehot(label))^2.

    Args:
        logits: (n, classes).
        label: (n,) integer class of each row.

    Returns:
        (n,) losses from 0 to 2 / classes.
    """
    target = logits.new_zeros(logits.shape).scatter(-1, label.long().unsqueeze(-1), 1)
    return (logits.softmax(-1) - target).square().mean(-1)


def previous_error(logits: Tensor, previous: Tensor) -> Tensor:
    """Mean over the classes of (softmax(logits) - softmax(previous))^2, both (n, classes): (n,)."""
    return (logits.softmax(-1) - previous.detach().softmax(-1)).square().mean(-1)


def smoother(kernel: Floats, ridge: float) -> Floats:
    """K (K + ridge I)^-1 for a symmetric positive semi-definite (n, n) kernel, ridge above 0."""
    solved = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), kernel)
    return np.asarray(solved.T, np.float64)


def generations(kernel: Floats, y: Floats, *, ridge: float, alpha: float, count: int) -> Floats:
    """What generation `count` answers for the rows that it was fitted to.

    f_t = K (K + ridge I)^-1 (alpha y + (1 - alpha) f_(t-1)), f_0 = y: each minimises
    alpha / 2 |f - y|^2 + (1 - alpha) / 2 |f - f_(t-1)|^2 + ridge / 2 |f|^2 in the kernel's space.
    """
    made, found = smoother(kernel, ridge), y
    for _ in range(count):
        found = np.asarray(made @ (alpha * y + (1 - alpha) * found), np.float64)
    return found


def limit(kernel: Floats, y: Floats, *, ridge: float, alpha: float) -> Floats:
    """Where generations converge: K (K + ridge / alpha I)^-1 y, for alpha above 0; else 0."""
    return smoother(kernel, ridge / alpha) @ y if alpha > 0 else np.zeros_like(y)


def optimal_alpha(truth: Floats, with_truth: Floats, without: Floats) -> float:
    """The alpha whose mixture of two models' answers is nearest to held-out truth.

    1 - alpha = <truth - f1, f0 - f1> / |f0 - f1|^2; it may lie outside [0, 1].

    Args:
        truth: held-out targets, of any shape.
        with_truth: f1, what the model with alpha 1 answers for them, of that shape.
        without: f0, what the model with alpha 0 answers.

    Raises:
        ValueError: where the two models answer the same, so that every alpha is as good.
    """
    step = np.ravel(without - with_truth)
    if not step.any():
        raise ValueError(
            "self-distill-gt: the models with alpha 1 and alpha 0 answer the same on these rows; there is "
            "no best alpha"
        )
    return 1 - float(np.ravel(truth - with_truth) @ step / (step @ step))


def _prove(bench: Bench) -> None:
    digits = small_digits()
    splits = bench.split(digits, train=bench.size(400, 40), validation=200, test=0)
    noisy = partial(flipped, share=0.2, classes=10, seed=bench.seed)
    asked = splits["train"] + splits["validation"]
    rows = relabelled(digits, asked, noisy)
    epochs, build = bench.size(40, 1), partial(mlp, 64, 64, 10)
    fit = Fit(
        epochs=epochs, batch_size=50, weight_decay=1e-4, evaluate_every=epochs, optimizer="adam"
    )
    held_out = find_rows(rows, as_keys(splits["validation"]))
    truth = np.eye(10)[np.asarray(rows.read(held_out, ["label"])["label"])]

    def trained(arm: str, alpha: float, snapshot: Any = None) -> Any:
        """A generation: the cache of what it answers to its own rows and to held-out ones."""
        student = Student("mlp", build, recipe(alpha=alpha), fit=fit)
        record = bench.train({arm: student}, rows, snapshot, splits=splits)[arm]
        teacher = ModuleTeacher("previous", build, weights=record.weights)
        return bench.teach(chosen(rows, asked), teacher, cache=arm.replace(" ", "-"))

    def answers(snapshot: Any) -> Floats:
        found = np.asarray(Reader(snapshot, ["logits"]).gather(splits["validation"])["logits"])
        weights = np.exp(found.astype(float) - found.max(-1, keepdims=True))
        return np.asarray(weights / weights.sum(-1, keepdims=True))

    count = bench.size(5, 2)
    first = trained("alpha 1", 1.0)
    fixed: dict[float, Any] = {}
    for alpha in (0.0, 0.3):
        newest = first
        for number in range(2, count + 1):
            newest = trained(f"alpha {alpha:g}, generation {number}", alpha, newest)
            fixed.setdefault(alpha, newest)
    newest = first
    for number in range(2, count + 1):
        # The second generation with alpha 0 is there already.
        trial = f"alpha 0 after optimal alpha, generation {number}"
        without = fixed[0.0] if number == 2 else trained(trial, 0.0, newest)
        best = optimal_alpha(truth, answers(first), answers(without))
        arm = f"optimal alpha, generation {number}"
        newest = trained(arm, min(max(best, 0.0), 1.0), newest)
        bench.note(arm, alpha=best)
    for arm in ("alpha 0", "alpha 0.3", "optimal alpha"):
        bench.note(arm, **bench.noted[f"{arm}, generation {count}"])


SAYS = "no alpha needs to be searched"
PROOF = Proof(
    _prove,
    data="scikit-learn digits; MLP 64 on 400 rows, each arm's fifth generation, the optimal alpha "
    "estimated on 200 rows; 20% of the labels of both are wrong, of test rows none",
    claims=(
        Claim("optimal alpha", "alpha 0", margin=0.005, says=SAYS),
        Claim("optimal alpha", "alpha 0.3", margin=0.005, says=SAYS),
        Claim("optimal alpha", "alpha 1", margin=0.005, says=SAYS),
        Claim("alpha 0.3", "alpha 0", says="without ground truth generations get worse"),
        Claim("alpha 0.3", "alpha 0", "nll", larger=False, says="and less sure of the truth"),
    ),
    tried="one seed with 60 epochs first, after which the claim on nll was added beside that on accuracy",
)
