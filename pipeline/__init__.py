"""How steps are identified, planned, run and resumed: runners, steps, execution."""

from stillroom.pipeline.events import WorkerLost, WorkersAwaited, WorkersChanged
from stillroom.pipeline.execute import StepFound, act, execute, execute_step, plan
from stillroom.pipeline.ray_dask import dask_on_ray
from stillroom.pipeline.ray_runner import RayRunner
from stillroom.pipeline.runner import LocalRunner, Runner, RunnerError
from stillroom.pipeline.step import Preview, Run, Step
from stillroom.pipeline.stopping import Stop, Stopped, stopping

__all__ = [
    "LocalRunner",
    "Preview",
    "RayRunner",
    "Run",
    "Runner",
    "RunnerError",
    "Step",
    "StepFound",
    "Stop",
    "Stopped",
    "WorkerLost",
    "WorkersAwaited",
    "WorkersChanged",
    "act",
    "dask_on_ray",
    "execute",
    "execute_step",
    "plan",
    "stopping",
]
