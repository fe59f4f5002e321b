"""Recipe: how a student learns from signals, as frozen data over pure functions.

Names say where a tensor comes from: `student.NAME` (an output or inner layer of the student),
`teacher.SIGNAL` (from the cache), `row.COLUMN` (from the data set), `head.NAME` (a part that exists
only while training). What a recipe reads of the cache follows from its terms, before any student or
teacher exists.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.storage.code import code_identity

if TYPE_CHECKING:
    from torch import Tensor, nn

ORIGINS = ("student", "teacher", "row", "head")


@dataclass(frozen=True)
class Term:
    """One weighted loss: `weight * mean over rows of function(*inputs, **settings)`."""

    function: Callable[..., Tensor]
    """Pure: tensors of n rows in, (n,) losses out."""
    inputs: tuple[str, ...]
    """Names of its positional arguments."""
    weight: float
    settings: tuple[tuple[str, Any], ...]
    """Keyword arguments."""

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(n,) losses, not yet weighted."""
        given = [tensors[name] for name in self.inputs]
        return self.function(*given, **dict(self.settings))

    def __repr__(self) -> str:
        """As it would be written: `0.9 * kl(student.logits, teacher.logits, temperature=4.0)`."""
        arguments = [*self.inputs, *(f"{name}={value!r}" for name, value in self.settings)]
        return f"{self.weight:g} * {self.function.__name__}({', '.join(arguments)})"


@dataclass(frozen=True)
class Head:
    """A student-only part such as a projector: trained with the student, dropped at export."""

    name: str
    """Its output is `head.NAME`."""
    build: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]
    """(shape of one row of its input, shape of one row of `like`) -> module."""
    input: str
    """What it is applied to, such as `student.feature`."""
    like: str
    """What its output must match in shape, such as `teacher.feature`."""


@dataclass(frozen=True)
class Recipe:
    """A method with its settings."""

    name: str
    """Slug of the method."""
    terms: tuple[Term, ...]
    heads: tuple[Head, ...] = ()
    paper: str = ""
    """Such as `arXiv:1503.02531`."""

    def __post_init__(self) -> None:
        """Refuse names of unknown origin and heads that are used but not given."""
        if not self.terms:
            raise ValueError(f"recipe {self.name!r} has no terms; there is nothing to learn")
        heads = {f"head.{head.name}" for head in self.heads}
        for name in self.names:
            origin, _, rest = name.partition(".")
            if origin not in ORIGINS or not rest:
                raise ValueError(
                    f"recipe {self.name!r}: {name!r} should be one of "
                    + ", ".join(f"{o}.NAME" for o in ORIGINS)
                )
            if origin == "head" and name not in heads:
                raise ValueError(f"recipe {self.name!r} uses {name!r} but has no such head")

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Every name that terms and heads take."""
        terms = {name for term in self.terms for name in term.inputs}
        return frozenset(terms | {n for head in self.heads for n in (head.input, head.like)})

    def _of(self, origin: str) -> tuple[str, ...]:
        return tuple(sorted(n.partition(".")[2] for n in self.names if n.startswith(f"{origin}.")))

    @property
    def reads(self) -> tuple[str, ...]:
        """The cached signals that it needs. `teacher.boxes.score` is a field of the record `boxes`,
        `teacher.boxes.length` (n,) how many there are in each row, where rows differ."""
        return tuple(sorted({name.partition(".")[0] for name in self._of("teacher")}))

    @property
    def columns(self) -> tuple[str, ...]:
        """The data set's columns that its terms need (the student's own inputs not counted)."""
        return self._of("row")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs and layers that it needs of a student."""
        return self._of("student")

    def identity(self) -> dict[str, Any]:
        """Terms, weights, settings and the code of their functions, as plain JSON."""
        return {
            "terms": [
                [code_identity(t.function), list(t.inputs), t.weight, dict(t.settings)]
                for t in self.terms
            ],
            "heads": [[h.name, code_identity(h.build), h.input, h.like] for h in self.heads],
        }


def term(
    function: Callable[..., Tensor], *inputs: str, weight: float = 1.0, **settings: Any
) -> Term:
    """A term, its arguments checked against the function's signature at once.

    Raises TypeError naming the function for an argument that it does not take.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    if "<" in function.__qualname__:
        raise TypeError(f"term {name}: use a module-level function, which other processes can find")
    try:
        inspect.signature(function).bind(*inputs, **settings)
    except TypeError as error:
        raise TypeError(f"term {name}{inspect.signature(function)}: {error}") from None
    return Term(function, inputs, float(weight), tuple(sorted(settings.items())))
