"""Dense Hebbian networks with a teacher (Agliari et al. 2022, arXiv:2212.00606).

A P-spin Hopfield network never sees the archetypes xi_mu, only noisy examples eta_mu,a of each class.
The teacher is who says which examples belong together: they are averaged before the P-th power,

    H = -(N / (2 R^(P/2))) sum_mu (etabar_mu s / N)^P,   etabar_mu = (1 / M) sum_a eta_mu,a

and without one every example is a pattern of its own, and the mean is taken after the power. Examples
keep a bit of their archetype with probability (1 + r) / 2; rho = (1 - r^2) / (M r^2) says how little the
archive tells, and R = r^2 (1 + rho) only scales H, so that it is left out here.

The archive is the cached signal `teacher.pattern`, and the student a memory (`stages.heads.memories`)
that one pass over it fills in closed form: nothing is optimised. Class means are exact, and the same
however often rows come. The order P is the memory's own. What the paper solves by replicas is simulated.
No code is released. Defaults: supervised True.

>>> recipe().reads, recipe().columns, recipe(supervised=False).columns
(('pattern',), ('label',), ())
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.heads.memories import energy, memory
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.function import FunctionTeacher

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.learning import Learning
    from stillroom.stages.proving.bench import Bench


def imprinted(learning: Learning, *, slot: str) -> Tensor:
    """Add a batch of the archive to the memory: each slot is the mean of the patterns that fell to it.

    Args:
        learning: of a module with a buffer `patterns` (slots, size) and an `order`.
        slot: the name of (n,) whole numbers, each below the number of slots.

    Returns:
        (), the mean energy of the batch in the memory as it is now.
    """
    import torch

    module: Any = learning.module
    pattern = learning.tensors["teacher.pattern"].detach().to(module.patterns.dtype)
    place = learning.tensors[slot].long()
    # Sums and counts, so that a row that comes again changes no mean of classes of equal size.
    sums = learning.keep("sums", partial(torch.zeros_like, module.patterns))
    counts = learning.keep("counts", partial(torch.zeros_like, module.patterns[:, 0]))
    sums.index_add_(0, place, pattern)
    counts.index_add_(0, place, torch.ones_like(pattern[:, 0]))
    module.patterns.copy_(sums / counts.clamp_min(1)[:, None])
    return energy(module.patterns, pattern, order=module.order).mean()


def recipe(*, supervised: bool = True) -> Recipe:
    """Slots by label, or one for every row of the student's split."""
    if not isinstance(supervised, bool):
        raise ValueError(
            f"dense-hebbian-supervised: supervised is True or False, found {supervised!r}"
        )
    slot = "row.label" if supervised else "batch.index"
    return Recipe(
        "dense-hebbian-supervised",
        (),
        paper="arXiv:2212.00606",
        family="dynamics-or-theory",
        step=partial(imprinted, slot=slot),
        takes=("teacher.pattern", slot),
        shapes={
            "teacher.pattern": "sign n size",
            **({"row.label": "int n below slots"} if supervised else {}),
        },
    )


SIZE = 200
_ARMS = {
    **{f"{m} examples, taught": (40, m, 4, True) for m in (3, 10, 30, 100)},
    **{f"{m} examples, alone": (40, m, 4, False) for m in (3, 10, 30, 100)},
    **{f"P {p}, {k} classes": (k, 100, p, True) for p in (2, 4) for k in (20, 40, 80)},
}
"""Classes, examples of each, order, whether the teacher says which belong together."""


def archive(
    archetype: NDArray[np.int8], seed: NDArray[np.int64], *, quality: float
) -> dict[str, Any]:
    """`pattern`: the archetype, each bit kept with probability (1 + quality) / 2."""
    drawn = np.stack([np.random.default_rng(one).random(archetype.shape[1]) for one in seed])
    return {"pattern": np.where(drawn < (1 + quality) / 2, archetype, -archetype)}


def retrieval(tensors: Mapping[str, Any]) -> dict[str, float]:
    """`overlap`: mean over cues of what is recalled with the archetype that was meant, in [-1, 1]."""
    meant = tensors["row.archetype"].float()
    return {"overlap": (tensors["student.state"] * meant).mean().item()}


def _prove(bench: Bench) -> None:
    classes, examples = bench.size(80, 8), bench.size(100, 4)
    numbers = np.random.default_rng(bench.seed)
    archetypes = numbers.choice(np.array([-1, 1], np.int8), (classes, SIZE))
    # The archive, and behind it a cue for every class.
    label = np.concatenate([np.repeat(np.arange(classes), examples), np.arange(classes)])
    keys = [f"{c}-{i}" for c in range(classes) for i in range(examples)]
    cue = np.where(numbers.random((len(label), SIZE)) < 0.1, -archetypes[label], archetypes[label])
    rows = ArrayRows(
        [*keys, *(f"cue-{c}" for c in range(classes))],
        label=label,
        archetype=archetypes[label],
        cue=cue,
        seed=bench.seed * 10**6 + np.arange(len(label)),
    )
    given, answer = ("archetype", "seed"), partial(archive, quality=0.3)
    snapshot = bench.teach(rows, FunctionTeacher("archive", answer, given, ("pattern",)))

    evaluation = Evaluation("test", retrieval, columns=("archetype",))
    student = partial(
        Student, inputs=("cue",), layers={"state": ":state"}, fit=Fit(epochs=1, batch_size=1000)
    )
    for arm, (wanted, count, order, taught) in _ARMS.items():
        k, m = min(wanted, classes), min(count, examples)
        slots = k if taught else k * m
        one = student("s", partial(memory, slots, SIZE, order=order), recipe(supervised=taught))
        learned = [f"{c}-{i}" for c in range(k) for i in range(m)]
        splits = {"train": learned, "test": [f"cue-{c}" for c in range(k)]}
        bench.train({arm: one}, rows, snapshot, splits=splits, evaluation=evaluation)


PROOF = Proof(
    _prove,
    data="archetypes of 200 random bits, examples of quality r = 0.3 as the archive, cues with 10% of "
    "their bits flipped; P = 4 and 40 classes, or P and classes as said with 100 examples each",
    claims=(
        Claim("10 examples, taught", "10 examples, alone", "overlap", says="fewer examples needed"),
        Claim("3 examples, taught", "3 examples, alone", "overlap", says="at 3 examples as well"),
        Claim(
            "100 examples, alone", "100 examples, taught", "overlap", margin=0.03, says="both learn"
        ),
        Claim("P 4, 40 classes", "P 2, 40 classes", "overlap", says="higher order stores more"),
        Claim("P 4, 80 classes", "P 2, 80 classes", "overlap", says="at twice the load as well"),
    ),
)
