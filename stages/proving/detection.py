"""Detection for proofs, in one dimension: a detector, its teacher, average precision."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Batch
from stillroom.stages.objectives.boxes import iou, sides
from stillroom.stages.proving.pulses import CLASSES, LENGTH, Floats
from stillroom.stages.teachers.teacher import Answer
from stillroom.stages.teachers.weights import file_weights, load_state
from stillroom.storage.code import code_identity
from stillroom.storage.folder import Ask
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Values

if TYPE_CHECKING:
    from torch import Tensor, nn

WIDTHS = (0.09, 0.17)
"""Of candidates; pulses are 0.07 to 0.22 of a signal."""
DETECTION = np.dtype(
    [("box", "f4", (2,)), ("score", "f4"), ("label", "i2"), ("jitter", "f4", (2,))]
)
"""Of a teacher: where, how sure, what, and how far the box moves when it is jittered."""


def candidates() -> Floats:
    """(64, 2): two widths around every fourth point."""
    middles = (np.arange(LENGTH // 4) + 0.5) / (LENGTH // 4)
    grid = [(at - width / 2, at + width / 2) for at in middles for width in WIDTHS]
    return np.array(grid, np.float32)


def detector() -> nn.Module:
    """(n, 128) signals -> `scores` (n, 64, classes + 1), the background last, and `boxes` (n, 64, 2).

    Convolutions to a quarter of the length, and a head over five points inside each candidate;
    `moved(features, boxes)` are any boxes (n, m, 2), not only the candidates, as the head moves them.
    """
    import torch
    from torch import nn

    steps, wide = LENGTH // 4, 24

    def points(boxes: Tensor) -> Tensor:
        """(..., m, 5, steps) weights of linear interpolation at five points of each box."""
        at = boxes[..., :1] + sides(boxes) * torch.linspace(-0.1, 1.1, 5)
        at = (at * steps - 0.5).clamp(0, steps - 1)[..., None]
        return (1 - (at - torch.arange(steps)).abs()).clamp_min(0)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for given, made, size, step in ((1, 16, 7, 2), (16, wide, 5, 2), (wide, wide, 5, 1)):
                layers += [nn.Conv1d(given, made, size, step, size // 2), nn.ReLU()]
            self.features = nn.Sequential(*layers)
            self.inner = nn.Sequential(nn.Linear(5 * wide, 48), nn.ReLU())
            self.scores, self.moves = nn.Linear(48, CLASSES + 1), nn.Linear(48, 2)
            grid = torch.from_numpy(candidates())
            self.register_buffer("grid", grid, persistent=False)
            self.register_buffer("points", points(grid), persistent=False)

        def head(self, features: Tensor, boxes: Any, at: Any) -> tuple[Tensor, Tensor]:
            pooled = at.flatten(-3, -2) @ features.mT
            inner = self.inner(pooled.unflatten(-2, (-1, 5)).flatten(-2))
            return self.scores(inner), boxes + self.moves(inner) * sides(boxes)

        def moved(self, features: Tensor, boxes: Tensor) -> Tensor:
            return self.head(features, boxes, points(boxes))[1]

        def forward(self, signal: Tensor) -> dict[str, Tensor]:
            features = self.features(signal[:, None])
            scores, boxes = self.head(features, self.grid, self.points)
            return {"scores": scores, "boxes": boxes, "features": features}

    return Detector()


def best_of_each(scores: Tensor, boxes: Tensor, *, above: float) -> tuple[Tensor, Tensor, Tensor]:
    """(n, candidates): how sure of its likeliest class each is, that class, and whether it stays.

    It stays if it is surer than `above` and than all others that it overlaps by half (greedy
    suppression, whatever their classes).
    """
    share, label = scores.softmax(-1)[..., :-1].max(-1)
    stays, overlaps = share > above, iou(boxes, boxes) > 0.5
    order = share.argsort(dim=-1, descending=True, stable=True)
    rows = order.new_tensor(range(len(order)))
    for now in order.T:
        beaten = (
            overlaps[rows, now] & stays[rows, now][:, None] & (share < share[rows, now][:, None])
        )
        stays = stays & ~beaten
    return share, label, stays


@dataclass(frozen=True)
class DetectorTeacher:
    """A detector's boxes, how they bear jitter, and its background score of every candidate."""

    name: str
    build: Callable[[], nn.Module]
    weights: Path
    column: str
    """Of the signals that it sees."""
    above: float = 0.5
    """The score from which a box is kept."""
    times: int = 10
    """How often a box is jittered."""
    spread: float = 0.06
    """Standard deviation of a corner's jitter, in sides of the box."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Its column."""
        return (self.column,)

    def asks(self) -> Mapping[str, Ask]:
        """`boxes`, a ragged record, and `background` (candidates,)."""
        return {"boxes": Ask("raw", ""), "background": Ask("float16", "")}

    def identity(self) -> dict[str, Any]:
        """Weights, code, settings, torch's version."""
        return {
            "kind": "detector",
            "weights": file_weights(self.weights),
            "code": code_identity(self.build),
            "settings": [self.column, self.above, self.times, self.spread],
            "libraries": {"torch": importlib.metadata.version("torch").split("+")[0]},
        }

    def load(self) -> Answer:
        """The network in eval mode."""
        import torch

        network: Any = self.build().eval()
        network.load_state_dict(load_state(self.weights))
        # The same draws for every box, so that a row's answer hangs on no other row.
        drawn = np.random.default_rng(0).standard_normal((self.times, 2)).astype(np.float32)
        jitter = self.spread * torch.from_numpy(drawn)

        def answer(batch: Batch) -> Mapping[str, Values]:
            with torch.inference_mode():
                found = network(torch.as_tensor(batch[self.column]))
                scores, boxes = found["scores"], found["boxes"]
                share, label, stays = best_of_each(scores, boxes, above=self.above)
                kept, row = boxes[stays][:, None], stays.nonzero()[:, 0]
                moved = network.moved(found["features"][row], kept + jitter * sides(kept))
                records = np.zeros(len(row), DETECTION)
                apart = (moved - moved.mean(1, keepdim=True)).square().sum(1) / (self.times - 1)
                records["box"], records["jitter"] = kept[:, 0], apart.sqrt()
                records["score"], records["label"] = share[stays], label[stays]
                ends = np.concatenate([[0], stays.sum(1).cumsum(0).numpy()])
                background = scores.softmax(-1)[..., -1].numpy()
            return {"boxes": Ragged(records, ends), "background": background}

        return answer


def average_precision(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`ap50`, `ap75`: area under precision over recall at overlaps of .5 and .75, the mean over classes."""
    boxes, truth = tensors["student.boxes"], tensors["row.boxes"]
    share, label, stays = best_of_each(tensors["student.scores"], boxes, above=0.05)
    overlaps = iou(boxes, truth).numpy()
    there = np.arange(truth.shape[1]) < tensors["row.count"].numpy()[:, None]
    found = {}
    for name, least in (("ap50", 0.5), ("ap75", 0.75)):
        areas = []
        for one in range(CLASSES):
            wanted = there & (tensors["row.classes"].numpy() == one)
            rows, places = np.nonzero((stays & (label == one)).numpy())
            order = np.argsort(-share.numpy()[rows, places], kind="stable")
            hits, free = np.zeros(len(rows)), wanted.copy()
            for rank, at in enumerate(order):
                row = rows[at]
                fits = np.where(free[row], overlaps[row, places[at]], 0)
                hits[rank] = fits.max() >= least
                free[row, fits.argmax()] &= not hits[rank]
            areas.append(_area(hits, int(wanted.sum())))
        found[name] = float(np.mean(areas))
    return found


def _area(hits: NDArray[np.float64], wanted: int) -> float:
    """Under the curve of the best precision at each recall or a larger one."""
    if wanted == 0:
        return 0.0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * hits).sum() / wanted)


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's: the correlation of ranks, ties in order."""
    one, other = (np.argsort(np.argsort(v, kind="stable")) for v in (first, second))
    table: Any = np.corrcoef(np.stack([one, other]).astype(np.float64))
    return float(table[0, 1])
