"""How steps are identified, planned, run and resumed: runners, steps, plans."""

from stillroom.pipeline.ray_runner import RayRunner, RunnerError
from stillroom.pipeline.runner import LocalRunner, Runner

__all__ = ["LocalRunner", "RayRunner", "Runner", "RunnerError"]
