"""What the benchmarks of teaching compare with: a plain forward loop, in this process or in two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.workflows.digits_models import CNN_FEATURE, MLP_FEATURE, cnn, mlp

if TYPE_CHECKING:
    import torch

BUILDS: dict[str, tuple[partial[Any], str]] = {
    "light": (partial(mlp, 256), MLP_FEATURE),
    "heavy": (partial(cnn, 20), CNN_FEATURE),
}
"""Builder of a teacher and the name of its feature layer."""


@dataclass
class BareLoop:
    """Builds the module once and runs it over rows, batch by batch; its answers stay in memory."""

    kind: str
    weights: Path
    image: NDArray[Any]
    batch_size: int
    threads: int

    def __post_init__(self) -> None:
        """Split the module at the feature layer, so that both answers come from one pass."""
        from safetensors.torch import load_file

        build, feature = BUILDS[self.kind]
        module = build()
        module.load_state_dict(load_file(self.weights))
        cut = int(feature) + 1
        self._body, self._head = module.eval()[:cut], module[cut:]

    def __call__(self, start: int, stop: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(feature, logits) of each batch of these rows."""
        import torch

        torch.set_num_threads(self.threads)
        answers = []
        with torch.inference_mode():
            for first in range(start, stop, self.batch_size):
                rows = self.image[first : min(first + self.batch_size, stop)]
                feature = self._body(torch.from_numpy(rows))
                answers.append((feature, self._head(feature)))
        return answers


_loops: list[BareLoop] = []


def _start(kind: str, weights: Path, image: Path, batch_size: int) -> None:
    _loops.append(BareLoop(kind, weights, np.load(image), batch_size, 1))
    _loops[0](0, batch_size)


def _run(bounds: tuple[int, int, float]) -> tuple[float, float]:
    start, stop, begin = bounds
    time.sleep(max(begin - time.monotonic(), 0))
    _loops[0](start, stop)
    return begin, time.monotonic()


class TwoProcesses:
    """Two processes of one thread, each with a loaded module and half of the rows."""

    def __init__(self, kind: str, weights: Path, image: Path, batch_size: int, rows: int) -> None:
        """Start and load them; that is not part of the time."""
        self._half, self._rows = -(-rows // 2), rows
        arguments = (kind, weights, image, batch_size)
        # One pool each: in a shared one, the first process could take both halves.
        self._pools: Sequence[Executor] = [
            ProcessPoolExecutor(1, get_context("spawn"), _start, arguments) for _ in range(2)
        ]
        self()

    def __call__(self) -> float:
        """Seconds from a common start until both have finished."""
        begin = time.monotonic() + 0.05  # by then both have their message
        halves = ((0, self._half), (self._half, self._rows))
        running = [p.submit(_run, (*h, begin)) for p, h in zip(self._pools, halves, strict=True)]
        return max(r.result()[1] for r in running) - begin

    def close(self) -> None:
        """End both."""
        for pool in self._pools:
            pool.shutdown()
