"""Labels only: plain supervised training, the baseline that every method is measured against.

    CE(s, y)

>>> recipe().reads
()
"""

from __future__ import annotations

from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.recipe import Recipe
from stillroom.stages.term import term


def recipe() -> Recipe:
    """Cross-entropy on the data set's labels; no teacher."""
    return Recipe(
        "labels",
        (term(cross_entropy, "student.logits", "row.label"),),
        family="logits",
        shapes={"student.logits": "float n classes", "row.label": "int n below classes"},
    )
