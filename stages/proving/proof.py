"""Proof: the smallest honest experiment of a method, and what it claims to show, as frozen data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillroom.stages.proving.bench import Bench


@dataclass(frozen=True)
class Claim:
    """One arm of an experiment beats another; differences are paired by seed."""

    better: str
    """The arm that should win."""
    than: str
    """The arm that it is compared with: labels only, plain KD, the method without its new part."""
    metric: str = "accuracy"
    larger: bool = True
    """Whether a larger value is better."""
    margin: float = 0.0
    """How much it may lose: 0 claims a win, 0.01 that it is not worse by more than that."""
    says: str = ""
    """What the paper claims, in few words."""


@dataclass(frozen=True)
class Proof:
    """An experiment that `stillroom prove` runs once for every seed."""

    run: Callable[[Bench], None]
    """Teaches, trains and notes each arm's metrics on `bench`; everything random comes of its seed."""
    data: str
    """Data, teacher and student, in a sentence."""
    claims: tuple[Claim, ...]
    """The first is the method's own."""
    tried: str = ""
    """What else was tried, and on which rows settings were chosen, where that matters."""
