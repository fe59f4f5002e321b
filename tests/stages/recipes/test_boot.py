"""BOOT: the bootstrapped step is exact where the path is known, and nothing flows through its target."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.pipeline import LocalRunner
from stillroom.stages import Evaluation, Fit, FunctionTeacher, ModuleTeacher, Student, recipes
from stillroom.stages.proving import diffusion
from stillroom.stages.proving.models import untrained
from stillroom.stages.recipes.boot import bootstrap_error, bootstrapped, distance
from stillroom.stages.rounds import train_rounds
from stillroom.storage import Reader

quick = settings(deadline=None, max_examples=30)
MEAN, SPREAD = torch.tensor([0.5, -1.0], dtype=torch.float64), 0.4


def alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
    angle = (t * (torch.pi / 2))[:, None]
    return angle.cos(), angle.sin()


def gaussian(noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Of N(MEAN, SPREAD^2): the path's signal at t in closed form, and what the denoiser says there."""
    alpha, sigma = alpha_sigma(t)
    variance = (alpha * SPREAD) ** 2 + sigma**2
    path = MEAN + (variance.sqrt() - sigma) / alpha * noise
    point = alpha * path + sigma * noise
    said = MEAN + alpha * SPREAD**2 / variance * (point - alpha * MEAN)
    return path, said


def residual(delta: float) -> float:
    """Root mean squared error of one step from the exact path."""
    made = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 2, generator=made, dtype=torch.float64)
    t = 0.1 + 0.8 * torch.rand(4000, generator=made, dtype=torch.float64)
    path, said = gaussian(noise, t)
    exact, _ = gaussian(noise, t - delta)
    return distance(exact, bootstrapped(path, said, t, t - delta)).mean().sqrt().item()


def test_a_step_along_the_known_path_errs_by_the_square_of_its_length() -> None:
    errors = [residual(delta) for delta in (0.08, 0.04, 0.02, 0.01)]
    assert errors[0] < 0.05
    for large, small in pairwise(errors):
        assert 3 < large / small < 5


def test_the_path_begins_at_what_the_denoiser_says_of_noise_and_ends_at_data() -> None:
    noise = torch.randn(50, 2, dtype=torch.float64)
    near = torch.full((50,), 1 - 1e-6, dtype=torch.float64)
    path, said = gaussian(noise, near)
    torch.testing.assert_close(path, MEAN.expand(50, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(said, MEAN.expand(50, 2), rtol=0, atol=1e-4)
    start, _ = gaussian(noise, torch.full((50,), 1e-9, dtype=torch.float64))
    torch.testing.assert_close(start, MEAN + SPREAD * noise, rtol=0, atol=1e-6)


@quick
@given(seed=st.integers(0, 1000), t=st.floats(0.1, 0.95), share=st.floats(0.05, 0.95))
def test_a_step_is_that_of_ddim_in_the_point_itself(seed: int, t: float, share: float) -> None:
    """x_s = alpha_s f + sigma_s / sigma_t (x_t - alpha_t f), as DDIM has it."""
    made = torch.Generator().manual_seed(seed)
    noise, path, said = (torch.randn(5, 2, generator=made, dtype=torch.float64) for _ in range(3))
    now = torch.full((5,), t, dtype=torch.float64)
    then = now * share
    (a, b), (c, d) = alpha_sigma(now), alpha_sigma(then)
    point = a * path + b * noise
    moved = c * bootstrapped(path, said, now, then) + d * noise
    torch.testing.assert_close(moved, c * said + d / b * (point - a * said))


@quick
@given(seed=st.integers(0, 1000))
def test_it_stays_where_the_denoiser_agrees_and_where_no_time_passes(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    path, said = torch.randn(6, 3, generator=made), torch.randn(6, 3, generator=made)
    t = torch.rand(6, generator=made) * 0.8 + 0.1
    torch.testing.assert_close(bootstrapped(path, path, t, t / 2), path)
    torch.testing.assert_close(bootstrapped(path, said, t, t), path)
    assert distance(path, path).abs().max() == 0


def test_to_first_order_it_is_a_step_of_the_signals_differential_equation() -> None:
    path, said = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    t, delta = torch.tensor([0.4], dtype=torch.float64), 1e-5
    # lambda' of log tan(pi t / 2) is pi / sin(pi t)
    slope = torch.pi / (torch.pi * t).sin()
    moved = bootstrapped(path, said, t, t - delta).item()
    assert moved == pytest.approx(delta * slope.item(), rel=1e-4)


def test_no_gradient_flows_through_the_target() -> None:
    student, path, said, t, s = (
        torch.rand(*shape).requires_grad_() for shape in ((4, 2), (4, 2), (4, 2), (4,), (4,))
    )
    bootstrap_error(student, path, said, t, s).sum().backward()
    assert student.grad is not None
    assert [x.grad for x in (path, said, t, s)] == [None] * 4


def test_the_error_counts_by_the_length_of_the_step() -> None:
    student, path = torch.ones(1, 2), torch.zeros(1, 2)
    t = torch.tensor([0.5])
    found = bootstrap_error(student, path, path, t, t - 0.1)
    torch.testing.assert_close(found, torch.tensor([2 / 0.1**2]))
    image = bootstrap_error(torch.ones(1, 3, 2, 2), *(torch.zeros(1, 3, 2, 2),) * 2, t, t - 0.1)
    torch.testing.assert_close(image, torch.tensor([12 / 0.1**2]))


def test_a_path_without_its_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="boot: beta must be above 0, found 0"):
        recipes.find("boot", beta=0.0)


def test_the_rings_denoiser_is_the_posterior_mean() -> None:
    """Against the mean over many points of the data, weighted by how likely they make x."""
    points = diffusion.ring_points(200_000, np.random.default_rng(0)).astype(np.float64)
    t, x = 0.6, np.array([[0.3, 0.5], [-0.9, 0.1]], np.float32)
    alpha, sigma = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
    found = diffusion.denoised(x, np.full(2, t))
    for one, expected in zip(x, found, strict=True):
        weight = np.exp(-((one - alpha * points) ** 2).sum(1) / (2 * sigma**2))
        np.testing.assert_allclose(
            (weight[:, None] * points).sum(0) / weight.sum(), expected, atol=0.02
        )


def test_each_round_asks_about_what_its_student_begins_with(tmp_path: Path) -> None:
    rows = diffusion.ring_rows(12, 4, 0, 0, delta=0.08)
    begin = untrained(diffusion.generator, tmp_path / "begin.safetensors", seed=0)

    def teachers(number: int, weights: Path | None) -> list[object]:
        newest = ModuleTeacher(
            "student", diffusion.generator, weights, ("noise", "t"), {"path": ""}
        )
        signals = ("denoised", "boundary")
        asked = FunctionTeacher("denoiser", diffusion.asked, ("noise", "t", "path"), signals)
        return [newest, asked]

    found = train_rounds(
        Student(
            "boot",
            diffusion.generator,
            recipes.find("boot"),
            inputs=("noise", "s"),
            layers={"path": ""},
            fit=Fit(epochs=1, batch_size=6, schedule="constant"),
        ),
        2,
        rows=lambda number, weights: rows,
        teachers=teachers,  # type: ignore[arg-type]
        answers={"path": "student/path"},
        splits={"train": rows.keys.to_pylist()[:12], "test": rows.keys.to_pylist()[12:]},
        evaluation=Evaluation("test", diffusion.generated, ("point", "solved")),
        folder=tmp_path / "rounds",
        runner=LocalRunner(),
        start=begin,
    )
    batch = rows.read(np.arange(16), ["noise", "t"])
    paths = []
    for each in found:
        assert each.snapshot is not None
        said = Reader(each.snapshot, ["path", "denoised"]).gather(rows.keys)
        paths.append(np.asarray(said["path"]))
        again = diffusion.asked(batch["noise"], batch["t"], paths[-1])["denoised"]  # type: ignore[arg-type]
        np.testing.assert_allclose(np.asarray(said["denoised"]), again, atol=1e-6)
    assert np.abs(paths[0] - paths[1]).max() > 1e-4
