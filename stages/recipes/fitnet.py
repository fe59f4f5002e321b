"""FitNets: hints from an inner layer (Romero et al. 2015, arXiv:1412.6550).

    beta ||r(s_feature) - t_feature||^2 / d  +  T^2 KL(softmax(t / T) || softmax(s / T))

with r a learned projector. The paper trains the hint first and distils afterwards; here both losses
run together, as most later work does. Defaults: beta 1, temperature 4.

>>> recipe().reads
('feature', 'logits')
"""

from __future__ import annotations

from stillroom.stages.heads.projectors import linear_projector
from stillroom.stages.objectives.features import squared_error
from stillroom.stages.objectives.logits import kl
from stillroom.stages.parts import Head
from stillroom.stages.recipe import Recipe
from stillroom.stages.term import term


def recipe(*, beta: float = 1.0, temperature: float = 4.0) -> Recipe:
    """The hint on `feature` through a linear projector, and soft targets."""
    return Recipe(
        "fitnet",
        (
            term(squared_error, "head.hint", "teacher.feature", weight=beta),
            term(kl, "student.logits", "teacher.logits", temperature=temperature),
        ),
        heads=(Head("hint", linear_projector, "student.feature", like="teacher.feature"),),
        paper="arXiv:1412.6550",
        family="features",
        shapes={
            "student.feature": "float n width",
            "teacher.feature": "float n dim",
            "student.logits": "float n classes",
            "teacher.logits": "float n classes",
        },
    )
