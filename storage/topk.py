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

from stillroom.storage.errors import CorruptShardError, SignalError
from stillroom.storage.part import Array, Part

_FLOOR = -60.0
"""Log-probability of a tail that rounds to nothing: e**-60 is 9e-27, below float32's resolution."""


@dataclass(frozen=True)
class TopK:
    """The k largest entries along the last axis, with log-sum-exp and tail mass."""

    k: int

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Logits: floating point, at least k classes on the last axis, fewer than 2**32."""
        if dtype.kind != "f" or not shape:
            raise SignalError(
                f"signal {name!r} of {dtype} and row shape {shape} is no row of logits"
            )
        if not self.k <= shape[-1] < 2**32:
            raise SignalError(
                f"signal {name!r}: topk({self.k}) needs at least {self.k} and fewer than 2**32 "
                f"classes, found {shape[-1]}"
            )

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """indices, values, logsumexp and tail."""
        outer, classes = shape[:-1], shape[-1]
        return (
            Part("indices", (*outer, self.k), np.min_scalar_type(classes - 1).name),
            Part("values", (*outer, self.k), "float16"),
            Part("logsumexp", outer, "float32"),
            Part("tail", outer, "float32"),
        )

    def encode(self, values: Array) -> dict[str, Array]:
        """Order within the k is by falling value, ties by rising index, so bytes are reproducible.

        A logit of -inf is a class without probability. SignalError where logits are no distribution.
        """
        logits = values.astype(np.float64)
        top = logits.max(axis=-1, keepdims=True)
        if not (np.abs(top) < np.finfo(np.float32).max).all():
            raise SignalError(
                f"logits with NaN or a maximum of {np.abs(top).max()} have no softmax"
            )
        weights = np.exp(logits - top)
        mass = weights.sum(axis=-1, keepdims=True)
        total = top + np.log(mass)
        order = self._largest(logits.reshape(-1, logits.shape[-1]))
        order = order.reshape(*logits.shape[:-1], self.k)
        logp = np.take_along_axis(logits, order, -1) - total
        # Summed over what is left out: one minus the sum over the k would lose every small tail.
        np.put_along_axis(weights, order, 0.0, -1)
        tail = weights.sum(axis=-1) / mass[..., 0]
        return {
            "indices": order.astype(np.min_scalar_type(values.shape[-1] - 1)),
            "values": np.maximum(logp, np.finfo(np.float16).min).astype(np.float16),
            "logsumexp": total[..., 0].astype(np.float32),
            "tail": tail.astype(np.float32),
        }

    def _largest(self, logits: Array) -> Array:
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
            share = np.maximum(np.log(parts["tail"][..., None] / np.float32(rest)), _FLOOR)
        dense = np.broadcast_to(share, (len(indices), *shape)).astype(np.float32)
        np.put_along_axis(dense, indices, parts["values"].astype(np.float32), -1)
        return dense + logsumexp

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """Mean KL(teacher || decoded) in nats, and the mean difference of probabilities (L1)."""
        p, q = _log_softmax(values), _log_softmax(decoded)
        if p.size == 0:
            return {"kl": 0.0, "l1": 0.0}
        possible = p > -np.inf
        kl = (np.exp(p) * np.where(possible, np.where(possible, p, 0.0) - q, 0.0)).sum(-1)
        return {
            "kl": float(max(kl.mean(), 0.0)),
            "l1": float(np.abs(np.exp(p) - np.exp(q)).sum(-1).mean()),
        }


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
