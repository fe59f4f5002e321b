"""Fit: how a student is optimised, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Fit:
    """How a student is optimised: AdamW over shuffled batches if nothing else is said."""

    epochs: int = 12
    batch_size: int = 100
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """One cycle of warm-up and annealing (Smith and Topin 2019), half a cosine down to zero, or a
    constant rate."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    views: int = 0
    """0: rows as they are. K: epoch e is of view 1 + e mod K, as the teacher saw it; evaluation is
    always of rows as they are."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = 0.9
    """Of sgd."""
    clip: float = 0.0
    """The largest norm of the gradient; 0 leaves it as it is."""
    average: float = 0.0
    """Decay of a moving average of the weights, taken after every step and stored beside them; 0: none."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        counts = (self.epochs, self.batch_size, self.evaluate_every)
        if min(counts) < 1 or not self.learning_rate > 0:
            raise ValueError(f"epochs, batch size and learning rate must be positive: {self}")
        if self.views < 0:
            raise ValueError(f"views counts from 0 (rows as they are), found {self.views}")
        if self.schedule not in ("onecycle", "cosine", "constant"):
            raise ValueError(f"schedule is onecycle, cosine or constant, found {self.schedule!r}")
        if self.optimizer not in ("adamw", "adam", "sgd"):
            raise ValueError(f"optimizer is adamw, adam or sgd, found {self.optimizer!r}")
        if not 0 <= self.average < 1 or not 0 <= self.momentum < 1 or self.clip < 0:
            raise ValueError(f"average and momentum are in [0, 1), clip is at least 0: {self}")

    def identity(self) -> dict[str, Any]:
        """Plain JSON. What was added later is left out where it changes nothing, so that students
        trained before keep their identity."""
        return {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) != f.default or f.name in _FIRST
        }


_FIRST = (*("epochs", "batch_size", "learning_rate", "weight_decay", "schedule", "evaluate_every"),)
