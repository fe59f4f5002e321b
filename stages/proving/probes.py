"""Linear probes: what can be read off frozen features by a line, from few labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.stages.data.rows import ArrayRows, Rows, find_rows
from stillroom.stages.evaluating import Evaluation
from stillroom.storage.keys import as_keys

if TYPE_CHECKING:
    from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(-2, 5))


def probe_accuracy(feature: Tensor, label: Tensor, few: Tensor) -> float:
    """Accuracy, on the other rows, of a ridge regression onto classes that was fitted to a few.

    Features are standardised by the few. The strength is the one of `STRENGTHS` with the smallest
    leave-one-out error among them (Golub, Heath and Wahba 1979), so the other rows decide nothing.

    Args:
        feature: (n, width) of all rows.
        label: (n,) classes from 0.
        few: (n,) bool, the labelled rows.
    """
    import torch

    classes = torch.nn.functional.one_hot(label.long()).double()
    x, y = feature.double(), classes[few]
    x, mean = (x - x[few].mean(0)) / x[few].std(0).clamp_min(1e-9), y.mean(0)
    gram, wanted = x[few].T @ x[few], x[few].T @ (y - mean)
    smallest, chosen = float("inf"), torch.zeros_like(wanted)
    for strength in STRENGTHS:
        inverse = torch.linalg.inv(gram + strength * torch.eye(len(gram), dtype=gram.dtype))
        error = y - mean - x[few] @ inverse @ wanted
        own = (x[few] @ inverse * x[few]).sum(1, keepdim=True) + 1 / len(y)
        if (left_out := (error / (1 - own)).square().sum().item()) < smallest:
            smallest, chosen = left_out, inverse @ wanted
    answer = (x[~few] @ chosen + mean).argmax(1)
    return (answer == label[~few]).double().mean().item()


def few_labelled(
    rows: Rows, splits: Mapping[str, Sequence[str]], *, each: int
) -> tuple[ArrayRows, dict[str, Sequence[str]]]:
    """Rows with a column `few`, which marks the first `each` of every class in the split `train`.

    The splits with `few`, those rows, and with them added to `test`, as probes are fitted to them.
    """
    whole: dict[str, Any] = dict(rows.read(np.arange(len(rows)), rows.columns))
    train = find_rows(rows, as_keys(splits["train"]))
    label, few = whole["label"][train], np.zeros(len(rows), bool)
    for one in np.unique(label):
        few[train[label == one][:each]] = True
    chosen = [key for key, marked in zip(splits["train"], few[train], strict=True) if marked]
    more = {"few": chosen, "test": [*splits["test"], *chosen]}
    return ArrayRows(rows.keys, **whole, few=few), {**splits, **more}


def probed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`accuracy` of a probe on `student.encoded` (n, 1 + tokens, width), the mean over tokens but the
    first."""
    feature = tensors["student.encoded"][:, 1:].mean(1)
    return {"accuracy": probe_accuracy(feature, tensors["row.label"], tensors["row.few"])}


PROBE = Evaluation("test", probed, columns=("label", "few"))
"""Of `few_labelled` rows."""
