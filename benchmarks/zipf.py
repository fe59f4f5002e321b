"""Answers like a language model's, drawn from a stated process: no model is at hand where this runs.

Token r of the vocabulary has the unigram probability u_r proportional to 1 / (r + 1): Zipf's law, with
ids in the order of frequency, as byte-pair vocabularies nearly are. The teacher's distribution at a
position is a draw of the Pitman-Yor process (Pitman and Yor 1997, the model of power-law language in
Teh 2006) around it: p = sum_j w_j [id_j], where id_j is drawn from u, w_j = b_j (1 - b_1) ...
(1 - b_(j-1)) and b_j is Beta(1 - d, t + j d); what 2,000 sticks leave is spread as u. So the mean of
all positions is exactly Zipf's law, and at d = 0.5, t = 0.7 fifty draws of a position hold 12
distinct tokens, as Anshumann et al. (arXiv 2503.16870) found, and 2% of its mass is outside the top 50.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 150_000
DISCOUNT, STRENGTH = 0.5, 0.7
_STICKS = 2_000


def zipf_logits(rows: int, classes: int = VOCABULARY, seed: int = 0) -> NDArray[np.float32]:
    """(rows, classes) float32 logits; log-sum-exps are normal around 15."""
    random = np.random.default_rng(seed)
    found = np.empty((rows, classes), np.float32)
    for row, p in zip(found, _distributions(random, rows, classes), strict=True):
        row[:] = np.log(p) + random.normal(15, 2)
    return found


def _distributions(
    random: np.random.Generator, rows: int, classes: int
) -> Iterator[NDArray[np.float64]]:
    unigram = 1 / np.arange(1.0, classes + 1)
    unigram /= unigram.sum()
    reach = np.cumsum(unigram)
    for _ in range(rows):
        share = random.beta(1 - DISCOUNT, STRENGTH + DISCOUNT * np.arange(1, _STICKS + 1))
        left = np.cumprod(1 - share)
        weights = share * np.concatenate([[1.0], left[:-1]])
        tokens = np.minimum(np.searchsorted(reach, random.random(_STICKS)), classes - 1)
        p = unigram * left[-1]
        np.add.at(p, tokens, weights)
        yield p
