"""How steps are identified, planned, run and resumed: runners, steps, execution."""

from stillroom.pipeline.execute import act, execute, plan
from stillroom.pipeline.ray_runner import RayRunner, RunnerError
from stillroom.pipeline.runner import LocalRunner, Runner
from stillroom.pipeline.step import Preview, Run, Step

__all__ = [
    "LocalRunner",
    "Preview",
    "RayRunner",
    "Run",
    "Runner",
    "RunnerError",
    "Step",
    "act",
    "execute",
    "plan",
]
