"""What a workflow costs when nothing is to do: a hundred steps planned, rerun and drawn.

    python benchmarks/steps.py

Prints processor seconds, the least of five rounds, and each against writing the steps' records once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stillroom.pipeline import Run, Step, execute, plan
from stillroom.workflows.graph import graph_of

STEPS, ROUNDS = 100, 5


def scaled(value: int) -> int:
    return 2 * value


def work(run: Run, inputs: Mapping[str, Any], *, number: int) -> dict[str, Any]:
    return {"value": scaled(number), "of": sum(given["value"] for given in inputs.values())}


def chain(length: int) -> Step:
    """Each step needs the one before it."""
    last = Step("step-0", work, {"number": 0})
    for number in range(1, length):
        last = Step(f"step-{number}", work, {"number": number}, (last,))
    return last


def least(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Processor seconds of the quickest round."""
    seconds = []
    for _ in range(rounds):
        before = time.process_time()
        call()
        seconds.append(time.process_time() - before)
    return min(seconds)


def main() -> None:
    """Measure and print."""
    steps = [chain(STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        first = least(lambda: execute(steps, run), 1)
        for name, call in {
            "plan": lambda: list(plan(steps, run)),
            "rerun with nothing to do": lambda: execute(steps, run),
            "graph": lambda: graph_of(steps, run),
        }.items():
            seconds = least(call)
            print(
                f"{name}: {seconds:.3f} s for {STEPS} steps, {seconds / first:.2f} of the first run"
            )


if __name__ == "__main__":
    main()
