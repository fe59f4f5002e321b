"""Student: an architecture, how it learns, and from which rows; and the record it leaves."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stillroom.stages.fit import Fit
from stillroom.stages.needs import Needs
from stillroom.stages.recipe import Recipe
from stillroom.stages.student_log import read_log
from stillroom.stages.teachers.weights import file_weights
from stillroom.storage.code import code_identity
from stillroom.storage.files import read_json
from stillroom.storage.signal import checked_name

if TYPE_CHECKING:
    from torch import nn


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
    beside: Mapping[str, str] = field(default_factory=dict)
    """Splits of further streams of rows, by the name that its recipe has for each. Every batch holds as
    many rows of each stream as of its own split, drawn again and again."""
    validation: str = ""
    """The split on which its recipe's answer is tuned; empty: it is not tuned."""
    signals: Mapping[str, str] = field(default_factory=dict)
    """The cache's name for a signal that its recipe calls otherwise: {"robust": "wide/logits"}."""
    start: Path | None = None
    """Weights that it starts from, of the same architecture; None: those that `build` makes."""
    start_average: Path | None = None
    """Where the moving average of its weights goes on from; None: from the weights that it starts with."""
    start_state: Mapping[str, Any] = field(default_factory=dict)
    """What its recipe's controller goes on from, such as the `state` in another student's record."""
    fit: Fit = field(default_factory=Fit)
    seed: int = 0
    order: int | None = None
    """The seed of the order of its batches; None: its `seed`. Students of one order share batches, so
    that a sweep over seeds with order=0 gathers each batch once. Part of the identity."""
    needs: Needs = field(default_factory=Needs)
    """What the worker that trains it must have. Not part of the identity."""
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
        if self.fit.watch and not self.validation:
            raise ValueError(
                f"student {self.name!r} watches {self.fit.watch!r} and has no rows to watch it on; name a "
                "split that is not the one it is judged by: validation='SPLIT'"
            )
        if self.start_average is not None and not self.fit.average:
            raise ValueError(
                f"student {self.name!r} is given an average to go on from and keeps none; say how it "
                "decays: Fit(average=0.999)"
            )
        for stream in self.recipe.streams:
            if stream not in self.beside:
                raise ValueError(
                    f"student {self.name!r}: recipe {self.recipe.name!r} needs a stream of rows "
                    f"{stream!r}; name the split that they come from: beside={{{stream!r}: 'SPLIT'}}"
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the data set that it reads while training."""
        return tuple(dict.fromkeys((*self.inputs, *self.recipe.columns)))

    @property
    def reads(self) -> tuple[str, ...]:
        """The signals that it reads, as the cache calls them."""
        return tuple(dict.fromkeys(self.signals.get(name, name) for name in self.recipe.reads))

    @property
    def order_seed(self) -> int:
        """What decides the order of its batches, and which rows of other streams they hold."""
        return self.seed if self.order is None else self.order

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split that it trains on, its own first."""
        streams = [self.beside[stream] for stream in self.recipe.streams]
        return tuple(dict.fromkeys((self.split, *streams)))

    def identity(self) -> dict[str, Any]:
        """Architecture, recipe, optimisation and seed; without its name or any path."""
        given = {name: self.signals[name] for name in self.recipe.reads if name in self.signals}
        extra: dict[str, Any] = {
            "beside": list(self.recipe.streams),
            "signals": given,
            "start": None if self.start is None else file_weights(self.start),
            "start_state": dict(self.start_state),
            "start average": None
            if self.start_average is None
            else file_weights(self.start_average),
        }
        return {
            "build": code_identity(self.build),
            "recipe": self.recipe.identity(),
            "inputs": list(self.inputs),
            "layers": dict(self.layers),
            "fit": self.fit.identity(),
            "seed": self.seed,
            # Said only where it is not the seed, so that students trained before keep their identity.
            **({"order": self.order} if self.order_seed != self.seed else {}),
            "libraries": {
                "stillroom": importlib.metadata.version("stillroom"),
                "torch": importlib.metadata.version("torch").split("+")[0],
            },
            **{name: value for name, value in extra.items() if value},
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
    def log(self) -> pa.Table:
        """Every step of its training, as `StudentLog` says: loss, terms, rate, seconds, metrics."""
        return read_log(self.folder)

    @property
    def weights(self) -> Path:
        """Its state dict, without heads."""
        return self.folder / "weights.safetensors"

    @property
    def average(self) -> Path:
        """The moving average of its weights, where `Fit(average=...)` asked for one."""
        return self.folder / "average.safetensors"

    @property
    def heads(self) -> Path:
        """The heads that inference needs, `NAME.` before each of their tensors' names."""
        return self.folder / "heads.safetensors"
