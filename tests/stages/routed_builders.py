"""Experts, rows that name them, and each asked alone, for the tests of routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.stages import (
    ArrayRows,
    FunctionTeacher,
    RoutedTeacher,
    Teacher,
)
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage.folder import Ask
from stillroom.storage.ragged import Ragged
from tests.stages.builders import images

ROUTES = ("de", "fr", "it")


def spoken(image: Any, *, factor: float) -> dict[str, Any]:
    """A signal of every kind; bit for bit the same in any batch."""
    lengths = [1 + int(abs(v)) % 3 for v in image[:, 0]]
    return {
        "logits": image[:, :4] * factor,
        "tokens": [row[:n] * factor for row, n in zip(image, lengths, strict=True)],
        "said": [f"{factor} {row[1]:.3f}" for row in image],
    }


def expert(factor: float, **changes: Any) -> FunctionTeacher:
    signals = changes.pop("signals", ("logits", "tokens", "said"))
    answer = changes.pop("answer", partial(spoken, factor=factor))
    return FunctionTeacher(f"x{factor:g}", answer, ("image",), signals, **changes)


def routed(**experts: Teacher) -> RoutedTeacher:
    given: Mapping[Any, Teacher] = experts or {r: expert(1 + i) for i, r in enumerate(ROUTES)}
    return RoutedTeacher("experts", "language", given)


def data(count: int = 30, routes: Sequence[Any] = ROUTES, **changes: Any) -> ArrayRows:
    language = changes.pop("language", [routes[i * 7 % len(routes)] for i in range(count)])
    given = {"image": images(count), **changes}
    return ArrayRows([f"r{i}" for i in range(count)], language=language, **given)


def languages(rows: Any) -> list[str]:
    return list(rows.read(np.arange(len(rows)), ["language"])["language"])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Ragged):
        return len(one) == len(other) and all(map(np.array_equal, one, other))
    return bool(np.array_equal(one, other))


def alone(teacher: Teacher, rows: Any, places: list[int]) -> Mapping[str, Any]:
    batch = rows.read(np.array(places), list(teacher.inputs))
    return teacher.load()(batch)


@dataclass(frozen=True)
class Noted:
    """A teacher that says when it is loaded; its files may change then, or others answer for it."""

    inner: FunctionTeacher
    log: Path
    files: list[str] = field(default_factory=lambda: ["0" * 64])
    changing: bool = False
    answers: Answer | None = None

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def inputs(self) -> Sequence[str]:
        return self.inner.inputs

    def asks(self) -> Mapping[str, Ask]:
        return self.inner.asks()

    def identity(self) -> dict[str, Any]:
        files = {"weights": {"w": self.files[0]}} if self.files else {}
        return {**self.inner.identity(), **files}

    def load(self) -> Answer:
        with open(self.log, "a") as file:
            file.write(f"{self.name}\n")
        if self.changing:
            self.files[0] = "1" * 64
        return self.answers or self.inner.load()
