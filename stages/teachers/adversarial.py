"""A snapshot of a student as a teacher whose answers are inputs: those that mislead it most."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.stages.data.row_hashes import hash_rows
from stillroom.stages.data.rows import Batch
from stillroom.stages.objectives.logits import cross_entropy
from stillroom.stages.teachers.arithmetic import arithmetic
from stillroom.stages.teachers.teacher import Answer
from stillroom.stages.teachers.weights import Weights, file_weights, load_state
from stillroom.stages.views.numbers import noise
from stillroom.storage.code import code_identity
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class AdversarialTeacher:
    """Answers each row with an adversarial input: projected gradient ascent on a module's loss.

    Such inputs belong to one state of a student, so they cannot be replayed as views are; they are a
    signal, and `with_signals` makes them a column for the teachers that label them.
    """

    name: str
    """Names the teacher's segments."""
    module: Callable[[], nn.Module]
    """A module-level function (or partial) that builds what is attacked; it runs in eval mode."""
    weights: Weights
    """Its state dict, such as the `weights` of a student's record."""
    given: Sequence[str] = ("image",)
    """Columns that the module takes, in this order; the first is attacked."""
    label: str = "label"
    """The column that the loss compares with."""
    epsilon: float = 8 / 255
    """The largest change of any one number (the l-infinity ball)."""
    step: float = 2 / 255
    """How far a number moves in one step."""
    steps: int = 10
    start: float = 0.001
    """Standard deviation of the noise that it starts with, which a row's own content draws."""
    low: float | None = 0.0
    """The smallest number of an input; None: any."""
    high: float | None = 1.0
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    """`loss(output, label)` of n rows, (n,), which is made as large as can be."""
    signal: str = "adversarial"
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named. Half floats leave the ball by their rounding."""
    device: str = "auto"
    """"auto" takes a GPU where the worker has one. Not part of the identity."""
    threads: int = 1

    def __post_init__(self) -> None:
        """ValueError for an attack that cannot be made."""
        if min(self.epsilon, self.step, self.start) < 0 or self.steps < 0 or not self.given:
            raise ValueError(
                f"teacher {self.name!r}: epsilon, step, steps and start are at least 0, and given names "
                f"a column; found {self.epsilon}, {self.step}, {self.steps}, {self.start}, {self.given}"
            )

    @property
    def inputs(self) -> Sequence[str]:
        """What the module takes, and the label."""
        return tuple(dict.fromkeys((*self.given, self.label)))

    def asks(self) -> Mapping[str, Ask]:
        """The one signal."""
        return {self.signal: Ask(self.encodings.get(self.signal, "raw"), "")}

    def _attack(self) -> dict[str, Any]:
        names = ("epsilon", "step", "steps", "low", "high")
        return {name: getattr(self, name) for name in names}

    def identity(self) -> dict[str, Any]:
        """The module's weights and code, the attack, and torch's version."""
        return {
            "kind": "adversarial",
            "weights": file_weights(self.weights),
            "code": code_identity(self.module),
            "given": list(self.given),
            "attack": {**self._attack(), "start": self.start, "loss": code_identity(self.loss)},
            "label": self.label,
            "libraries": {"torch": importlib.metadata.version("torch").split("+")[0]},
        }

    def load(self) -> Answer:
        """Build the module, load the weights, and place it."""
        import torch

        module = self.module()
        module.load_state_dict(load_state(self.weights))
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        module = module.to(device).eval().requires_grad_(False)

        def answer(batch: Batch) -> dict[str, Values]:
            clean = np.asarray(batch[self.given[0]])
            # From the row's content: a row that stays as it is is attacked from the same place,
            # whatever lies beside it in its batch.
            seeds = hash_rows({self.given[0]: clean}).view(np.uint64).reshape(-1, 2)[:, 0]
            drawn = noise(seeds, int(np.prod(clean.shape[1:]))).reshape(clean.shape)
            given = [torch.as_tensor(batch[name]).to(device) for name in self.given]
            beginning = given[0] + self.start * torch.from_numpy(drawn).to(device)
            label = torch.as_tensor(batch[self.label]).to(device)
            with arithmetic(self.threads, "highest", False):
                found = perturbed(
                    module, given, label, loss=self.loss, beginning=beginning, **self._attack()
                )
            return {self.signal: found.cpu().numpy()}

        return answer


def perturbed(
    module: Callable[..., Tensor],
    given: Sequence[Tensor],
    label: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    low: float | None = 0.0,
    high: float | None = 1.0,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    beginning: Tensor | None = None,
) -> Tensor:
    """Inputs near the first of `given` that make the loss large (PGD; Madry et al. 2018, arXiv:1706.06083).

        x <- clip(x + step sign(d loss / d x), x0 - epsilon, x0 + epsilon), then to [low, high]

    Args:
        module: takes `given`, tensors of n rows; the first is changed.
        label: (n,) what the loss compares with.
        beginning: where it starts; None: at the first of `given` itself.

    Returns:
        A tensor like the first of `given`, detached.
    """
    import torch

    clean, *others = given
    clean = clean.detach()
    least, most = clean - epsilon, clean + epsilon
    if low is not None:
        least = least.clamp_min(low)
    if high is not None:
        most = most.clamp_max(high)
    found = (clean if beginning is None else beginning).detach().clamp(least, most)
    for _ in range(steps):
        found.requires_grad_()
        with torch.enable_grad():
            total = loss(module(found, *others), label).sum()
            (slope,) = torch.autograd.grad(total, found)
        found = (found.detach() + step * slope.sign()).clamp(least, most)
    return found.detach()
