"""Sweeps: many students from one function, over grids and drawn points, with names that stay.

    def student(*, temperature: float, alpha: float, seed: int) -> Student:
        return Student("kd", net, recipes.find("kd", temperature=temperature, alpha=alpha), seed=seed)

    grid(student, temperature=[1, 2, 4], alpha=[0.5, 1.0], seed=range(3))      # 18 students
    draw(student, 20, temperature=Between(1, 8, log=True), alpha=Between(0, 1))

They are ordinary students of one cache: `train` trains those that have no record, so a sweep that grows
by a value trains the new ones alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillroom.stages.student import Record, Student
from stillroom.storage.errors import SettingsError

Axis = Iterable[Any] | Mapping[str, Any]
"""Values; or names and what they stand for, where values are recipes or functions."""
_LONGEST = 64
"""Characters of a student's name."""
_UNNAMED = "seed"
"""The axis that is no part of the name: trainings of one student are told apart by their seed."""
_DIGITS = 3
"""Significant digits of a drawn number: what the name says is exactly what is trained."""


@dataclass(frozen=True)
class Between:
    """Numbers to draw from: evenly, or evenly in the logarithm; whole ones with `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        """Refuse ends that hold nothing."""
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise SettingsError(f"{self}: low should be below high")
        if self.whole and math.ceil(self.low) > math.floor(self.high):
            raise SettingsError(f"{self}: there is no whole number between")
        if self.log and self.low <= 0:
            raise SettingsError(f"{self}: on a logarithmic scale low should be above 0")

    def at(self, share: float) -> float:
        """The number at a share of the way from low to high, to three significant digits."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + share * (high - low)
        value = math.exp(value) if self.log else value
        if self.whole:
            return min(max(round(value), math.ceil(self.low)), math.floor(self.high))
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def grid(make: Callable[..., Student], **axes: Axis) -> list[Student]:
    """A student for every combination of the axes' values, the last axis fastest.

    `make(**point)` gets one value of each axis; to its student's name the point is added, as in
    `kd-temperature4-alpha0p5`. A name depends on its own point alone: adding values to an axis leaves
    the other students as they are, adding an axis renames all. `seed` is no part of names.

    SettingsError for an axis without values, and for two students of one name and seed.
    """
    points = itertools.product(*(_values(name, axis) for name, axis in axes.items()))
    return _students(make, [dict(zip(axes, point, strict=True)) for point in points])


def draw(
    make: Callable[..., Student], count: int, *, draws: int = 0, **axes: Axis | Between
) -> list[Student]:
    """Students at `count` drawn points, one of each axis's values for each; points that come twice
    are one.

    What is drawn for the i-th point on an axis follows from `draws`, i and the axis's name: a larger
    count keeps the points of a smaller one, a new axis those of the others. An axis `seed` is not
    drawn: every point gets all its values.
    """
    if count < 1:
        raise SettingsError(f"draw: count should be at least 1, found {count}")
    axes = dict(axes)
    seeds = _values(_UNNAMED, axes.pop(_UNNAMED)) if _UNNAMED in axes else [None]
    points: dict[tuple[str, ...], dict[str, tuple[str, Any]]] = {}
    for number in range(count):
        point = {}
        for name, axis in axes.items():
            share = _share(f"{draws}/{number}/{name}")
            if isinstance(axis, Between):
                value = axis.at(share)
                point[name] = (_label(value), value)
            else:
                values = _values(name, axis)
                point[name] = values[int(share * len(values))]
        points.setdefault(tuple(label for label, _ in point.values()), point)
    return _students(
        make,
        [
            {**point, **({} if seed is None else {_UNNAMED: seed})}
            for point in points.values()
            for seed in seeds
        ],
    )


def ranked(
    records: Iterable[Record], metric: str, *, least: bool = False
) -> list[tuple[str, float]]:
    """Students by their mean of a metric over seeds, the best first: the highest, or the lowest.

    NaN comes last. SettingsError naming what is known when a record lacks the metric.
    """
    values: dict[str, list[float]] = {}
    for record in records:
        if metric not in record.metrics:
            known = ", ".join(sorted(record.metrics))
            raise SettingsError(f"student {record.name!r} has no metric {metric!r}; known: {known}")
        values.setdefault(record.name, []).append(float(record.metrics[metric]))
    means = {name: sum(found) / len(found) for name, found in values.items()}

    def key(pair: tuple[str, float]) -> tuple[bool, float]:
        return math.isnan(pair[1]), pair[1] if least else -pair[1]

    return sorted(means.items(), key=key)


def _values(name: str, axis: Any) -> Sequence[tuple[str, Any]]:
    """The values of an axis, each with what the name says of it."""
    if isinstance(axis, str | bytes | Between) or not isinstance(axis, Iterable):
        raise SettingsError(f"axis {name}: expected a list of values, or a mapping, found {axis!r}")
    if isinstance(axis, Mapping):
        found = [(_label(label), value) for label, value in axis.items()]
    else:
        found = [(_label(value), value) for value in axis]
    for label, value in found:
        plain = isinstance(axis, Mapping) or isinstance(value, str | int | float | None)
        if not plain or not label:
            raise SettingsError(
                f"axis {name}: {value!r:.60} has no name; write {{'name': value, ...}} instead of a list"
            )
    if not found:
        raise SettingsError(f"axis {name} has no values")
    return found


def _students(
    make: Callable[..., Student], points: Iterable[Mapping[str, tuple[str, Any]]]
) -> list[Student]:
    found = []
    for point in points:
        student = make(**{axis: value for axis, (_, value) in point.items()})
        said = [f"{axis}{label}" for axis, (label, _) in point.items() if axis != _UNNAMED]
        found.append(replace(student, name=_name("-".join((student.name, *said)))))
    twice = [key for key, n in Counter((s.name, s.seed) for s in found).items() if n > 1]
    if twice:
        name, seed = twice[0]
        raise SettingsError(
            f"two students are {name!r} with seed {seed}: give {getattr(make, '__name__', 'make')} a "
            "`seed` that it passes on, or name an axis's values: {'name': value, ...}"
        )
    return found


def _label(value: Any) -> str:
    """A value as a name can hold it: 0.5 is 0p5, -1 is m1, 1e-05 is 1em05."""
    text = str(value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        text = f"{value:g}"
    text = text.replace("-", "m").replace("+", "") if isinstance(value, int | float) else text
    return re.sub(r"[^A-Za-z0-9_-]+", "", text.replace(".", "p").replace(" ", "_"))


def _name(name: str) -> str:
    """The name, or where it is too long its beginning and eight digits of its digest."""
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _share(text: str) -> float:
    """A number in [0, 1) that follows from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
