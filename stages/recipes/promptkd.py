"""PromptKD: one set of class vectors for teacher and student (Li et al. 2024, arXiv:2403.02781).

The teacher's text encoder is run once for each class; its vectors c are the classifier of both:

    t = scale_t normalised(teacher's image embedding) c,  s = scale_s normalised(r(student's feature)) c
    weight T^2 KL(softmax(t / T) || softmax(s / T)) / C

with r two layers to the teacher's width, kept at inference, and prompts the only part of the student
that learns beside it. No label is read. The mean is over rows and classes, as in the released code,
which is why the weight is large: it is weight / C of the mean over rows. What is cached are image
embeddings; logits follow from them and from the table `classes` when they are read, so classes can be
added without the teacher. Defaults: weight 1000, temperature 1, teacher_scale 100, student_scale 100.

>>> recipe().reads, recipe().tables, recipe().columns
(('embedding',), ('classes',), ())
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.stages.deriving.deriving import derive
from stillroom.stages.deriving.methods.moments import class_means
from stillroom.stages.evaluating import Evaluation
from stillroom.stages.fit import Fit
from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.parts import Answer, Head
from stillroom.stages.proving.data import chosen, small_digits
from stillroom.stages.proving.measures import base_and_novel
from stillroom.stages.proving.models import mlp, prompted
from stillroom.stages.proving.proof import Claim, Proof
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Student
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.term import Term, term
from stillroom.storage.cache import Cache

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.stages.proving.bench import Bench


def class_logits(embedding: Tensor, classes: Tensor, *, scale: float) -> Tensor:
    """(n, C) scaled cosines of (n, d) embeddings with (C, d) class vectors, which get no gradient."""
    from torch.nn.functional import normalize

    found: Tensor = scale * normalize(embedding, dim=-1) @ normalize(classes.detach(), dim=-1).T
    return found


def shared_kl(
    projected: Tensor,
    embedding: Tensor,
    classes: Tensor,
    own: Tensor | None = None,
    *,
    temperature: float,
    teacher_scale: float,
    student_scale: float,
) -> Tensor:
    """(n,) T^2 KL over the classes, divided by their number.

    Args:
        projected: (n, d) the student's embeddings, at any length.
        embedding: (n, d_t) the teacher's, as cached.
        classes: (C, d_t) the teacher's class vectors, and the student's where it has no `own` (C, d).
    """
    taught = class_logits(embedding.detach(), classes, scale=teacher_scale)
    said = class_logits(projected, classes if own is None else own, scale=student_scale)
    return kl(said, taught, temperature=temperature) / len(classes)


def projector(given: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """Two layers with batch norm and ReLU between (1x1 convolutions in the paper)."""
    from torch import nn

    width = wanted[0]
    layers = nn.Linear(given[0], width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
    return nn.Sequential(*layers)


def recipe(
    *,
    weight: float = 1000.0,
    temperature: float = 1.0,
    teacher_scale: float = 100.0,
    student_scale: float = 100.0,
) -> Recipe:
    """Soft targets of shared class vectors; the scales are the exp(logit_scale) of the two CLIPs."""
    scales: dict[str, Any] = {"teacher_scale": teacher_scale, "student_scale": student_scale}
    numbers = {"weight": weight, "temperature": temperature, **scales}
    if wrong := [name for name, value in numbers.items() if not value > 0]:
        raise ValueError(f"promptkd: {wrong[0]} must be above 0, found {numbers[wrong[0]]}")
    reads = ("head.image", "teacher.embedding", "table.classes")
    return _of(
        "promptkd",
        term(shared_kl, *reads, weight=weight, temperature=temperature, **scales),
        student_scale,
    )


def _of(name: str, one: Term, scale: float, vectors: str = "table.classes") -> Recipe:
    shapes = {
        "student.feature": "float n width",
        "teacher.embedding": "float n dim",
        "table.classes": "unit classes dim",
        "table.own": "unit classes own",
        "row.label": "int n below classes",
    }
    return Recipe(
        name,
        (one,),
        heads=(Head("image", projector, "student.feature", like=vectors, kept=True),),
        paper="arXiv:2403.02781",
        family="logits",
        answer=Answer(class_logits, ("head.image", vectors), {"scale": scale}),
        shapes={n: s for n, s in shapes.items() if n in {"student.feature", vectors, *one.names}},
    )


def labelled(projected: Tensor, classes: Tensor, label: Tensor, *, scale: float) -> Tensor:
    """(n,) cross-entropy of the same classifier: prompts learned from a few labels."""
    return cross_entropy(class_logits(projected, classes, scale=scale), label)


def _prove(bench: Bench) -> None:
    import torch

    rows = small_digits()
    splits = bench.split(rows, known=200, some=200, more=800, test=0)
    splits["all"] = splits["some"] + splits["more"]
    known = chosen(rows, splits["known"]).read(np.arange(200), ["image", "label"])
    label = np.asarray(known["label"])
    splits["few"] = [key for key, low in zip(splits["known"], label < 5, strict=True) if low]
    big, small = partial(mlp, 64, 256, 128, 10), partial(prompted, 64, 64, seed=bench.seed)
    weights = bench.trained("big", big, rows, splits["few"], inputs=("image",))
    teacher = ModuleTeacher("big", big, weights=weights, layers={"embedding": "4"})
    snapshot = bench.teach(rows, teacher)
    means = class_means("embedding", "label", classes=10)
    vectors = derive(Cache.at(snapshot.cache), snapshot, means, rows=rows, keys=splits["known"])
    with torch.no_grad():
        feature = small()(torch.from_numpy(known["image"])).numpy()
    own = np.stack([feature[label == c].mean(0) for c in range(10)])
    tables = {"classes": vectors["means"].astype(np.float32), "own": own}
    scales: dict[str, Any] = {"teacher_scale": 20.0, "student_scale": 20.0}
    shared = recipe(**scales)
    reads = ("head.image", "teacher.embedding", "table.classes", "table.own")
    apart = term(shared_kl, *reads, weight=1000, temperature=1.0, **scales)
    told = term(labelled, "head.image", "table.classes", "row.label", scale=20.0)
    arms = {
        "few labels": (_of("few-labels", told, 20.0), "few"),
        "own class vectors, 1000 images": (_of("own", apart, 20.0, "table.own"), "all"),
        "promptkd, the labelled images": (shared, "few"),
        "promptkd, 200 images": (shared, "some"),
        "promptkd, 1000 images": (shared, "all"),
    }
    steps = bench.size(400, 1)
    students = {
        arm: Student(
            "s",
            small,
            made,
            layers={"feature": ""},
            split=split,
            fit=Fit(
                epochs=max(steps * 50 // len(splits[split]), 1), batch_size=50, evaluate_every=400
            ),
        )
        for arm, (made, split) in arms.items()
    }
    test = Evaluation("test", partial(base_and_novel, base=5))
    bench.train(students, rows, snapshot, splits=splits, evaluation=test, tables=tables)


PROOF = Proof(
    _prove,
    data=(
        "scikit-learn digits, 0-4 base and 5-9 novel; teacher MLP 256-128 on about 100 labels of 0-4, "
        "class vectors its means of 200 rows of all; students 64 random features, prompt and projector"
    ),
    claims=tuple(
        Claim("promptkd, 1000 images", than, metric=metric, says=says)
        for than, metric, says in (
            ("few labels", "harmonic", "images without labels teach more than a few labels"),
            ("few labels", "novel", "most so of classes that have none"),
            (
                "own class vectors, 1000 images",
                "harmonic",
                "the teacher's class vectors are better",
            ),
            ("promptkd, 200 images", "harmonic", "more images teach more"),
            ("promptkd, the labelled images", "harmonic", "and more than those with labels alone"),
        )
    ),
    tried="scales of 20, not tuned: these cosines spread wider than CLIP's, whose scale is 100",
)
