"""A small detection data set and its teacher, for tests of rounds and of detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stillroom.stages import ArrayRows
from stillroom.stages.proving.detection import DetectorTeacher, detector
from stillroom.stages.proving.pulses import pulse_rows, pulses


def small_rows(number: int, weights: Path | None = None) -> ArrayRows:
    kinds = np.repeat(["labelled", "unlabelled", "test"], [4, 12, 6])
    return pulse_rows(pulses(22, np.random.default_rng(0)), kinds, 0, number, copies=2)


def averages(number: int, weights: Path | None) -> list[DetectorTeacher]:
    assert weights is not None
    return [DetectorTeacher("average", detector, weights, "weak", above=0.34)]


def untrained(folder: Path) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(detector().state_dict(), folder / "begun.safetensors")
    return folder / "begun.safetensors"
