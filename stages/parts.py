"""What a recipe brings beside its terms: heads, a controller, an answer at inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from stillroom.storage.code import code_identity

if TYPE_CHECKING:
    from torch import Tensor, nn


class Bound(partial[Any]):
    """A partial that equals every other of the same function and settings, as data does."""

    def __eq__(self, other: object) -> bool:
        """Whether function, arguments and settings are the same."""
        if not isinstance(other, partial):
            return NotImplemented
        mine = self.func, self.args, self.keywords
        return mine == (other.func, other.args, other.keywords)

    def __hash__(self) -> int:
        """Of the function; settings may be lists."""
        return hash(self.func)


def bound(function: Any) -> Any:
    """The function as it is; a partial as one that survives `==` after a round trip."""
    if not isinstance(function, partial) or isinstance(function, Bound):
        return function
    return Bound(function.func, *function.args, **function.keywords)


@dataclass(frozen=True)
class Head:
    """A part that is trained beside the student: a projector, a second classifier, a router."""

    name: str
    """Its output is `head.NAME`."""
    build: Callable[..., nn.Module]
    """(shape of one row of its input, shape of one row of `like`) -> module. With several inputs the
    first argument is a tuple of their shapes, and the module takes them in that order."""
    input: str | tuple[str, ...]
    """What it is applied to, such as `student.feature`."""
    like: str = ""
    """What its output must match in shape, such as `teacher.feature`; () where nothing is said."""
    kept: bool = False
    """Whether inference needs it: stored beside the student's weights, applied in evaluation."""
    own_step: bool = False
    """Whether the recipe's step applies it and optimises it by itself."""

    def __post_init__(self) -> None:
        """A partial becomes comparable."""
        object.__setattr__(self, "build", bound(self.build))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Its inputs by name."""
        return (self.input,) if isinstance(self.input, str) else self.input

    def built(self, tensors: Mapping[str, Any]) -> nn.Module:
        """The module for tensors of these shapes."""
        shapes = tuple(tuple(tensors[name].shape[1:]) for name in self.inputs)
        wanted = tuple(tensors[self.like].shape[1:]) if self.like else ()
        return self.build(shapes[0] if isinstance(self.input, str) else shapes, wanted)

    def identity(self) -> list[Any]:
        """Name, code and what it joins, as plain JSON."""
        given = self.input if isinstance(self.input, str) else list(self.input)
        flags = [flag for flag in ("kept", "own_step") if getattr(self, flag)]
        return [self.name, code_identity(self.build), given, self.like, *flags]


@dataclass(frozen=True)
class Seen:
    """What a controller learns of a step that was just made."""

    losses: Mapping[str, Tensor]
    """The terms' means by label, not weighted, detached: ()."""
    tensors: Mapping[str, Any]
    """Everything that the terms could read; nothing in it may be changed."""
    step: int
    """Steps made so far, this one included."""
    steps: int
    """Steps of the whole training."""


@dataclass(frozen=True)
class Controller:
    """State outside the gradient, changed after every step: schedules fed by the loss, balances."""

    start: Callable[..., Mapping[str, float]]
    """`start(**settings) -> {name: value}`: `state.NAME` at the first step."""
    update: Callable[..., Mapping[str, Any]]
    """`update(state, seen, **settings) -> {name: value}` what changed: numbers, or tensors of one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of both."""

    def identity(self) -> list[Any]:
        """Code and settings, as plain JSON."""
        return [code_identity(self.start), code_identity(self.update), dict(self.settings)]


@dataclass(frozen=True)
class Answer:
    """What a student answers at inference, where that is more than one of its outputs.

    Evaluation finds it as `student.NAME`. Settings of the grid are chosen on the student's validation
    split after training, by the best score, the first of equal ones; without such a split, and for
    what is not in the grid, `settings` hold. The test rows are never asked.
    """

    function: Callable[..., Tensor]
    """`function(*inputs, **settings)`: (n, ...) tensors in, (n, ...) out."""
    inputs: tuple[str, ...]
    """`student.`, `table.` and `row.` names, and `head.` ones of heads that are kept."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values to choose from, by setting."""
    score: Callable[[Tensor, Tensor], float] | None = None
    """`score(answer, row.LABEL) -> larger is better`."""
    label: str = "label"
    """The column that the score reads."""
    name: str = "logits"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data set that it and its score read."""
        rows = [n.partition(".")[2] for n in self.inputs if n.startswith("row.")]
        return tuple(dict.fromkeys((*rows, *([self.label] * bool(self.grid)))))

    def identity(self) -> list[Any]:
        """Code, inputs, settings and grid, as plain JSON."""
        score = None if self.score is None else code_identity(self.score)
        grid = {name: list(values) for name, values in self.grid.items()}
        return [
            *(code_identity(self.function), list(self.inputs), dict(self.settings)),
            *(grid, score, self.label, self.name),
        ]
