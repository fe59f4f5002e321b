"""Dask graphs on Ray: the scheduler that computations over a whole cache take, made from a RayRunner.

`ray.util.dask` is kept alive by others more than developed (see docs/derive.md), so
graphs hold loader functions alone, and everything of it that is used is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stillroom.pipeline.ray_runner import RayRunner


@contextmanager
def dask_on_ray(runner: RayRunner) -> Iterator[Callable[..., Any]]:
    """A dask `get` whose tasks run on the runner's Ray: on this machine, or on its cluster.

    Ray is started when it is not up, and stays up until the block ends. Workers read the cache
    themselves, so it must lie where they reach it. What the work raises is raised as it is.
    RunnerError when Ray cannot be started.
    """
    session = runner._session
    ray, _ = session.enter(runner.address, runner._cpus(), runner.runtime_env)
    session.taken(runner.needs, ray, 0)  # idle workers would keep CPUs from tasks
    try:
        from ray.util.dask import ray_dask_get

        def get(graph: Any, keys: Any, **settings: Any) -> Any:
            settings.pop("num_workers", None)  # Ray's CPUs decide
            try:
                return ray_dask_get(graph, keys, **settings)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error

        yield get
    finally:
        session.leave()
