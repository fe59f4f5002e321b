"""Pulses in noise: generated signals to detect intervals in, and weak and strong views of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows

LENGTH, CLASSES, MOST = 128, 2, 3
"""Points of a signal, classes of pulses, and the most pulses of one signal."""
Floats = NDArray[np.float32]


def pulses(count: int, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Signals with one to three pulses that do not touch: half a sine (0) or a ramp (1), in noise.

    `signal` (n, 128), `boxes` (n, 3, 2) in [0, 1], `classes` (n, 3), and how many there are, `count`.
    """
    signal = 0.25 * random.standard_normal((count, LENGTH))
    boxes, classes = np.zeros((count, MOST, 2)), np.zeros((count, MOST), np.int64)
    counts = random.integers(1, MOST + 1, count)
    places = (np.arange(LENGTH) + 0.5) / LENGTH
    for row, many in enumerate(counts):
        for pulse in range(many):
            # Each in a third of the signal of its own, so that they keep apart.
            width = random.uniform(0.07, 0.22)
            low = pulse / MOST + random.uniform(0.02, 1 / MOST - width - 0.02)
            kind, ahead = random.integers(CLASSES), random.random() < 0.5
            along = (places - low) / width
            shape = np.sin(np.pi * along) if kind == 0 else along if ahead else 1 - along
            inside = (along >= 0) & (along <= 1)
            signal[row] += random.uniform(0.8, 1.5) * np.where(inside, shape, 0)
            boxes[row, pulse], classes[row, pulse] = (low, low + width), kind
    return {
        "signal": signal.astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "classes": classes,
        "count": counts,
    }


def viewed(signals: Floats, random: np.random.Generator, *, strong: bool) -> tuple[Floats, Floats]:
    """A view of each signal, (n, 128), and its map (n, 2, 2) from the signal's places to the view's.

    Weak: one in two is flipped. Strong: also zoomed out to 0.8 to 1 of its length at a drawn place,
    louder or softer, noisier, and with one to three pieces of up to a tenth cut out.
    """
    n, places = len(signals), (np.arange(LENGTH) + 0.5) / LENGTH
    scale = random.uniform(0.8, 1.0, n) if strong else np.ones(n)
    move = random.uniform(0, 1, n) * (1 - scale)
    flip = random.random(n) < 0.5
    scale, move = np.where(flip, -scale, scale), np.where(flip, move + scale, move)
    seen = np.empty((n, LENGTH))
    for row in range(n):
        seen[row] = np.interp((places - move[row]) / scale[row], places, signals[row])
    if strong:
        seen = seen * random.uniform(0.7, 1.4, (n, 1)) + 0.1 * random.standard_normal((n, LENGTH))
        for row in range(n):
            for _ in range(random.integers(1, 4)):
                low = random.uniform(0, 1)
                seen[row][(places >= low) & (places <= low + random.uniform(0, 0.1))] = 0
    view = np.zeros((n, 2, 2))
    view[:, 0, 0], view[:, 0, 1], view[:, 1, 1] = scale, move, 1
    return seen.astype(np.float32), view.astype(np.float32)


def pulse_rows(
    drawn: Mapping[str, Any], kinds: NDArray[Any], seed: int, number: int, copies: int = 8
) -> ArrayRows:
    """A round's data set: new views of all that teaches, the rest as it is.

    `kinds` (n,) names each signal: "labelled", with `copies` strong views; "unlabelled", with one, and
    without its truth; "test". Columns: `weak` and `strong` with their maps `weak_view`, `strong_view`,
    and `boxes`, `classes`, `count`. Keys are KIND-NUMBER-COPY.
    """
    chosen = np.repeat(np.arange(len(kinds)), np.where(kinds == "labelled", copies, 1))
    kind, signal = kinds[chosen], drawn["signal"][chosen]
    random = np.random.default_rng([seed, number])
    columns: dict[str, Any] = {}
    for name in ("weak", "strong"):
        seen, view = viewed(signal, random, strong=name == "strong")
        plain = kind == "test"
        seen[plain], view[plain] = signal[plain], np.eye(2)
        columns |= {name: seen, f"{name}_view": view}
    counts = np.where(kind == "unlabelled", 0, drawn["count"][chosen])
    hidden = (np.arange(MOST) >= counts[:, None])[..., None]
    boxes = np.where(hidden, 0, drawn["boxes"][chosen])
    classes = np.where(hidden[..., 0], 0, drawn["classes"][chosen])
    copy = np.arange(len(chosen)) - np.searchsorted(chosen, chosen)
    keys = [f"{k}-{i:04d}-{c}" for k, i, c in zip(kind, chosen, copy, strict=True)]
    return ArrayRows(keys, boxes=boxes, classes=classes, count=counts, **columns)
