"""Derivations as frozen data: a function, the signals and columns that it reads, what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.storage.derived import Derived
from stillroom.storage.signal import Values, checked_name


@dataclass(frozen=True)
class Summary:
    """A few arrays that are computed over all rows: class means, centroids, a temperature.

    The function gets a `Table` and returns arrays by name. Its code and its settings (a
    functools.partial of a module-level function) are part of the identity.
    """

    name: str
    """Names the stored result: letters, digits, _ and -."""
    function: Callable[..., Mapping[str, Any]]
    """`function(table) -> {name: array}`."""
    signals: Mapping[str, str]
    """The cached signals that it reads, by the name that the function has for each."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns of whole numbers likewise: of the data set, or a cached signal of one number a row."""

    def __post_init__(self) -> None:
        """SignalError for a name that cannot name a file."""
        checked_name(self.name, "derived result")


@dataclass(frozen=True)
class RowWise:
    """Signals that are computed row by row from cached ones: ensembles, assignments, neighbours."""

    name: str
    """Names the segments, as a teacher's name does."""
    function: Callable[..., Mapping[str, Values]]
    """`function(**batch, **given) -> {signal: rows}`; with `whole` it gets `table=` and `keys=` too."""
    signals: Mapping[str, str | Sequence[str]]
    """The cached signals that it reads by the function's name for each; a sequence gives a list."""
    outputs: tuple[str, ...]
    """The signals that it gives."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns of the data set that it reads, by the function's name for each."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by output; raw where none is named."""
    given: Mapping[str, Derived] = field(default_factory=dict)
    """Stored results that it reads, by the function's name for each: it gets {array: values}."""
    whole: bool = False
    """Whether each row's answer depends on all rows: a change of any makes all stale."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every signal that it reads."""
        found: list[str] = []
        for given in self.signals.values():
            found += [given] if isinstance(given, str) else list(given)
        return tuple(dict.fromkeys(found))
