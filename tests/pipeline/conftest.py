"""A run in a folder of its own, and what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stillroom.pipeline import Run, Step, execute, plan
from stillroom.pipeline.execute import StepFinished, StepStarted


@dataclass
class Watch:
    """Executes and plans steps in one folder, and keeps the events of the last time."""

    folder: Path
    events: list[Any] = field(default_factory=list)

    @property
    def run(self) -> Run:
        return Run(self.folder, listen=self.events.append)

    def execute(self, *steps: Step) -> dict[str, Any]:
        self.events.clear()
        return execute(steps, self.run)

    def plan(self, *steps: Step) -> dict[str, str]:
        """Why each step would run, by name."""
        return {found.step: found.why for found in plan(steps, self.run)}

    @property
    def why(self) -> dict[str, str]:
        """Why each step that ran did so."""
        return {e.step: e.why for e in self.events if isinstance(e, StepStarted)}

    @property
    def fresh(self) -> list[str]:
        """Steps for which nothing had to be computed."""
        return [e.step for e in self.events if isinstance(e, StepFinished) and e.fresh]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path / "run")
