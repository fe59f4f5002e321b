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
    warmup: int = 0
    """Steps of the optimiser in which the rate rises to its full size; onecycle has its own."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step of the optimiser."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Below float32 the student runs under autocast; float16's gradients are scaled."""
    compiled: str = ""
    """A backend of torch.compile, such as "inductor"; empty: as it is."""
    watch: str = ""
    """A metric of the evaluation on the student's validation split, `-nll` where smaller is better:
    the weights of its best evaluation are kept. Empty: those of the last step."""
    patience: int = 0
    """Evaluations without a better `watch` after which training stops; 0: it does not stop early."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        counts = (self.epochs, self.batch_size, self.evaluate_every, self.accumulate)
        if min(counts) < 1 or not self.learning_rate > 0:
            raise ValueError(f"epochs, batch size and learning rate must be positive: {self}")
        if self.views < 0:
            raise ValueError(f"views counts from 0 (rows as they are), found {self.views}")
        for name, known in _KNOWN.items():
            if (found := getattr(self, name)) not in known:
                raise ValueError(
                    f"{name} is {', '.join(known[:-1])} or {known[-1]}, found {found!r}"
                )
        if not 0 <= self.average < 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"average and momentum are in [0, 1): {self}")
        if min(self.clip, self.warmup, self.patience) < 0:
            raise ValueError(f"clip, warmup and patience are at least 0: {self}")
        if self.warmup and self.schedule == "onecycle":
            raise ValueError("onecycle warms up by itself; use warmup with cosine or constant")
        if self.patience and not self.watch:
            raise ValueError("patience needs a metric to watch, such as watch='accuracy'")

    def identity(self) -> dict[str, Any]:
        """Plain JSON. What was added later is left out where it changes nothing, so that students
        trained before keep their identity."""
        return {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) != f.default or f.name in _FIRST
        }


_FIRST = (*("epochs", "batch_size", "learning_rate", "weight_decay", "schedule", "evaluate_every"),)
_KNOWN = {
    "schedule": ("onecycle", "cosine", "constant"),
    "optimizer": ("adamw", "adam", "sgd"),
    "precision": ("float32", "bfloat16", "float16"),
}
