"""A plain function as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillroom.stages.teachers.assets import Assets, asset_digests, asset_paths
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage.code import code_identity
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values


@dataclass(frozen=True)
class FunctionTeacher:
    """A plain function as a teacher: `answer(**columns) -> {signal: rows}`.

    >>> def parity(number):
    ...     return {"odd": (number % 2).astype("float32")}
    >>> FunctionTeacher("parity", parity, inputs=("number",), signals=("odd",)).inputs
    ('number',)
    """

    name: str
    """Names the teacher's segments."""
    answer: Callable[..., Mapping[str, Values]]
    """A module-level function (its code is part of the identity), or a partial of one."""
    inputs: Sequence[str]
    """Columns passed to it by name."""
    signals: Sequence[str]
    """The names it returns."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""
    version: str = ""
    """Enters the identity: change it when the answer changes for a reason that code does not show."""
    assets: Assets = field(default_factory=dict)
    """Files that decide the numbers, by role: their bytes are part of the identity, where they lie is
    not. `answer` gets them as `assets=`: paths and bytes by role."""

    def asks(self) -> Mapping[str, Ask]:
        """Every signal by name."""
        return {name: Ask(self.encodings.get(name, "raw"), "") for name in self.signals}

    def identity(self) -> dict[str, Any]:
        """The function's code, the assets, the version and numpy's version."""
        assets = {"assets": asset_digests(self.assets)} if self.assets else {}
        return {
            **assets,
            "kind": "function",
            "code": code_identity(self.answer),
            "inputs": list(self.inputs),
            "version": self.version,
            "libraries": {"numpy": np.__version__},
        }

    def load(self) -> Answer:
        """The function over a batch's columns."""
        assets = {"assets": asset_paths(self.assets)} if self.assets else {}
        return lambda batch: self.answer(**batch, **assets)
