"""Shapes: what each tensor of a recipe is, in words that people read and programs check.

`kind` and then the axes, each a number or a name that stands for one size throughout the recipe:

    float n classes        floating point
    int n below classes    whole numbers from 0, below a size
    bool n tokens          marks
    bool n patches with kept   marks, as many in every row
    simplex n classes      non-negative, summing to 1 over the last axis
    unit n dim             of length 1 over the last axis
    positive n             floating point above 0
    share n                floating point from 0 to 1
    sign n dim             -1 or 1
    box n boxes 4          x0, y0, x1, y1 in [0, 1] with x0 < x1, y0 < y1

An axis may be several names joined by `*` and `+`: `classes*parts`, `1+kept`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

KINDS = ("float", "int", "bool", "simplex", "unit", "positive", "share", "sign", "box")
ROWS = "n"


@dataclass(frozen=True)
class Shape:
    """One tensor's kind and axes."""

    kind: str
    axes: tuple[str, ...]
    below: str = ""
    """Of whole numbers: what they are below."""
    marked: str = ""
    """Of marks: how many there are along the last axis, where that is the same everywhere."""

    @classmethod
    def of(cls, said: str) -> Shape:
        """Read `float n classes`; ValueError says what is no shape and why."""
        kind, *words = said.split()
        if kind not in KINDS:
            raise ValueError(f"shape {said!r}: expected one of {', '.join(KINDS)} first")
        said_of = {"below": "", "with": ""}
        for word in said_of:
            if word in words:
                at = words.index(word)
                if len(words) != at + 2:
                    raise ValueError(f"shape {said!r}: one size stands after {word!r}")
                words, said_of[word] = words[:at], words[at + 1]
        below, marked = said_of.values()
        if (kind == "int") != bool(below):
            raise ValueError(f"shape {said!r}: whole numbers, and only they, need 'below SIZE'")
        if marked and kind != "bool":
            raise ValueError(f"shape {said!r}: only marks have 'with SIZE'")
        for axis in (*words, *([below] * bool(below)), *([marked] * bool(marked))):
            if not all(part.isidentifier() or part.isdigit() for part in _names(axis)):
                raise ValueError(f"shape {said!r}: {axis!r} is neither a name nor a number")
        return cls(kind, tuple(words), below, marked)

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The axes as numbers."""
        return tuple(_size(axis, sizes) for axis in self.axes)

    def random(self, sizes: Mapping[str, int], generator: Generator) -> Tensor:
        """A tensor of this kind, drawn from a generator."""
        import torch

        shape = self.sized(sizes)
        if self.kind == "int":
            return torch.randint(_size(self.below, sizes), shape, generator=generator)
        drawn = torch.randn(shape, generator=generator)
        if self.marked:
            fewest: Tensor = drawn.argsort(-1).argsort(-1) < _size(self.marked, sizes)
            return fewest
        if self.kind == "bool":
            return drawn > -0.5
        if self.kind == "simplex":
            return drawn.softmax(-1)
        if self.kind == "unit":
            lengths: Tensor = drawn.norm(dim=-1, keepdim=True)
            return drawn / lengths
        if self.kind == "positive":
            return drawn.abs() + 0.1
        if self.kind == "share":
            return torch.rand(shape, generator=generator)
        if self.kind == "sign":
            return drawn.sign()
        if self.kind == "box":
            corners = torch.rand((*shape[:-1], 2, 2), generator=generator) * 0.45
            corners[..., 1, :] += 0.5
            return corners.reshape(shape)
        return drawn


def _size(axis: str, sizes: Mapping[str, int]) -> int:
    each = (term.split("*") for term in axis.split("+"))
    return sum(prod(int(part) if part.isdigit() else sizes[part] for part in term) for term in each)


def _names(axis: str) -> list[str]:
    """The names and numbers in it."""
    return axis.replace("+", "*").split("*")


_SIZES = (5, 4, 3, 7, 2)
"""Of named axes in the order in which a recipe names them; all different, so that no two are mixed up."""


def sizes_of(shapes: Mapping[str, str], rows: int = 6) -> dict[str, int]:
    """A size for every named axis."""
    sizes = {ROWS: rows}
    for said in shapes.values():
        shape = Shape.of(said)
        for axis in (*shape.axes, *(size for size in (shape.below, shape.marked) if size)):
            for part in _names(axis):
                if not part.isdigit() and part not in sizes:
                    sizes[part] = _SIZES[(len(sizes) - 1) % len(_SIZES)]
    return sizes


def random_tensors(shapes: Mapping[str, str], *, rows: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """A tensor for every name, for trying a recipe without any data.

    >>> random_tensors({"row.label": "int n below classes"}, rows=3)["row.label"].shape
    torch.Size([3])
    """
    import torch

    sizes, generator = sizes_of(shapes, rows), torch.Generator().manual_seed(seed)
    return {name: Shape.of(said).random(sizes, generator) for name, said in shapes.items()}
