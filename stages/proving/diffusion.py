"""Diffusion for proofs: eight small Gaussians on a ring, whose denoiser is known exactly.

A point of the data is mixed with noise, alpha_t x + sigma_t noise, with alpha_t = cos(pi t / 2) and
sigma_t = sin(pi t / 2); times run from EARLIEST, nearly the data, to LATEST, nearly the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]
EARLIEST, LATEST = 0.02, 0.98
SPREAD = 0.08
_ANGLES = np.arange(8) * (2 * np.pi / 8)
RING = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
"""(8, 2): the means; each is as likely."""


def ring_points(count: int, numbers: np.random.Generator) -> Floats:
    """(count, 2) points of the data."""
    centres = RING[numbers.integers(len(RING), size=count)]
    return (centres + SPREAD * numbers.standard_normal((count, 2))).astype(np.float32)


def denoised(x: NDArray[Any], t: NDArray[Any]) -> Floats:
    """E[data | alpha_t data + sigma_t noise = x], in float64: x (n, 2), t (n,) -> (n, 2)."""
    alpha, sigma = (f(np.pi / 2 * t.astype(np.float64))[:, None] for f in (np.cos, np.sin))
    variance = (alpha * SPREAD) ** 2 + sigma**2
    gap = x.astype(np.float64)[:, None] - alpha[..., None] * RING
    score = -(gap**2).sum(axis=-1) / (2 * variance)
    likely = np.exp(score - score.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    means = RING + (alpha * SPREAD**2 / variance)[..., None] * gap
    found: Floats = (likely[..., None] * means).sum(axis=1).astype(np.float32)
    return found


def asked(noise: Floats, t: Floats, path: Floats) -> dict[str, Floats]:
    """What the denoiser says of the path's point at t, where a student says how far its signal is; and
    `boundary`, what it says of the noise alone."""
    return {"denoised": _on_path(noise, t, path), "boundary": _of_noise(noise)}


def solved(noise: Floats, steps: int = 200) -> dict[str, Floats]:
    """`solved` (n, 2): where the denoiser's deterministic path ends that begins at this noise (DDIM,
    Song et al. 2021, arXiv:2010.02502); and `boundary`, where it begins."""
    path = boundary = _of_noise(noise)
    for now, then in pairwise(np.linspace(LATEST, EARLIEST, steps + 1)):
        kept = np.tan(np.pi / 2 * then) / np.tan(np.pi / 2 * now)
        said = _on_path(noise, np.full(len(noise), now), path)
        path = ((1 - kept) * said + kept * path).astype(np.float32)
    return {"solved": path, "boundary": boundary}


def _of_noise(noise: Floats) -> Floats:
    return denoised(noise, np.full(len(noise), LATEST))


def _on_path(noise: Floats, t: NDArray[Any], path: Floats) -> Floats:
    alpha, sigma = np.cos(np.pi / 2 * t)[:, None], np.sin(np.pi / 2 * t)[:, None]
    return denoised(alpha * path + sigma * noise, t)


def ring_rows(train: int, test: int, seed: int, number: int, *, delta: float) -> ArrayRows:
    """Rows of noise and times, as a round needs them; those of the test are the same in every round.

    noise (2,), times t and s = t - delta, `first` and `end`, the earliest and the latest time. Test
    rows have `point`, a point of the data, and `solved`, the end of the denoiser's path.
    """
    numbers = np.random.default_rng([seed, number])
    noise, point, end = _held_out(test, seed)
    t = numbers.uniform(EARLIEST + delta, LATEST, train + test)
    nothing = np.zeros((train, 2))
    columns = {
        "noise": np.concatenate([numbers.standard_normal((train, 2)), noise]),
        "t": t,
        "s": t - delta,
        "first": np.full(train + test, EARLIEST),
        "end": np.full(train + test, LATEST),
        "point": np.concatenate([nothing, point]),
        "solved": np.concatenate([nothing, end]),
    }
    columns["s"][train:] = EARLIEST
    keys = [f"train-{i}" for i in range(train)] + [f"test-{i}" for i in range(test)]
    return ArrayRows(keys, **{name: column.astype(np.float32) for name, column in columns.items()})


@cache
def _held_out(count: int, seed: int) -> tuple[Floats, Floats, Floats]:
    numbers = np.random.default_rng([seed, 10**6])
    noise = numbers.standard_normal((count, 2)).astype(np.float32)
    return noise, ring_points(count, numbers), solved(noise)["solved"]


def generator(width: int = 128) -> nn.Module:
    """(noise (n, 2), time (n,)) -> (n, 2): three hidden layers."""
    import torch
    from torch import nn

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (4, width, width, width)
            layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
            self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

        def forward(self, noise: Tensor, time: Tensor) -> Tensor:
            told = torch.stack([time, (time * (np.pi / 2)).sin()], dim=1)
            made: Tensor = self.layers(torch.cat([noise, told], dim=1))
            return made

    return Generator()


def energy_distance(a: Any, b: Any) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of points (n, d) and (m, d): 0 for one distribution."""
    import torch

    a, b = torch.as_tensor(a), torch.as_tensor(b)
    across, left, right = (torch.cdist(x, y).mean() for x, y in ((a, b), (a, a), (b, b)))
    return float(2 * across - left - right)


def generated(tensors: Mapping[str, Any]) -> dict[str, float]:
    """`energy` distance of student.path to true points, row.point; mean squared `error` to row.solved."""
    made = tensors["student.path"]
    error = (made - tensors["row.solved"]).square().sum(-1).mean().item()
    return {"energy": energy_distance(made, tensors["row.point"]), "error": error}
