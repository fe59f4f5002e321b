"""Students that share batches, for tests of groups and of where they are placed."""

from __future__ import annotations

from typing import Any

from torch import nn

from stillroom.stages import Fit, Student, recipes
from tests.stages.builders import pupil, student

FIT = Fit(epochs=3, batch_size=8, learning_rate=0.02)


def shaky() -> Any:
    """Draws random numbers in every step."""
    return nn.Sequential(*pupil(), nn.Dropout(0.3))


def sharp(name: str, temperature: float, seed: int, **changes: Any) -> Student:
    """It learns logits at a temperature; its batches are those of all others."""
    recipe = recipes.find("kd", alpha=1.0, temperature=temperature)
    given = {"fit": FIT, "layers": {"logits": ""}, **changes}
    return student(name, recipe=recipe, seed=seed, order=0, **given)
