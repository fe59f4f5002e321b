"""Classes: accuracy, calibration and F1 of one class for each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.stages.evaluating import classification
from stillroom.stages.measures.needed import needed


def classes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What `classification` says, number for number, and `f1`, `brier` and `mce`.

    Reads student.logits (n, classes) and row.label (n,) of whole numbers, teacher.logits when given.

    - `f1`: the mean over classes of 2 TP / (2 TP + FP + FN); a class that is neither a label nor an
      answer is left out of the mean.
    - `mce`: the largest gap between confidence and accuracy in any of 10 equal bins of confidence (Guo
      et al. 2017, arXiv:1706.04599, equation 5).
    - `brier`: the mean of the squared distance between the probabilities and the label as a vector of
      zeros and a one (Brier 1950), from 0 to 2.
    """
    import torch

    metrics = needed("torchmetrics.functional.classification")
    found = classification(tensors)
    probability = tensors["student.logits"].double().softmax(-1)
    label = tensors["row.label"].long()
    count = probability.shape[-1]
    truth = torch.nn.functional.one_hot(label, count)
    f1 = metrics.multiclass_f1_score(probability.argmax(-1), label, count, average="macro")
    brier = (probability - truth).square().sum(-1).mean()
    gaps = [abs(b["confidence"] - b["accuracy"]) for b in found["reliability"]]
    return {**found, "f1": f1.item(), "brier": brier.item(), "mce": max(gaps)}
