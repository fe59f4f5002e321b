"""Student: an architecture, how it learns, and from which rows; and the record it leaves."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.stages.recipe import Recipe
from stillroom.storage.code import code_identity
from stillroom.storage.files import read_json
from stillroom.storage.signal import checked_name

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Fit:
    """How a student is optimised: AdamW over shuffled batches."""

    epochs: int = 12
    batch_size: int = 100
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    schedule: Literal["onecycle", "constant"] = "onecycle"
    """One cycle of warm-up and annealing (Smith and Topin 2019), or a constant rate."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    views: int = 0
    """0: rows as they are. K: epoch e is of view 1 + e mod K, as the teacher saw it; evaluation is
    always of rows as they are."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        counts = (self.epochs, self.batch_size, self.evaluate_every)
        if min(counts) < 1 or not self.learning_rate > 0:
            raise ValueError(f"epochs, batch size and learning rate must be positive: {self}")
        if self.views < 0:
            raise ValueError(f"views counts from 0 (rows as they are), found {self.views}")
        if self.schedule not in ("onecycle", "constant"):
            raise ValueError(f"schedule is onecycle or constant, found {self.schedule!r}")


@dataclass(frozen=True)
class Student:
    """One student: trained once for every seed it is given."""

    name: str
    """Names its folder: letters, digits, _ and -."""
    build: Callable[[], nn.Module]
    """A module-level function (or partial) that makes the untrained module."""
    recipe: Recipe
    inputs: tuple[str, ...] = ("image",)
    """Columns of the data set, passed as tensors in this order."""
    layers: Mapping[str, str] = field(default_factory=lambda: {"logits": ""})
    """What `student.NAME` is: a module of it, as torch names it ("" is its output)."""
    split: str = "train"
    """Which rows it trains on."""
    fit: Fit = field(default_factory=Fit)
    seed: int = 0
    tokenizer: str | Path | None = None
    """Folder of the tokenizer behind its inputs. It must be that of each teacher of texts that its
    recipe reads, which is checked before anything trains; None checks nothing."""

    def __post_init__(self) -> None:
        """Refuse a recipe that reads an output the student does not give."""
        checked_name(self.name, "student")
        for output in self.recipe.outputs:
            if output not in self.layers:
                raise ValueError(
                    f"student {self.name!r}: recipe {self.recipe.name!r} reads student.{output}; say "
                    f"which module that is: layers={{..., {output!r}: 'module.name'}}"
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the data set that it reads while training."""
        return tuple(dict.fromkeys((*self.inputs, *self.recipe.columns)))

    def identity(self) -> dict[str, Any]:
        """Architecture, recipe, optimisation and seed; without its name or any path."""
        fit = asdict(self.fit)
        if not self.fit.views:
            del fit["views"]  # as it was spelled before there were views
        return {
            "build": code_identity(self.build),
            "recipe": self.recipe.identity(),
            "inputs": list(self.inputs),
            "layers": dict(self.layers),
            "fit": fit,
            "seed": self.seed,
            "libraries": {
                "stillroom": importlib.metadata.version("stillroom"),
                "torch": importlib.metadata.version("torch").split("+")[0],
            },
        }


@dataclass(frozen=True)
class Record:
    """What one trained student leaves behind, read from its folder."""

    folder: Path
    content: Mapping[str, Any]
    """identity, snapshot, recipe, seed, rows, parameters, curve, metrics, seconds."""

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read record.json; it is written last, so its weights are whole."""
        return cls(folder, read_json(folder / "record.json"))

    @property
    def name(self) -> str:
        """The student's name."""
        return str(self.content["student"])

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return int(self.content["seed"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What evaluation measured after the last epoch."""
        metrics: Mapping[str, Any] = self.content["metrics"]
        return metrics

    @property
    def weights(self) -> Path:
        """Its state dict, without heads."""
        return self.folder / "weights.safetensors"
