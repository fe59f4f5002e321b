"""The arithmetic of a plan: totals with their uncertainty, room on the disk, when a cache pays.

Pure functions of numbers; `probing` and `evidence` measure them, `planning` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import floor, sqrt
from typing import Any, Literal

MARGIN = 0.05
"""Of what is to be written; kept free besides, because a plan is within this of what is written."""
AGAIN = 0.3
"""How far the seconds of one run lie from those of the next on one machine, whatever batches say: the
interval of a plan's seconds is never narrower (`benchmarks/run.py planning` counts how often it holds)."""
BLOCK_BYTES = 4096
"""File systems give out whole blocks, so that a file wastes half of one on average."""
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95% points of Student's t for 1 to 10 degrees of freedom."""
_MANY = 1e12
Pairs = Sequence[tuple[int, float]]
"""Rows of a group, and what they took: seconds or bytes."""


def t95(freedom: int) -> float:
    """The 95% point of Student's t, to three digits.

    Beyond 10 degrees of freedom by its expansion around the normal's (Fisher and Cornish 1960).
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Interval:
    """A number and the ends of its 95% interval; no ends where the spread is not known."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def exact(cls, value: float) -> Interval:
        """A number that is known."""
        return cls(value, value, value)

    @property
    def half(self) -> float | None:
        """Half the width."""
        return None if self.high is None else self.high - self.value

    def __add__(self, other: Interval) -> Interval:
        """The sum of two that do not depend on each other."""
        value = self.value + other.value
        if self.half is None or other.half is None:
            return Interval(value, None, None)
        half = sqrt(self.half**2 + other.half**2)
        return Interval(value, max(value - half, 0.0), value + half)

    def widened(self, share: float) -> Interval:
        """With ends that lie at least this share of the value away; none stay none."""
        if self.half is None or self.half >= share * self.value:
            return self
        return Interval(self.value, (1 - share) * self.value, (1 + share) * self.value)

    def to_json(self) -> dict[str, float | None]:
        """Plain JSON."""
        return asdict(self)


def per_row(pairs: Pairs) -> float:
    """What a row took on average: the ratio of the sums."""
    return sum(amount for _, amount in pairs) / sum(rows for rows, _ in pairs)


def total(pairs: Pairs, rows: int, *, among: bool = False) -> Interval:
    """What `rows` rows will take, from groups of rows that were measured.

    The ratio estimate R * sum(y) / sum(x) of survey sampling (Cochran, Sampling Techniques, 1977,
    chapter 6), whose variance is N**2 * s**2 * (1/n + 1/N) for N groups of the average size, n of
    them measured, and s**2 of the residuals y - x * sum(y) / sum(x): the mean is not known, and the
    rows to come vary as well. With `among` the measured rows are some of these, and what they took is
    settled: 1/n - 1/N, nothing once all were measured. One group tells no spread.
    """
    measured = sum(x for x, _ in pairs)
    if not rows:
        return Interval.exact(0.0)
    rate = per_row(pairs)
    value, n = rate * rows, len(pairs)
    if among and measured >= rows:
        return Interval.exact(value)
    if n < 2:
        return Interval(value, None, None)
    spread = sum((y - x * rate) ** 2 for x, y in pairs) / (n - 1)
    groups = rows * n / measured
    variance = groups**2 * spread * (1 / n + (-1 if among else 1) / groups)
    half = t95(n - 1) * sqrt(max(variance, 0.0))
    return Interval(value, max(value - half, 0.0), value + half)


@dataclass(frozen=True)
class Room:
    """What is to be written beside what is free."""

    free: int | None
    """Bytes free for this user; None where the store does not say (object stores)."""
    need: int
    """Bytes to write, with half a block for each file."""
    least: int
    """The same at the low end of the estimate."""

    @property
    def margin(self) -> int:
        """Bytes that are to stay free."""
        return round(MARGIN * self.need)

    @property
    def verdict(self) -> Literal["unknown", "fits", "may not fit", "does not fit"]:
        """Whether it fits with the margin; certain only where the low end does not fit either."""
        if self.free is None:
            return "unknown"
        if self.need + self.margin <= self.free:
            return "fits"
        return "does not fit" if self.least * (1 + MARGIN) > self.free else "may not fit"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "margin": self.margin, "verdict": self.verdict}


def room(size: Interval, files: int, free: int | None) -> Room:
    """Whether files of this many bytes in all fit."""
    blocks = files * BLOCK_BYTES // 2
    least = size.value if size.low is None else size.low
    return Room(free, round(size.value) + blocks, round(least) + blocks)


def slowest(rows: int, shard_rows: int, workers: int) -> int:
    """Rows of the worker that gets most: whole shards are given out, one after another.

    >>> slowest(5000, 1250, 3)
    2500
    """
    shards = -(-rows // shard_rows)
    return min(rows, -(-shards // workers) * shard_rows)


@dataclass(frozen=True)
class BreakEven:
    """From how many student runs on the cache is cheaper than the teacher inside each of them.

    N* is the smallest whole n with `once + n * reading < n * online`: n = floor(once / (online -
    reading)) + 1. There is none when reading costs a run as much as the teacher would. Seconds are
    those of one worker; what students cost without a teacher is the same on both sides.
    """

    once_seconds: float
    """Filling the cache: loading the teacher, its answers, encoding and writing them."""
    online_seconds: float
    """The teacher inside one student run: loading it (where that was measured), and `epochs` times
    its answers for `rows_per_epoch` rows."""
    reading_seconds: float
    """What one student run spends on reading from the cache."""
    reading_measured: bool
    """False: nobody measured it, and it counts as 0."""
    epochs: float
    rows_per_epoch: int
    price_per_hour: float | None = None
    """Of a machine that runs the teacher."""

    @property
    def students(self) -> int | None:
        """N*; None when no number of runs is enough."""
        return break_even(self.once_seconds, self.online_seconds, self.reading_seconds)

    def price(self, seconds: float) -> float | None:
        """What so many seconds cost."""
        return None if self.price_per_hour is None else seconds / 3600 * self.price_per_hour

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with N* as `students`."""
        prices = {"once_price": self.price(self.once_seconds)}
        prices |= {"online_price": self.price(self.online_seconds)}
        return {"students": self.students, **asdict(self), **prices}


def break_even(once: float, online: float, reading: float = 0.0) -> int | None:
    """The smallest whole n of at least 1 with once + n * reading < n * online.

    None where there is none, or none that anybody could run (a million millions).

    >>> break_even(12, 240), break_even(12, 12), break_even(12, 1, 1)
    (1, 2, None)
    """
    gain = online - reading
    if gain <= 0 or not once / gain < _MANY:
        return None
    n = floor(once / gain) + 1
    # The quotient may have been rounded over a whole number.
    while n > 1 and once < (n - 1) * gain:
        n -= 1
    while not once < n * gain:
        n += 1
    return n


@dataclass(frozen=True)
class Estimate:
    """What filling a cache will take, before it is filled."""

    source: str
    """In words, where bytes and seconds come from; "unknown" where nothing was measured."""
    bytes: Interval | None
    """To be written: segments (without `made/`), books and the snapshot. None: not known."""
    row_bytes: Mapping[str, float]
    """Bytes of a row on disk, by signal."""
    files: int
    """How many files those bytes are."""
    room: Room | None
    seconds: Interval | None
    """From start to end, with loading the teacher where that was measured and what a run costs
    besides its rows, without starting Ray and without fitting books. The interval is that of the
    groups which were timed, and at least `AGAIN` wide on either side. None: not known."""
    row_seconds: float | None
    """Of one row inside the teacher, in one worker."""
    load_seconds: float | None
    """Of loading the teacher; None where it was not measured, and is in no number here."""
    workers: int
    break_even: BreakEven | None
    """None where seconds or the students' epochs are not known."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with every number."""
        given = {
            "bytes": self.bytes and self.bytes.to_json(),
            "seconds": self.seconds and self.seconds.to_json(),
            "room": self.room and self.room.to_json(),
            "break_even": self.break_even and self.break_even.to_json(),
        }
        plain = {"source": self.source, "row_bytes": dict(self.row_bytes), "files": self.files}
        plain |= {"row_seconds": self.row_seconds, "load_seconds": self.load_seconds}
        return {**plain, "workers": self.workers, **given}
