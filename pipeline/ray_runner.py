"""RayRunner: a pool of Ray actors that build their work once; bounded in flight, retried elsewhere.

Small on purpose: placement, processes and transport are Ray's, and so is the growing of a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Self

from stillroom.pipeline.events import ignore
from stillroom.pipeline.ray_needs import Needs, Size
from stillroom.pipeline.ray_pool import Pool
from stillroom.pipeline.ray_session import Session, Watch
from stillroom.pipeline.runner import Item, Result
from stillroom.pipeline.stopping import Stop, Until

_ANSWER_S = 15.0
"""What the head is given to say which nodes there are."""


@dataclass(frozen=True)
class RayRunner:
    """Maps over Ray actors on this machine, or on the cluster at `address`.

    Nothing is started until the first item is there. A Ray that is already initialised is used as
    it is; one that this runner started is shut down when the map ends, or, inside `with runner:`,
    when that block ends. Starting Ray and importing torch in its workers takes seconds, so several
    maps should share a block: its worker processes stay, what they had built is dropped.

    `dataclasses.replace(runner, num_gpus=0.5)` is a runner with other needs on the same connection
    and in the same block: one for each teacher. Their maps may run at the same time, in threads.

    An actor reads its own rows and writes its own shards, and starts no other Ray task, so a pool
    on every CPU does not wait for itself. It does leave nothing to other jobs: say `workers` then.
    """

    workers: int | tuple[int, int] | None = None
    """Actors. A number: that many, or as many as the cluster has room for, also when nodes join
    later. None: as many as it has room for. (least, most), for a cluster that grows: `most` are
    asked for while items wait, also of a cluster that has no node yet, and all but `least` are
    given back when none wait."""
    num_cpus: float = 1
    """CPUs for each actor."""
    num_gpus: float = 0
    """GPUs for each actor; fractions share one. Ray places by it, and caps no GPU memory."""
    address: str | None = None
    """A running cluster's address; None: the one that RAY_ADDRESS names, as it does inside
    `ray job submit`, else starts Ray here."""
    in_flight: int = 2
    """Items given to an actor at once: one in work and one waiting."""
    attempts: int = 3
    """How often an item is tried when its worker dies. Where its node left it is not to blame, up
    to ten times."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources for each actor, as nodes were started with them: {"a100": 1}."""
    memory_bytes: int = 0
    """Memory for each actor, counted by Ray to place it; 0 counts none."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the actor's node must have: {"ray.io/accelerator-type": "A100"}."""
    runtime_env: Mapping[str, Any] | None = None
    """What workers need beyond what their node has: Ray's runtime environment (pip, py_modules,
    working_dir, env_vars)."""
    worker_wait_s: float = 300
    """Seconds without a single worker after which the map ends with an error that says what is
    missing."""
    stop: Stop | None = field(default=None, repr=False, compare=False)
    """Once an end was asked for, workers finish the item in work and begin no other; a map that is
    not whole then raises Stopped."""
    listen: Callable[[Any], None] = field(default=ignore, repr=False, compare=False)
    """Hears WorkersChanged, WorkersAwaited and WorkerLost."""
    _session: Session = field(default_factory=Session, repr=False, compare=False)

    def __post_init__(self) -> None:
        """ValueError for sizes that cannot be."""
        if isinstance(self.workers, tuple):
            least, most = self.workers
            if not 0 <= least <= most or most < 1:
                raise ValueError(
                    f"workers=(least, most): {self.workers}; expected 0 <= least <= most"
                )

    def __enter__(self) -> Self:
        """Keep Ray up between maps."""
        self._session.held += 1
        return self

    def __exit__(self, *raised: object) -> None:
        """Shut down the Ray that was started."""
        self._session.held -= 1
        self._session.end_unless_needed()

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Results as they are ready. Raises RunnerError, or what the work raised.

        A module that a worker cannot import is a RunnerError that names it and the worker's node.
        `build` is sent once to each node, items and results go through this process: they should be
        small, and name large things by path.
        """
        queue = Until(items, self.stop)
        first = next(queue, None)
        if first is None:
            queue.require()
            return
        ray, head = self._session.enter(self.address, self._cpus(), self.runtime_env)
        pool = Pool[Item, Result](
            ray=ray,
            head=head,
            watch=Watch(ray),
            session=self._session,
            needs=self.needs,
            size=Size.of(self.workers),
            in_flight=self.in_flight,
            attempts=self.attempts,
            wait_s=self.worker_wait_s,
            runtime_env=None if self._session.started else self.runtime_env,
            listen=self.listen,
        )
        try:
            yield from pool.run(build, first, queue)
            queue.require()
        finally:
            pool.close()
            self._session.leave()
            if head.silent_s():
                self._session.end_unless_needed(lost=True)

    def needing(self, cpus: float | None, gpus: float | None, memory_bytes: int) -> Self:
        """The same runner for long items, each of which waits at no worker that has another in work.
        None and 0 leave what each worker has now."""
        return replace(
            self,
            num_cpus=self.num_cpus if cpus is None else cpus,
            num_gpus=self.num_gpus if gpus is None else gpus,
            memory_bytes=memory_bytes or self.memory_bytes,
            in_flight=1,
        )

    def places(self) -> int:
        """How many workers there is room for now, or may be in a cluster that grows; 0 where one does
        not fit. Starts Ray, so call it inside `with runner:`."""
        size = Size.of(self.workers)
        if size.grows:
            return int(size.most)
        ray, _ = self._session.enter(self.address, self._cpus(), self.runtime_env)
        watch = Watch(ray)
        try:
            watch.ask(_ANSWER_S)
            fitting = self.needs.fitting(watch.nodes)
        finally:
            watch.end()
            self._session.leave()
        return size.wanted(fitting, len(watch.nodes)) if fitting else 0

    @property
    def needs(self) -> Needs:
        """What one worker needs."""
        given = self.num_cpus, self.num_gpus, self.memory_bytes, self.resources, self.labels
        return Needs.of(*given)

    def _cpus(self) -> int:
        """CPUs of a Ray that is started here: logical ones, so at least what was asked for."""
        most = self.workers[1] if isinstance(self.workers, tuple) else self.workers
        return max(len(os.sched_getaffinity(0)), ceil((most or 1) * self.num_cpus))
