"""Term: one weighted loss over named tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.storage.code import code_identity

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One weighted loss: `weight * mean of function(*inputs, **settings)`."""

    function: Callable[..., Tensor]
    """Pure: tensors of n rows in; losses (n,), (n, tokens) or of any more axes out, or one number, ()."""
    inputs: tuple[str, ...]
    """Names of its positional arguments."""
    weight: float | str
    """A number, or the name of one: `state.balance`, `batch.progress`."""
    settings: tuple[tuple[str, Any], ...]
    """Keyword arguments."""
    where: str = ""
    """Name of a bool tensor (n,), (n, tokens), ...: the mean is over what it marks, zero where it
    marks nothing. It may be wider than the losses where it marks nothing. Empty: over all."""
    name: str = ""
    """What a controller and the record call it; the function's name if none is given."""

    def __call__(self, tensors: Mapping[str, Any]) -> Tensor:
        """The losses, not yet weighted."""
        given = [tensors[name] for name in self.inputs]
        return self.function(*given, **dict(self.settings))

    def mean(self, tensors: Mapping[str, Any]) -> Tensor:
        """(): the mean over rows (and tokens) that count."""
        losses = self(tensors)
        if not self.where:
            return losses.mean()
        marked = tensors[self.where]
        if marked.ndim > 1 and losses.ndim > 1 and not marked[:, losses.shape[1] :].any():
            # Rows that differ in length are as wide as the longest of a batch, marks as any may be.
            marked = marked[:, : losses.shape[1]]
        if losses.shape[: marked.ndim] != marked.shape:
            raise ValueError(
                f"{self!r} gave losses of shape {tuple(losses.shape)}, and {self.where} is "
                f"{tuple(marked.shape)}: they must begin alike"
            )
        # Not a product: an infinite loss of a row that does not count would make a NaN of it.
        chosen: Tensor = losses[marked]
        nothing: Tensor = losses.sum() * 0
        return chosen.mean() if chosen.numel() else nothing

    def weighted(self, mean: Tensor, tensors: Mapping[str, Any]) -> Tensor:
        """The mean times its weight."""
        if isinstance(self.weight, str):
            weight: Tensor = tensors[self.weight]
            return mean * weight
        return mean if self.weight == 1 else self.weight * mean

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it takes."""
        weight = (self.weight,) if isinstance(self.weight, str) else ()
        return (*self.inputs, *weight, *([self.where] * bool(self.where)))

    @property
    def label(self) -> str:
        """Its name, or its function's."""
        return self.name or self.function.__name__

    def identity(self) -> list[Any]:
        """Code, inputs, weight and settings, as plain JSON; not its name."""
        spelled = [
            code_identity(self.function),
            list(self.inputs),
            self.weight,
            dict(self.settings),
        ]
        return [*spelled, self.where] if self.where else spelled

    def __repr__(self) -> str:
        """As it would be written: `0.9 * kl(student.logits, teacher.logits, temperature=4.0)`."""
        arguments = [*self.inputs, *(f"{name}={value!r}" for name, value in self.settings)]
        weight = self.weight if isinstance(self.weight, str) else f"{self.weight:g}"
        where = f" where {self.where}" if self.where else ""
        return f"{weight} * {self.function.__name__}({', '.join(arguments)}){where}"


def term(
    function: Callable[..., Tensor],
    *inputs: str,
    weight: float | str = 1.0,
    where: str = "",
    name: str = "",
    **settings: Any,
) -> Term:
    """A term, its arguments checked against the function's signature at once.

    Raises TypeError naming the function for an argument that it does not take.
    """
    called = f"{function.__module__}.{function.__qualname__}"
    if "<" in function.__qualname__:
        raise TypeError(
            f"term {called}: use a module-level function, which other processes can find"
        )
    try:
        inspect.signature(function).bind(*inputs, **settings)
    except TypeError as error:
        raise TypeError(f"term {called}{inspect.signature(function)}: {error}") from None
    weight = weight if isinstance(weight, str) else float(weight)
    return Term(function, inputs, weight, tuple(sorted(settings.items())), where, name)
