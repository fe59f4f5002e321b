"""Networks for proofs: small enough that five seeds take seconds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between, over flattened rows: `mlp(64, 32, 10)`."""
    from torch import nn

    layers: list[nn.Module] = [nn.Flatten()]
    for given, made in pairwise(sizes):
        layers += [nn.Linear(given, made), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trunk(*sizes: int) -> nn.Sequential:
    """`mlp` with ReLU behind its last layer too: a feature for heads to stand on."""
    from torch import nn

    return nn.Sequential(*mlp(*sizes), nn.ReLU())


def mlp_layers(*sizes: int) -> dict[str, str]:
    """Its output and its last hidden layer, (n, sizes[-2]), as `logits` and `feature`."""
    return {"logits": "", "feature": str(2 * (len(sizes) - 2))}


def untrained(build: Callable[[], nn.Module], file: Path, *, seed: int) -> Path:
    """The weights that a network begins with, stored: where the first of several rounds starts."""
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(build().state_dict(), file)
    return file


def prompted(given: int, width: int, *, seed: int) -> nn.Sequential:
    """Random features of flattened rows that never learn, behind an offset that does: a prompt."""
    import torch
    from torch import nn

    prompt, encoder = nn.Linear(given, given), nn.Linear(given, width)
    with torch.no_grad():
        prompt.weight.copy_(torch.eye(given))
        prompt.bias.zero_()
        encoder.weight.normal_(0, 1.6 / given**0.5, generator=torch.Generator().manual_seed(seed))
        encoder.bias.zero_()
    for fixed in (prompt.weight, *encoder.parameters()):
        fixed.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), prompt, encoder, nn.ReLU())
