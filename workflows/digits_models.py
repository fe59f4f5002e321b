"""The demo's architectures, small enough for two cores: a teacher and two kinds of students.

torch is imported where a module is built, so that a run with nothing to do never loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

CNN_FEATURE = "11"
"""Name of the CNN's last layer before the classifier: 16 x width features a row."""
MLP_FEATURE = "2"
"""Name of the MLP's hidden layer: width features a row."""


def cnn(width: int, shift: int = 0) -> nn.Module:
    """Three convolutions and a linear classifier over (n, 1, 28, 28) float32 images in [0, 1].

    With `shift`, training images are moved by up to that many pixels at random.
    """
    from torch import nn

    def block(given: int, made: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(given, made, 3, stride, 1)
        return [convolution, nn.BatchNorm2d(made), nn.ReLU()]

    return nn.Sequential(
        _random_shift(shift),
        *block(1, width, 2),
        *block(width, 2 * width, 1),
        nn.MaxPool2d(2),
        *block(2 * width, 4 * width, 1),
        nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten()),
        nn.Linear(16 * width, 10),
    )


def mlp(width: int) -> nn.Module:
    """One hidden layer over flattened images."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def _random_shift(pixels: int) -> nn.Module:
    import torch
    from torch import nn

    class RandomShift(nn.Module):
        """Moves a training batch by up to `pixels` in each direction; does nothing in eval mode."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if not self.training or not pixels:
                return image
            down, right = torch.randint(-pixels, pixels + 1, (2,)).tolist()
            return image.roll((down, right), (2, 3))

    return RandomShift()
