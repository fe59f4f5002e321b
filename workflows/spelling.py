"""Numbers as a reader wants them: shares, intervals, bytes, durations; a dash for what is missing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

NONE = "\N{EM DASH}"
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def share(value: float | None, places: int = 1) -> str:
    """0.9512 as 95.1%; a dash for what is missing or not finite, as in every function below."""
    return NONE if _absent(value) else f"{value:.{places}%}"


def decimals(value: float | None, places: int = 3) -> str:
    """A number with fixed decimals."""
    return NONE if _absent(value) else f"{value:.{places}f}".replace("-", MINUS)


def signed(value: float | None, places: int = 1) -> str:
    """A difference, its sign always shown."""
    return NONE if _absent(value) else f"{value:+.{places}f}".replace("-", MINUS)


def whole(value: float | None) -> str:
    """A count with separators between the thousands."""
    return NONE if _absent(value) else f"{value:,.0f}"


def span(value: Mapping[str, float] | None, scale: float = 1, places: int = 1) -> str:
    """The two ends of an interval, scaled: 94.8-95.4 with a proper dash."""
    if value is None:
        return NONE
    low, high = (decimals(value[end] * scale, places) for end in ("low", "high"))
    return f"{low}{DASH}{high}"


def amount(value: float | None) -> str:
    """Bytes in the largest decimal unit that leaves at least one."""
    if value is None or _absent(value):
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def bytes_of(text: str) -> int | None:
    """Bytes of a size such as 500 MB, 1.5GB or 4096; None of what is none.

    >>> bytes_of("1.5GB"), bytes_of("500 kB"), bytes_of("4096"), bytes_of("much")
    (1500000000, 500000, 4096, None)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kKMGT]?)B?", text.strip())
    if found is None:
        return None
    unit: int = 1000 ** " KMGT".index(found[2].upper() or " ")
    return round(float(found[1]) * unit)


def duration(seconds: float | None) -> str:
    """Seconds as milliseconds, seconds, minutes or hours, to about three figures."""
    if seconds is None or _absent(seconds):
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def times(ratio: float) -> str:
    """A factor, to about three figures: 44.1 times."""
    return f"{ratio:.1f} times" if ratio < 100 else f"{ratio:,.0f} times"


def finite(value: float | None) -> bool:
    """Whether there is a number, and it is neither infinite nor NaN."""
    return value is not None and math.isfinite(value)


def _absent(value: float | None) -> bool:
    return not finite(value)
