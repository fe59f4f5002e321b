"""Evaluate: what a student answers on held-out rows, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Measure = Callable[[Mapping[str, Any]], dict[str, Any]]
"""All held-out rows' tensors by name (student.*, row.*, teacher.*) -> metrics as plain JSON."""

BINS = 10


@dataclass(frozen=True)
class Evaluation:
    """On which rows a student is measured, and how."""

    split: str
    measure: Measure
    """A module-level function, or a partial of one; `stages.measures` has more of them."""
    columns: tuple[str, ...] = ("label",)
    """Columns that it reads beside the student's inputs."""
    signals: tuple[str, ...] = ()
    """Cached signals that it compares with."""


def classification(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy, negative log-likelihood, calibration, and agreement with the teacher if it is there.

    Reads student.logits (n, classes), row.label (n,), and teacher.logits when given. `ece` is the
    expected calibration error over 10 equal bins of confidence (Guo et al. 2017, arXiv:1706.04599,
    equation 3); `agreement` is the share of rows with the teacher's first choice.
    """
    metrics = class_scores(tensors["student.logits"], tensors["row.label"].long())
    if "teacher.logits" in tensors:
        same = tensors["student.logits"].argmax(-1) == tensors["teacher.logits"].argmax(-1)
        metrics["agreement"] = same.double().mean().item()
    return metrics


def class_scores(logits: Tensor, label: Tensor) -> dict[str, Any]:
    """accuracy, nll, ece and the reliability bins of (n, classes) logits against (n,) labels."""
    logp = logits.double().log_softmax(-1)
    confidence, choice = logp.exp().max(-1)
    right = (choice == label).double()
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    reliability, ece = [], 0.0
    for b in sorted(set(bins.tolist())):
        inside = bins == b
        sure, true = confidence[inside].mean().item(), right[inside].mean().item()
        count = int(inside.sum())
        reliability.append({"confidence": sure, "accuracy": true, "count": count})
        ece += abs(sure - true) * count / len(label)
    return {
        "accuracy": right.mean().item(),
        "nll": -logp.gather(-1, label[:, None]).mean().item(),
        "ece": ece,
        "reliability": reliability,
    }
