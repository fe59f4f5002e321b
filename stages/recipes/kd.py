"""Knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv:1503.02531).

    alpha T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) CE(s, y)

With alpha = 1 no label is read.

>>> recipe(alpha=1.0).columns, recipe().columns
((), ('label',))
"""

from __future__ import annotations

from stillroom.stages.objectives.logits import cross_entropy, kl
from stillroom.stages.recipe import Recipe, term


def recipe(*, alpha: float = 0.9, temperature: float = 4.0) -> Recipe:
    """Soft targets and labels mixed; the paper leaves alpha and T open, these are customary."""
    if not 0 < alpha <= 1:
        raise ValueError(
            f"kd: alpha must be in (0, 1], found {alpha}; for labels only use `labels`"
        )
    terms = [term(kl, "student.logits", "teacher.logits", weight=alpha, temperature=temperature)]
    if alpha < 1:
        terms.append(term(cross_entropy, "student.logits", "row.label", weight=1 - alpha))
    return Recipe("kd", tuple(terms), paper="arXiv:1503.02531")
