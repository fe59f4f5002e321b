"""sampled(k): k classes drawn from the teacher's distribution, with how often each was drawn.

Random Sampling KD of "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs"
(Anshumann et al., ACL 2025, arXiv 2503.16870), with the proposal q proportional to p**t at t = 1:
k independent draws with replacement, of which the distinct classes and their counts are kept. A
draw's weight p / q is then one, so that count / k is an unbiased estimate of every class's
probability, also of those in the tail that topk(k) throws away; 50 draws of a language model are
about 12 distinct tokens. Stored: `indices` (rising classes, then unused places), `counts` (0 in an
unused place) and `logsumexp` (float32, of all logits).

The draws are a function of the row's own logits and of nothing else: the XXH3 hash (64 bits, seed 0)
of their bytes, little endian, seeds the SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014),
whose j-th output gives the j-th uniform number. The same logits are the same bytes in any cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from stillroom.storage.encodings.logits import (
    FLOOR,
    blocks,
    check_logits,
    class_dtype,
    divergence,
    softmax,
)
from stillroom.storage.encodings.part import Array, Part
from stillroom.storage.errors import CorruptShardError, SignalError

MOST_DRAWS = 1024
"""A row of few distinct classes is small on disk, but takes k places when it is read."""
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""SplitMix64's constants."""


@dataclass(frozen=True)
class Sampled:
    """k draws with replacement along the last axis: the distinct classes, counts and log-sum-exp."""

    k: int
    """How many draws; a row keeps 1 to k distinct classes and has k places for them."""

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Logits: floating point, fewer than 2**32 classes on the last axis."""
        check_logits(name, shape, dtype, f"sampled({self.k})")
        if self.k > MOST_DRAWS:
            raise SignalError(
                f"signal {name!r}: sampled({self.k}) draws more than {MOST_DRAWS} times; the paper "
                "draws 50 times, and topk(k) or float16 keep more for fewer bytes"
            )

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """indices, counts and logsumexp."""
        outer, classes = shape[:-1], shape[-1]
        return (
            Part("indices", (*outer, self.k), class_dtype(classes).name),
            Part("counts", (*outer, self.k), np.min_scalar_type(self.k).name),
            Part("logsumexp", outer, "float32"),
        )

    def encode(self, values: Array) -> dict[str, Array]:
        """Draw; SignalError where logits are no distribution."""
        outer, classes = values.shape[:-1], values.shape[-1]
        flat = values.reshape(-1, classes)
        flat = np.ascontiguousarray(flat, flat.dtype.newbyteorder("<"))
        drawn = np.empty((len(flat), self.k), np.int64)
        total = np.empty(len(flat), np.float32)
        for some in blocks(flat):
            row = softmax(flat[some])
            reach = np.cumsum(row.weights, axis=-1)
            uniform = uniforms(flat[some], self.k)
            # Below the last sum, whatever rounding does: what is drawn then has probability.
            aim = np.minimum(uniform * reach[:, -1:], np.nextafter(reach[:, -1:], 0))
            for mine, sums, at in zip(drawn[some], reach, aim, strict=True):
                mine[:] = np.searchsorted(sums, at, side="right")
            total[some] = row.total[:, 0]
        indices, counts = _tallied(drawn)
        return {
            "indices": indices.astype(class_dtype(classes)).reshape(*outer, self.k),
            "counts": counts.astype(np.min_scalar_type(self.k)).reshape(*outer, self.k),
            "logsumexp": total.reshape(outer),
        }

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """Dense float32 logits (n, *shape).

        log(count / k) where a class was drawn and -60 where not, plus the log-sum-exp: the mean of
        their softmax over many draws is the teacher's (up to e**-60).
        """
        self.require(parts, shape)
        indices, counts, logsumexp = (parts[n] for n in ("indices", "counts", "logsumexp"))
        dense = np.full((*logsumexp.shape, shape[-1]), FLOOR, np.float32)
        flat = dense.reshape(-1, shape[-1])
        row, place = np.nonzero(counts.reshape(-1, self.k))
        shares = np.log(np.arange(self.k + 1).clip(1) / self.k).astype(np.float32)
        classes = indices.reshape(-1, self.k)[row, place].astype(np.int64)
        flat[row, classes] = shares[counts.reshape(-1, self.k)[row, place]]
        dense += logsumexp[..., None]
        return dense

    def require(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> None:
        """CorruptShardError for stored classes, counts or sums that no draw gives."""
        indices, counts = parts["indices"], parts["counts"]
        used = counts > 0
        if indices.size and int(np.where(used, indices, 0).max()) >= shape[-1]:
            raise CorruptShardError(f"a stored class {indices.max()} is none of {shape[-1]}")
        rising = indices[..., 1:] > indices[..., :-1]
        sound = (
            (counts.sum(-1, dtype=np.int64) == self.k).all()
            and (used[..., :-1] >= used[..., 1:]).all()
            and (rising | ~used[..., 1:]).all()
            and np.isfinite(parts["logsumexp"]).all()
        )
        if not sound:
            raise CorruptShardError(
                f"stored counts, classes or a log-sum-exp are no {self.k} draws"
            )

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """Of one draw, not of the mean of many: KL and L1 as of topk, and the mass not drawn.

        Nearly all of the KL is that mass times the floor of 60 nats.
        """
        share = np.exp(decoded.astype(np.float64).reshape(-1, values.shape[-1]))
        flat = values.reshape(-1, values.shape[-1])
        missed = 0.0
        for some in blocks(flat):
            row = softmax(flat[some])
            none = share[some] < np.exp(row.total + FLOOR / 2)
            missed += float((np.where(none, row.weights, 0.0) / row.mass).sum())
        return {**divergence(values, decoded), "missed": missed / max(len(flat), 1)}


def uniforms(rows: Array, count: int) -> Array:
    """(n, count) float64 in [0, 1): each row's own, from nothing but its bytes.

    >>> uniforms(np.zeros((1, 3), "<f4"), 2).round(6).tolist()
    [[0.471666, 0.233793]]
    """
    seeds = np.array([xxhash.xxh3_64_intdigest(row) for row in rows], np.uint64)
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
    z = seeds[:, None] + steps  # modulo 2**64, as everything here
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)) * 2.0**-53)


def _tallied(drawn: Array) -> tuple[Array, Array]:
    """(n, k) draws to (n, k) rising distinct classes and their counts; unused places hold zeros."""
    drawn = np.sort(drawn, axis=-1)
    fresh = np.ones(drawn.shape, bool)
    fresh[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    place = fresh.cumsum(-1) - 1
    indices, counts = np.zeros_like(drawn), np.zeros_like(drawn)
    row = np.arange(len(drawn))[:, None]
    indices[row, place] = drawn
    np.add.at(counts, (row, place), 1)
    return indices, counts
