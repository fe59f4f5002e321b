"""Means over seeds with their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Two-sided quantiles of Student's t by degrees of freedom (1 to 10).
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95% t-interval over seeds; with one value the interval is the value."""
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return {"mean": mean, "low": mean, "high": mean}
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = (_T95[n - 2] if n - 2 < len(_T95) else 1.96) * spread / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half}
