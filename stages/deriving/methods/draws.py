"""Draws of rows that hang on their keys and a seed, never on the order in which rows lie.

A weighted draw is a race: row i runs for -log(u_i) / w_i, and the first one in is drawn with a
chance in proportion to w_i (Efraimidis and Spirakis, "Weighted random sampling with a reservoir",
2006). So each block names its own winner, and the winner of winners does not hang on the blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint64]
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXED = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def mixed(codes: Codes, seed: int, step: int) -> Codes:
    """(n,) uint64: SplitMix64's output function of each code, for this seed and step."""
    start = np.array([(seed * 0x632BE59BD9B4E019 + step) % 2**64], np.uint64)
    state = codes ^ _turned(start + _STEP)
    return _turned(state + _STEP)


def _turned(state: Codes) -> Codes:
    for shift, factor in _MIXED:
        state = (state ^ (state >> shift)) * factor
    return np.asarray(state ^ (state >> np.uint64(31)))


def uniform(codes: Codes, seed: int, step: int) -> NDArray[np.float64]:
    """(n,) numbers in (0, 1)."""
    drawn = mixed(codes, seed, step) >> np.uint64(11)
    return np.asarray((drawn.astype(np.float64) + 0.5) / 2.0**53)


def times(
    codes: Codes, seed: int, step: int, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """(n,) when each row comes in: the least is drawn; infinity where the weight is 0."""
    run = -np.log(uniform(codes, seed, step))
    if weights is None:
        return run
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(weights > 0, run / weights, np.inf))
