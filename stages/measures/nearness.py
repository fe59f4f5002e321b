"""Nearness: whether what belongs together is found among the nearest vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.stages.measures.needed import needed, shaped


def retrieval(
    tensors: Mapping[str, Any],
    *,
    queries: str = "student.logits",
    gallery: str = "",
    group: str = "row.label",
    at: Sequence[int] = (1, 5, 10),
) -> dict[str, Any]:
    """`recall_at_K`: the share of rows that find one of their own among the K nearest by cosine.

    Reads `queries` (n, d). With a `gallery` (n, d), such as the texts of n images, a row's own is the
    gallery's row of the same place. Without one the other rows are searched, and a row's own are those
    of the same `group` (n,) (recall at K of Jegou et al. 2011, as metric learning reports it); rows that
    are alone in their group count nothing. A K that is larger than the number of rows searched is all
    of them.
    """
    import torch

    metrics = needed("torchmetrics.functional.retrieval")
    unit = torch.nn.functional.normalize
    mine = unit(shaped(tensors, queries, 2, "(n, d)").double(), dim=-1)
    rows, hits = len(mine), dict.fromkeys(at, 0.0)
    theirs = unit(shaped(tensors, gallery, 2, "(n, d)").double(), dim=-1) if gallery else mine
    belongs = None if gallery else shaped(tensors, group, 1, "(n,)")
    counted = 0
    for row in range(rows):
        near = theirs @ mine[row]
        if belongs is None:
            own = torch.arange(rows) == row
        else:
            others = torch.arange(rows) != row
            near, own = near[others], (belongs == belongs[row])[others]
        if not own.any():
            continue
        counted += 1
        for k in at:
            hits[k] += metrics.retrieval_hit_rate(near, own, top_k=min(k, len(near))).item()
    if not counted:
        raise ValueError(f"no row has another of its {group}; there is nothing to find")
    return {f"recall_at_{k}": found / counted for k, found in hits.items()}
