"""Audit of stored logits that are no longer dense: what of them the live answer can confirm or refute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.encodings.logits import log_softmax
from stillroom.storage.encodings.packed import Packed
from stillroom.storage.encodings.part import Encoding
from stillroom.storage.encodings.sampled import Sampled
from stillroom.storage.encodings.topk import TopK

Array = NDArray[Any]
Judged = tuple[float, float, str]
"""Deviation, what rounding can add to it, and in words where the deviation is no number."""
_IMPLAUSIBLE = -30.0
"""Log-probability below which draws are none of the live answer's: once in 10**13 rows."""


def sparse(coding: Encoding) -> bool:
    """Whether rows of this encoding hold some classes only."""
    return isinstance(coding, TopK | Sampled | Packed)


def judged(coding: Encoding, stored: Mapping[str, Array], live: Array) -> Judged:
    """Unpacked parts of one row beside its live logits (n, ..., classes)."""
    inner = coding.inner if isinstance(coding, Packed) else coding
    if stored["indices"].size == 0:
        return 0.0, 0.0, ""
    if stored["indices"].max() >= live.shape[-1]:
        return np.inf, 0.0, f"class {stored['indices'].max()} is none of {live.shape[-1]}"
    sums = _gap(log_sum_exp(live), stored["logsumexp"])
    if isinstance(coding, Packed):
        # Nearest float16, and the neighbour of it where the live sum is beside a rounding border.
        sums = max(sums - float(np.abs(stored["logsumexp"]).max()) * 2**-10 - 2**-24, 0.0)
    if isinstance(inner, Sampled):
        why = "" if draws_plausible(stored, live) else "its draws are not of the live distribution"
        return (np.inf if why else sums), 1e-6, why
    how = _steps(coding, stored, live) if isinstance(coding, Packed) else _nats(stored, live)
    deviation = max(sums, how[0])
    return deviation, how[1], "" if np.isfinite(deviation) else "NaN"


def log_sum_exp(live: Array) -> Array:
    """Along the last axis, in float64."""
    logits = live.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    return np.asarray((top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[..., 0])


def _gap(one: Array, other: Array) -> float:
    gap = float(np.abs(one - other.astype(np.float64)).max(initial=0.0))
    return np.inf if np.isnan(gap) else gap


def _nats(stored: Mapping[str, Array], live: Array) -> tuple[float, float]:
    """topk: how far log-probabilities and the choice of classes are off, in nats, and the rounding."""
    logp = np.maximum(log_softmax(live), float(np.finfo(np.float16).min))
    indices, values = stored["indices"].astype(np.int64), stored["values"].astype(np.float64)
    mine = np.take_along_axis(logp, indices, -1)
    k = indices.shape[-1]
    least = np.partition(logp, -k, axis=-1)[..., -k]
    gaps = [
        _gap(mine, values),
        float((least - mine.min(-1)).max()),  # a class that is not among the k largest
        _gap(np.maximum(1 - np.exp(mine).sum(-1), 0), stored["tail"]),
    ]
    return max(gaps), float(np.abs(values).max()) * 2**-10 + 1e-6


def _steps(coding: Packed, stored: Mapping[str, Array], live: Array) -> tuple[float, float]:
    """packed topk: the same of square roots of probabilities, in which steps are even.

    A logarithm that is off by x moves the square root by x / 2 at most, so what is allowed in nats is
    enough. Rounding is what the live answer loses itself, twice, and one step.
    """

    def gaps(parts: Mapping[str, Array]) -> float:
        mine = np.take_along_axis(root, parts["indices"].astype(np.int64), -1)
        tail = np.sqrt(np.maximum(1 - (mine**2).sum(-1), 0))
        values = np.exp(parts["values"].astype(np.float64) / 2)
        return max(_gap(mine, values), _gap(tail, np.sqrt(parts["tail"])))

    root = np.exp(log_softmax(live) / 2)
    k = stored["indices"].shape[-1]
    least = np.partition(root, -k, axis=-1)[..., -k]
    mine = np.take_along_axis(root, stored["indices"].astype(np.int64), -1)
    deviation = max(gaps(stored), float((least - mine.min(-1)).max()))
    return deviation, 2 * gaps(coding.encode(live)) + 1 / coding.levels


def draws_plausible(stored: Mapping[str, Array], live: Array) -> bool:
    """Whether stored counts can be draws from the live distribution.

    Other logits in the last bits are another seed, and so other draws; what remains is how probable
    these are. Chernoff's bounds say: the sum of -log p over k draws exceeds s with a probability of
    sum(sqrt(p))**k * exp(-s / 2) at most, at one position and, as a product, at all together; and a
    class of probability p is drawn c times of k, or further from the expected k p, with exp(-k D) at
    most, D being the divergence of the coin c / k from the coin p.
    """
    p = np.exp(log_softmax(live)).reshape(-1, live.shape[-1])
    drawn = stored["indices"].astype(np.int64).reshape(len(p), -1)
    counts = stored["counts"].astype(np.float64).reshape(len(p), -1)
    k = counts[0].sum()
    if (counts.sum(-1) != k).any():
        return False
    used = counts > 0
    with np.errstate(divide="ignore"):
        rare = np.log(np.where(used, np.take_along_axis(p, drawn, -1), 1.0))
    sums = k * np.log(np.sqrt(p).sum(-1)) + (counts * rare).sum(-1) / 2
    share = np.zeros_like(p)
    row, place = np.nonzero(used)
    share[row, drawn[row, place]] = counts[row, place] / k
    coins = np.log(p.size) - k * (_coin(share, p) + _coin(1 - share, 1 - p)).max()
    return bool(min(sums.min(), sums.sum(), coins) > _IMPLAUSIBLE)


def _coin(share: Array, p: Array) -> Array:
    """share * log(share / p), 0 where share is; infinite where p alone is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(share > 0, share * np.log(share / p), 0.0)
