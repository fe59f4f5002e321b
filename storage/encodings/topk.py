"""topk(k): the k largest log-probabilities of each row of logits, their sum and what they leave out.

Stored: `indices` (unsigned), `values` (float16 log-probabilities, largest first), `logsumexp`
(float32, of all logits) and `tail` (float32 probability outside the k). Decoding gives dense
logits: exact to the stored precision for the k, and the tail spread evenly over the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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


@dataclass(frozen=True)
class Largest:
    """The k largest classes of n rows, in float64."""

    order: Array
    """(n, k) int64 classes: by falling logit, ties by rising class."""
    values: Array
    """(n, k) log-probabilities."""
    total: Array
    """(n,) log-sum-exp of all logits."""
    tail: Array
    """(n,) probability outside the k."""


@dataclass(frozen=True)
class TopK:
    """The k largest entries along the last axis, with log-sum-exp and tail mass."""

    k: int

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Logits: floating point, at least k classes on the last axis, fewer than 2**32."""
        check_logits(name, shape, dtype, f"topk({self.k})")
        if self.k > shape[-1]:
            raise SignalError(
                f"signal {name!r}: topk({self.k}) needs at least {self.k} classes, found {shape[-1]}"
            )

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """indices, values, logsumexp and tail."""
        outer, classes = shape[:-1], shape[-1]
        return (
            Part("indices", (*outer, self.k), class_dtype(classes).name),
            Part("values", (*outer, self.k), "float16"),
            Part("logsumexp", outer, "float32"),
            Part("tail", outer, "float32"),
        )

    def encode(self, values: Array) -> dict[str, Array]:
        """Order within the k is by falling value, ties by rising index, so bytes are reproducible.

        A logit of -inf is a class without probability. SignalError where logits are no distribution.
        """
        found = self.largest(values.reshape(-1, values.shape[-1]))
        outer = values.shape[:-1]
        least = np.finfo(np.float16).min
        return {
            "indices": found.order.astype(class_dtype(values.shape[-1])).reshape(*outer, self.k),
            "values": np.maximum(found.values, least).astype(np.float16).reshape(*outer, self.k),
            "logsumexp": found.total.astype(np.float32).reshape(outer),
            "tail": found.tail.astype(np.float32).reshape(outer),
        }

    def largest(self, logits: Array) -> Largest:
        """What is to be kept of (n, classes) logits, before it is rounded; SignalError as encode."""
        n = len(logits)
        found = Largest(
            np.empty((n, self.k), np.int64), np.empty((n, self.k)), np.empty(n), np.empty(n)
        )
        for some in blocks(logits):
            row = softmax(logits[some])
            order = self._order(row.logits)
            found.order[some] = order
            found.values[some] = np.take_along_axis(row.logits, order, -1) - row.total
            found.total[some] = row.total[:, 0]
            # Summed over what is left out: one minus the sum over the k would lose small tails.
            np.put_along_axis(row.weights, order, 0.0, -1)
            found.tail[some] = row.weights.sum(axis=-1) / row.mass[:, 0]
        return found

    def _order(self, logits: Array) -> Array:
        """(n, k) indices of the k largest: falling value, ties by rising index on any machine."""
        least = np.partition(logits, -self.k, axis=-1)[:, -self.k, None]
        chosen = logits >= least
        # argpartition alone would break ties at the k-th place differently on other processors.
        tied = np.flatnonzero(chosen.sum(-1) > self.k)
        if len(tied):
            above, equal = logits[tied] > least[tied], logits[tied] == least[tied]
            room = self.k - above.sum(-1, keepdims=True)
            chosen[tied] = above | (equal & (equal.cumsum(-1) <= room))
        indices = np.nonzero(chosen)[1].reshape(len(logits), self.k)
        falling = np.argsort(-np.take_along_axis(logits, indices, -1), axis=-1, kind="stable")
        return np.take_along_axis(indices, falling, -1)

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """Dense float32 logits (n, *shape)."""
        indices, logsumexp = parts["indices"].astype(np.int64), parts["logsumexp"][..., None]
        if indices.size and indices.max() >= shape[-1]:
            raise CorruptShardError(f"a stored class {indices.max()} is none of {shape[-1]}")
        finite = (np.isfinite(parts[name]).all() for name in ("values", "logsumexp", "tail"))
        if not all(finite) or (parts["tail"] < 0).any():
            raise CorruptShardError("a stored log-probability, log-sum-exp or tail cannot be")
        rest = max(shape[-1] - self.k, 1)
        with np.errstate(divide="ignore"):
            share = np.maximum(np.log(parts["tail"][..., None] / np.float32(rest)), FLOOR)
        dense = np.broadcast_to(share, (len(indices), *shape)).astype(np.float32)
        np.put_along_axis(dense, indices, parts["values"].astype(np.float32), -1)
        return dense + logsumexp

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """Mean KL(teacher || decoded) in nats, and the mean difference of probabilities (L1)."""
        return divergence(values, decoded)
