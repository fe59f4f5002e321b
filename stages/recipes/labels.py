"""Labels only: plain supervised training, the baseline that every method is measured against.

    CE(s, y)

>>> recipe().reads
()
"""

from __future__ import annotations

from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.recipe import Recipe, term


def recipe() -> Recipe:
    """Cross-entropy on the data set's labels; no teacher."""
    return Recipe("labels", (term(cross_entropy, "student.logits", "row.label"),))
