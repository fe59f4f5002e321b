"""Measures of proofs that are no plain accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillroom.stages.evaluating import classification

if TYPE_CHECKING:
    from torch import Tensor


def auc(score: Tensor, positive: Tensor) -> float:
    """The share of pairs of a marked and an unmarked row of which the marked has the larger score.

    The area under the ROC curve; equal scores count half. NaN where all rows are alike.

    >>> import torch
    >>> auc(torch.tensor([0.9, 0.4, 0.4]), torch.tensor([True, True, False]))
    0.75
    """
    marked, others = score[positive][:, None], score[~positive][None]
    return ((marked > others).double() + 0.5 * (marked == others).double()).mean().item()


def doubting(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`classification`, and of a kept head `ratio` how well low shares find the rows marked `wrong`."""
    found = classification(tensors)
    if "head.ratio" in tensors:
        found["auc"] = auc(-tensors["head.ratio"], tensors["row.wrong"] == 1)
    return found


def base_and_novel(tensors: Mapping[str, Any], *, base: int) -> dict[str, Any]:
    """Accuracy among the first `base` classes, among the others, each with the columns of its own
    classes alone, and their harmonic mean: base-to-novel generalisation of few-shot learning."""
    logits, label = tensors["student.logits"], tensors["row.label"]
    first = label < base
    near = (logits[first][:, :base].argmax(-1) == label[first]).double().mean().item()
    far = (logits[~first][:, base:].argmax(-1) + base == label[~first]).double().mean().item()
    return {"base": near, "novel": far, "harmonic": 2 * near * far / max(near + far, 1e-9)}
