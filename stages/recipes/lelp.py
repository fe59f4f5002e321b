"""LELP: linear projections of teacher embeddings for few classes (Loo et al. 2024, arXiv:2409.20449).

With two classes the teacher's logits say little beyond the label, so each class is split into S parts
along directions of the teacher's embedding h that its logits do not tell already:

    h' = h - Q Q^T h, Q a basis of the span of the teacher's output weights
    V_c = the first S principal directions of h' over the rows that the teacher calls c
    z_cs = (R_c V_c)_s . (h' - mean_c) / scale_c, R_c a random rotation
    p_cs = softmax(t / T)_c exp(z_cs / beta) / sum_j exp(z_cj / beta)
    (1 - alpha) (- sum_cs p_cs log q_cs) + alpha CE(sum_s q_cs, y)

with q the softmax over the student's S outputs for each class, in the order of classes. `directions`
and `targets` derive p from the cache; no label is needed with alpha = 0, as in all of the paper's
experiments. The scale, the root mean square of a class's own projections, is chosen here; S, beta and
T are tuned for each task in the paper. Defaults: subclasses 5, alpha 0.

>>> import torch
>>> marginal(torch.zeros(1, 6), subclasses=3).softmax(-1)
tensor([[0.5000, 0.5000]])
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.deriving.derivation import RowWise, Summary
from stillroom.stages.deriving.deriving import derive, derive_signals
from stillroom.stages.deriving.methods.class_answers import softmax
from stillroom.stages.deriving.methods.moments import Moments, merged, moments_of
from stillroom.stages.deriving.table import Batch, Table
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.logits import cross_entropy, soft_cross_entropy
from stillroom.stages.parts import Answer
from stillroom.stages.proving.data import small_digits
from stillroom.stages.proving.models import mlp
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.recipes import kd, labels
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teachers.weights import load_state
from stillroom.stages.term import term
from stillroom.storage.cache import Cache
from stillroom.storage.derived import Derived
from stillroom.storage.errors import SignalError

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.proving.bench import Bench


def marginal(logits: Tensor, *, subclasses: int) -> Tensor:
    """(n, classes) logits whose softmax sums that of (n, classes * subclasses) over each class."""
    found: Tensor = logits.unflatten(-1, (-1, subclasses)).logsumexp(-1)
    return found


def marginal_cross_entropy(logits: Tensor, label: Tensor, *, subclasses: int) -> Tensor:
    """(n,) cross-entropy of classes that are the sums of their (n, classes * subclasses) parts."""
    return cross_entropy(marginal(logits, subclasses=subclasses), label)


def recipe(*, subclasses: int = 5, alpha: float = 0.0) -> Recipe:
    """The targets that `targets` derives as `subclasses`, and labels where alpha is above 0."""
    if subclasses < 1 or not 0 <= alpha < 1:
        raise ValueError(
            f"lelp: subclasses must be at least 1 and alpha in [0, 1), found {subclasses}, {alpha}"
        )
    logits, parts = "student.logits", dict[str, Any](subclasses=subclasses)
    terms = [term(soft_cross_entropy, logits, "teacher.subclasses", weight=1 - alpha)]
    if alpha:
        terms.append(term(marginal_cross_entropy, logits, "row.label", weight=alpha, **parts))
    return Recipe(
        "lelp",
        tuple(terms),
        paper="arXiv:2409.20449",
        family="logits",
        answer=Answer(marginal, (logits,), parts),
        shapes={
            logits: f"float n classes*{subclasses}",
            "teacher.subclasses": f"simplex n classes*{subclasses}",
            **({"row.label": "int n below classes"} if alpha else {}),
        },
    )


def directions(weight: NDArray[Any], *, subclasses: int = 5, seed: int = 0) -> Summary:
    """Of every class: `directions` (C, S, d), orthonormal and orthogonal to the span of the teacher's
    output weights (C, d), `means` (C, d) and `scales` (C,), 1 where a class has no spread."""
    weight = np.asarray(weight, np.float64)
    function = partial(_directions, weight=weight, subclasses=subclasses, seed=seed)
    return Summary("lelp-directions", function, {"embedding": "embedding", "logits": "logits"})


def _directions(
    table: Table, *, weight: NDArray[Any], subclasses: int, seed: int
) -> dict[str, Any]:
    _, sizes, basis = np.linalg.svd(weight)
    plain = basis[(sizes > sizes.max() * 1e-9).sum() :].T  # what the logits do not tell
    if subclasses > plain.shape[1]:
        raise SignalError(
            f"lelp: {subclasses} subclasses need as many directions of the embedding that the logits "
            f"do not tell; of {weight.shape[1]} there are {plain.shape[1]}"
        )
    found = table.fold(partial(_moments, classes=len(weight)), merged, "embedding", "logits")
    assert found.squares is not None
    drawn, chosen, scales = np.random.default_rng(seed), [], []
    for count, squares in zip(found.counts, found.squares, strict=True):
        variances, vectors = np.linalg.eigh(plain.T @ squares @ plain / max(count - 1, 1))
        rotation = np.linalg.qr(drawn.standard_normal((subclasses, subclasses)))[0]
        chosen.append(rotation @ (plain @ vectors[:, ::-1][:, :subclasses]).T)
        scales.append(np.sqrt(max(variances[::-1][:subclasses].mean(), 0)) or 1.0)
    return {"directions": np.stack(chosen), "means": found.means, "scales": np.array(scales)}


def _moments(batch: Batch, classes: int) -> Moments:
    called = batch.matrix("logits").argmax(axis=1)
    return moments_of(batch.matrix("embedding"), called, classes, squares=True)


def targets(
    found: Derived, *, beta: float = 0.1, temperature: float = 1.0, name: str = "lelp"
) -> RowWise:
    """The signal `subclasses` (C * S,) float32 of every row, by what `directions` found."""
    function = partial(split, beta=beta, temperature=temperature)
    reads = {"embedding": "embedding", "logits": "logits"}
    return RowWise(name, function, reads, ("subclasses",), given={"found": found})


def split(
    *, embedding: Any, logits: Any, found: Mapping[str, Any], beta: float, temperature: float
) -> dict[str, NDArray[np.float32]]:
    """softmax(logits / T) of (n, C), each class split by softmax(z / beta) over its directions."""
    away = embedding[:, None].astype(np.float64) - found["means"]
    z = np.einsum("ncd,csd->ncs", away, found["directions"]) / found["scales"][:, None]
    whole = softmax(logits.astype(np.float64) / temperature)
    parts = whole[:, :, None] * softmax(z / beta)
    return {"subclasses": parts.reshape(len(parts), -1).astype(np.float32)}


def _prove(bench: Bench) -> None:
    read: Any = small_digits().read(np.arange(1797), ["image", "label"])
    read |= {"label": read["label"] % 2, "part": read["label"] % 2 * 5 + read["label"] // 2}
    rows = ArrayRows(small_digits().keys, **read)
    splits = bench.split(rows, few=200, more=800, test=0)
    splits["all"] = splits["few"] + splits["more"]
    big = partial(mlp, 64, 128, 64, 2)
    weights = bench.trained("big", big, rows, splits["all"], inputs=("image",))
    layers = {"logits": "", "embedding": "4"}
    snapshot = bench.teach(rows, ModuleTeacher("big", big, weights=weights, layers=layers))
    cache, output = Cache.at(snapshot.cache), load_state(weights)["5.weight"].numpy()
    for name, keys, beta in (("sharp", "few", 0.1), ("blurred", "few", 1.0), ("tiny", "all", 0.1)):
        found = derive(cache, snapshot, directions(output), keys=splits[keys])
        made = targets(found, beta=beta, name=name)
        snapshot = derive_signals(cache, snapshot, made, runner=bench.runner)
    slow = partial(Fit, learning_rate=4e-3, weight_decay=0, schedule="constant", evaluate_every=60)
    fit = partial(slow, batch_size=32, optimizer="adam")
    few = partial(Student, "s", split="few", fit=fit(epochs=bench.size(60, 1)))
    every = partial(Student, "s", split="all", fit=fit(epochs=bench.size(20, 1)))
    soft, hot = (kd.recipe(alpha=1.0, temperature=heat) for heat in (1.0, 3.0))
    digits = Recipe(
        "digits", (term(cross_entropy, "student.logits", "row.part"),), answer=recipe().answer
    )
    widths = (24, 2), (24, 10), (6, 2), (6, 10)
    two, ten, six, six_ten = (partial(mlp, 64, *more) for more in widths)
    arms = {
        "labels": few(two, labels.recipe()),
        "kd, T 1": few(two, soft),
        "kd, T 3": few(two, hot),
        "lelp": few(ten, recipe(), signals={"subclasses": "sharp/subclasses"}),
        "lelp, beta 1": few(ten, recipe(), signals={"subclasses": "blurred/subclasses"}),
        "ten digits": few(ten, digits),
        "kd, tiny": every(six, soft),
        "lelp, tiny": every(six_ten, recipe(), signals={"subclasses": "tiny/subclasses"}),
    }
    bench.train(arms, rows, snapshot, splits=splits)


PROOF = Proof(
    _prove,
    data=(
        "scikit-learn digits, even or odd; teacher MLP 128-64 on 1,000 labels, students MLP 24 on 200 "
        "rows without labels, tiny ones MLP 6 on 1,000"
    ),
    claims=(
        Claim("lelp", "kd, T 1", says="subclasses of the embedding teach more than two logits"),
        Claim("lelp", "lelp, beta 1", says="sharp subclasses teach more than blurred ones"),
        Claim("ten digits", "lelp", says="true subclasses, were they known, teach more still"),
        Claim("lelp, tiny", "kd, tiny", says="also a student too small for ten outputs"),
    ),
    tried="S 5 and beta 0.1 are those of a pilot on other splits of the same rows",
)
