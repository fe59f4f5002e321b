"""Detection: average precision of boxes, as COCO computes it (extra `detection`).

pycocotools is asked directly. torchmetrics' class calls the same code, and asks for torchvision besides,
which has to be built for the torch that is there.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from stillroom.stages.measures.needed import needed, shaped


def detection(
    tensors: Mapping[str, Any],
    *,
    boxes: str = "student.boxes",
    scores: str = "student.scores",
    truth: str = "row.boxes",
    labels: str = "row.classes",
    count: str = "row.count",
    above: float = 0.0,
) -> dict[str, Any]:
    """`map`, the mean average precision over overlaps (IoU) .50, .55, ..., .95; `map50` and `map75`.

    Reads boxes (n, m, 4) and truth (n, k, 4) as left, top, right, bottom in any one unit; scores
    (n, m, classes), the probability of each class without background; labels (n, k) of whole numbers;
    and count (n,), how many boxes a row has: the others fill it up and count nothing. A box is of its
    likeliest class and left out unless that has a score over `above`; at most 100 of a row count.

    Average precision is COCO's, over 101 points of recall, the mean over classes that occur (Lin et al.
    2014, arXiv:1405.0312). Where no row has a box, all are 0.
    """
    import numpy as np

    coco, evaluate = needed("pycocotools.coco", "detection"), needed("pycocotools.cocoeval")
    found = shaped(tensors, boxes, 3, "(n, m, 4)").double().numpy()
    sure, label = shaped(tensors, scores, 3, "(n, m, classes)").double().max(-1)
    true = shaped(tensors, truth, 3, "(n, k, 4)").double().numpy()
    wanted, there = tensors[labels].long().numpy(), tensors[count].long().numpy()
    if not there.any():
        return {"map": 0.0, "map50": 0.0, "map75": 0.0}
    answers = [
        {
            "image_id": int(row),
            "category_id": int(label[row, at]),
            "score": float(sure[row, at]),
            **_box(found[row, at]),
        }
        for row, at in zip(*np.nonzero(sure.numpy() > above), strict=True)
    ]
    objects = [
        {"image_id": row, "category_id": int(wanted[row, at]), "iscrowd": 0, **_box(true[row, at])}
        for row, n in enumerate(there)
        for at in range(n)
    ]
    images = [{"id": row} for row in range(len(found))]
    classes = [{"id": each} for each in range(int(max(wanted.max(), label.max())) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):  # it says what it does
        gold, said = coco.COCO(), coco.COCO()
        for held, listed in ((gold, objects), (said, answers)):
            each = [{"id": number, **one} for number, one in enumerate(listed, 1)]
            held.dataset = {"images": images, "categories": classes, "annotations": each}
            held.createIndex()
        judged = evaluate.COCOeval(gold, said, "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    every, half, strict = (max(float(value), 0.0) for value in judged.stats[:3])
    return {"map": every, "map50": half, "map75": strict}


def _box(corners: Any) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in corners)
    width, height = right - left, bottom - top
    return {"bbox": [left, top, width, height], "area": width * height}
