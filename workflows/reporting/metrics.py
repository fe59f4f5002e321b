"""What is known of a metric by its name: whether more or less of it is better, and how it is spelled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stillroom.storage.errors import StillroomError
from stillroom.workflows.spelling import DASH, MINUS, NONE, decimals, finite, share

Better = Literal["higher", "lower", "unknown"]

_SHARES = {
    *("accuracy", "acc", "agreement", "precision", "recall", "f1", "hit", "hits", "fidelity"),
    *("iou", "miou", "map", "ap", "top1", "top3", "top5"),
}
_HIGHER = _SHARES | {
    *("auc", "auroc", "auprc", "r2", "bleu", "rouge", "chrf", "meteor", "mrr", "ndcg", "dice"),
    *("spearman", "pearson", "kendall", "correlation", "psnr", "ssim", "kappa", "mcc"),
}
_LOWER = {
    *("nll", "loss", "kl", "ece", "mce", "error", "err", "mse", "rmse", "mae", "perplexity", "ppl"),
    *("bits", "bpc", "bpb", "brier", "wer", "cer", "fid", "entropy", "divergence", "distance"),
    *("regret", "seconds", "latency", "forgetting"),
}
_FIRST = ("accuracy", "f1", "map", "miou", "recall", "agreement")
"""Which metric a page is about when nothing is said: the first of these that there is."""


class UnknownBetterError(StillroomError, ValueError):
    """A direction of a metric that is neither higher nor lower."""


@dataclass(frozen=True)
class Metric:
    """One number that evaluation gives of every student."""

    name: str
    better: Better
    """Which of two values is the better one; `unknown` where its name does not tell."""
    is_share: bool
    """Between 0 and 1, and shown in percent."""

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is, 0 where that is not known."""
        return {"higher": 1, "lower": -1, "unknown": 0}[self.better]

    @property
    def label(self) -> str:
        """Its name as a heading: ECE, NLL and the like in capitals."""
        return self.name.upper() if self.name in _CAPITALS else self.name.replace("_", " ")

    @property
    def points(self) -> float:
        """What a difference is multiplied with: percent points of a share."""
        return 100 if self.is_share else 1

    def spell(self, value: float | None) -> str:
        """A value: 95.1% of a share, about three figures otherwise; a dash where there is none."""
        if value is None or not finite(value):
            return NONE
        return share(value) if self.is_share else decimals(value, _places(value))

    def span(self, value: Mapping[str, float] | None) -> str:
        """The ends of an interval, to as many places as its mean."""
        if value is None:
            return NONE
        places = 1 if self.is_share else _places(value["mean"])
        ends = [decimals(value[end] * self.points, places) for end in ("low", "high")]
        # Two negative numbers with a dash between them are hard to read.
        return (" to " if MINUS in "".join(ends) else DASH).join(ends)

    def moved(self, difference: float) -> str:
        """A difference with its sign: +1.2 points of a share."""
        size = difference * self.points
        told = f"{size:+.{1 if self.is_share else _places(max(abs(size), 0.01))}f}".replace(
            "-", MINUS
        )
        return f"{told} points" if self.is_share else told


_CAPITALS = {*("ece", "nll", "kl", "mse", "rmse", "mae", "auc", "auroc", "wer", "cer", "mrr", "f1")}


def metric_of(name: str, better: Mapping[str, str] | None = None) -> Metric:
    """What its name says, or `better`, by name: "higher" or "lower".

    A name counts by its parts: `test_accuracy`, `recall@10` and `map50` are known. One whose parts
    disagree (`accuracy_loss`) is not. UnknownBetterError for another word than the two.
    """
    words = {part for part in re.split(r"[^a-z0-9]+", name.lower()) if part}
    parts = words | {part.rstrip("0123456789") for part in words}  # map50
    up, down = bool(parts & _HIGHER), bool(parts & _LOWER)
    is_share = bool(parts & _SHARES) and not down
    if better and name in better:
        said = better[name]
        if said not in ("higher", "lower"):
            raise UnknownBetterError(f"metric {name!r}: better is higher or lower, found {said!r}")
        return Metric(name, "higher" if said == "higher" else "lower", is_share)
    if up == down:
        return Metric(name, "unknown", False)
    return Metric(name, "higher" if up else "lower", is_share)


def main_of(metrics: Iterable[Metric], asked: str = "") -> Metric | None:
    """The metric that a page is about: that asked for, a usual one, or the first of known direction."""
    every = list(metrics)
    for name in (asked, *_FIRST):
        for metric in every:
            if metric.name == name:
                return metric
    known = [metric for metric in every if metric.sign]
    return next(iter((*known, *every)), None)


def metrics_json(metrics: Iterable[Metric]) -> dict[str, Any]:
    """By name, as a results file keeps them."""
    return {m.name: {"better": m.better, "share": m.is_share} for m in metrics}


def metrics_from(kept: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """The same, read again."""
    return [Metric(name, m["better"], bool(m["share"])) for name, m in kept.items()]


def _places(value: float) -> int:
    size = abs(value)
    return 4 if 0 < size < 0.01 else 3 if size < 10 else 2 if size < 100 else 1
