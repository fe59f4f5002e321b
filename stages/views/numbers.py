"""Numbers for views, drawn from the plan's seed, the row's key and the view alone.

The generator is a hash of our own over 64-bit words, so that no library's next version draws other
numbers, and so that a row's views hang on no other row, no order and no batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Int64s = NDArray[np.int64]
_STEP = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, odd: steps of it visit every word."""
_SUMMED = 8
_NOISE_SCALE = np.float32(1 / sqrt(_SUMMED * (2.0**32 - 1) / 12))
_NOISE_MEAN = _SUMMED * 65535 // 2
_GRAIN = 65536.0


def mixed(words: Words) -> Words:
    """Every bit of a word hangs on all bits of it: the finaliser of SplitMix64.

    Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", with Stafford's
    variant 13 of the constants.
    """
    z = words
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key_words(keys: pa.Array) -> Words:
    """A word for each plain key: (n,) uint64. Of numbers their own bits mixed, of texts XXH64."""
    if pa.types.is_integer(keys.type):
        return mixed(keys.to_numpy(zero_copy_only=False).view(np.uint64) + _STEP)
    texts = (xxhash.xxh64_intdigest(text) for text in keys.cast(pa.large_binary()).to_pylist())
    return np.fromiter(texts, np.uint64, len(keys))


@dataclass(frozen=True, eq=False)
class Numbers:
    """Independent numbers for n pairs of row and view, each named by what it is for."""

    words: Words
    """(n,) uint64, one for each pair."""

    @classmethod
    def of(cls, seed: int, keys: Words, views: NDArray[np.int32]) -> Numbers:
        """For keys as `key_words` makes them, and (n,) views."""
        start = mixed(np.array([seed], np.uint64) + _STEP)
        return cls(mixed(mixed(start ^ keys) + views.astype(np.uint64) * _STEP))

    def word(self, purpose: str, lane: int = 0) -> Words:
        """(n,) uint64; others for every purpose and lane."""
        salt = np.array([xxhash.xxh64_intdigest(purpose.encode())], np.uint64)
        return mixed(mixed(self.words ^ salt) + np.array([lane], np.uint64) * _STEP)

    def uniform(self, purpose: str, lane: int = 0) -> NDArray[np.float64]:
        """(n,) float64 in [0, 1), multiples of 2^-53."""
        return (self.word(purpose, lane) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def between(self, purpose: str, low: float, high: float) -> NDArray[np.float32]:
        """(n,) float32, uniform from `low` to `high`, multiples of 2^-16."""
        return rounded(low + (high - low) * self.uniform(purpose))

    def whole(self, purpose: str, below: Int64s) -> Int64s:
        """(n,) int64, uniform from 0 up to `below` (n,), which it never reaches."""
        return np.minimum((self.uniform(purpose) * below).astype(np.int64), below - 1)

    def beta(self, purpose: str, alpha: float) -> NDArray[np.float32]:
        """(n,) float32 from Beta(alpha, alpha), multiples of 2^-16.

        X = 1/2 + T / (2 sqrt(2 alpha + T^2)) for T of Student's distribution with 2 alpha degrees of
        freedom, and T^2 = 2 alpha (U^(-1 / alpha) - 1) cos^2(2 pi V) (Bailey 1994, Math. Comp. 62).
        """
        u, v = 1 - self.uniform(purpose, 0), self.uniform(purpose, 1)
        cosine = np.cos(2 * np.pi * v)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            ratio = (u ** (-1 / alpha) - 1) * cosine**2
            share = 1 / (1 + 1 / ratio)
        return rounded(0.5 + np.copysign(np.sqrt(share), cosine) / 2)


def rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """To multiples of 2^-16, which float32 holds exactly, as it does what is missing to 1."""
    return (np.rint(values * _GRAIN) / _GRAIN).astype(np.float32)


def noise(seeds: Words, size: int) -> NDArray[np.float32]:
    """(n, size) float32 of mean 0 and standard deviation 1, close to normal, from a seed for each row.

    Each value is the sum of eight uniform 16-bit numbers (excess kurtosis -0.15, never beyond 4.9),
    so that only exact whole numbers and one multiplication stand between the seed and the value.
    """
    counters = np.arange(2 * size, dtype=np.uint64) * _STEP
    words = mixed(mixed(seeds)[:, None] + counters)
    parts = words.astype("<u8").view("<u2").reshape(len(seeds), size, _SUMMED)
    total: NDArray[np.int32] = parts.sum(axis=2, dtype=np.int32)
    return (total - np.int32(_NOISE_MEAN)).astype(np.float32) * _NOISE_SCALE


class Ring:
    """Partners for mixing: rows lie on a ring, and a drawn point takes the row behind it.

    A row that comes or goes changes the partners of about as many rows as take it for theirs, one
    for each view; drawing a place among n would change all of them.
    """

    def __init__(self, keys: Words, seed: int, view: int) -> None:
        """The ring of one view over the words of all keys that may be partners."""
        points = Numbers.of(seed, keys, np.array([view], np.int32)).word("ring")
        self._order = np.argsort(points, kind="stable")
        self._points = points[self._order]

    def behind(self, points: Words, own: Int64s) -> Int64s:
        """(n,) place among the keys of the partner of each point; another row than `own`.

        A single row is its own partner.
        """
        at = np.searchsorted(self._points, points) % len(self._points)
        at = np.where(self._order[at] == own, at + 1, at) % len(self._points)
        return np.asarray(self._order[at], np.int64)
