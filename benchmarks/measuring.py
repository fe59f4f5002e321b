"""Interleaved repeats, their medians, and what a benchmark reports."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Way = Callable[[], float]
"""Does the work once and returns the seconds it took."""


@dataclass(frozen=True)
class Timing:
    """The seconds of all rounds of one way."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.seconds)

    def per(self, count: int) -> Timing:
        """The seconds of one of `count` equal pieces."""
        return Timing(tuple(s / count for s in self.seconds))


@dataclass(frozen=True)
class Line:
    """One comparison: stillroom's time against another's, from the same interleaved rounds."""

    what: str
    against: str
    ours: Timing
    other: Timing | None
    """None when the other is not installed, or when only seconds are judged."""
    ratio: float | None = None
    """Goal: stillroom's median ÷ the other's is at most this."""
    seconds: float | None = None
    """Goal: stillroom's median is at most this."""
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.seconds is not None:
            return self.ours.median <= self.seconds
        if self.ratio is None or self.other is None:
            return None
        return self.ours.median / self.other.median <= self.ratio


@dataclass(frozen=True)
class Table:
    """A table of its own, for what is no comparison of two times."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Section:
    """What one benchmark found."""

    title: str
    intro: str
    lines: list[Line] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As it travels from the benchmark's process to the one that writes the page."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Section:
        """Read back `to_json`."""
        lines = []
        for line in value["lines"]:
            ours, other = line["ours"]["seconds"], line["other"]
            times = Timing(tuple(ours)), Timing(tuple(other["seconds"])) if other else None
            lines.append(Line(**{**line, "ours": times[0], "other": times[1]}))
        tables = [
            Table(tuple(t["columns"]), tuple(tuple(r) for r in t["rows"])) for t in value["tables"]
        ]
        return cls(value["title"], value["intro"], lines, tables, list(value["notes"]))


def timed(work: Callable[[], object]) -> Way:
    """A way from any function, timed from call to return."""

    def way() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return way


def interleaved(ways: Mapping[str, Way], rounds: int, warm: bool = True) -> dict[str, Timing]:
    """Every way once in each round, the order turned by one from round to round.

    With `warm` a round that is not counted comes first.
    """
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + warm):
        turn = number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            seconds = ways[name]()
            if number or not warm:
                found[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}
