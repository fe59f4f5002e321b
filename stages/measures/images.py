"""Images: a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.stages.measures.needed import needed, shaped


def segmentation(
    tensors: Mapping[str, Any],
    *,
    logits: str = "student.logits",
    mask: str = "row.mask",
    ignored: int = 255,
) -> dict[str, Any]:
    """`miou` and pixel `accuracy` over all pixels of all rows together.

    Reads logits (n, classes, height, width) and mask (n, height, width) of whole numbers; pixels of the
    class `ignored` count nothing. `miou` is the mean over classes of TP / (TP + FP + FN), the Jaccard
    index, as PASCAL VOC defined it (Everingham et al. 2015): over the whole split, not image by image;
    a class that is neither in a mask nor an answer is left out of the mean.
    """
    metrics = needed("torchmetrics.functional.classification")
    answers = shaped(tensors, logits, 4, "(n, classes, height, width)")
    truth = shaped(tensors, mask, 3, "(n, height, width)").long()
    if answers.shape[-2:] != truth.shape[-2:]:
        raise ValueError(
            f"{logits} has {tuple(answers.shape[-2:])} pixels and {mask} {tuple(truth.shape[-2:])}; let "
            "the student answer in the mask's size"
        )
    choice, kept = answers.argmax(1), truth != ignored
    choice, truth = choice[kept], truth[kept]
    if not len(truth):
        raise ValueError(f"there is no pixel to measure: all of {mask} are {ignored}")
    count = answers.shape[1]
    return {
        "miou": metrics.multiclass_jaccard_index(choice, truth, count, average="macro").item(),
        "accuracy": (choice == truth).double().mean().item(),
    }
