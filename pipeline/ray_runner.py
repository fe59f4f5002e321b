"""RayRunner: a pool of Ray actors that build their work once; bounded in flight, retried elsewhere.

Small on purpose: placement, processes and transport are Ray's. ray.util.ActorPool loses the items
of an actor that dies, so the book of what is in flight is kept here.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class RunnerError(RuntimeError):
    """Ray could not be started, or an item's workers died again and again."""


@dataclass
class _Session:
    """Whether this runner started Ray, whether it should stay up, and workers without work."""

    held: bool = False
    started: bool = False
    idle: list[Any] = field(default_factory=list)

    def end(self) -> None:
        if self.started or self.idle:
            import ray

            if ray.is_initialized():
                for actor in self.idle:
                    ray.kill(actor)
                if self.started:
                    ray.shutdown()
        self.idle.clear()
        self.started = False


@dataclass(frozen=True)
class RayRunner:
    """Maps over Ray actors on this machine, or on the cluster at `address`.

    Nothing is started until the first item is there. A Ray that is already initialised is used as
    it is; one that this runner started is shut down when the map ends, or, inside `with runner:`,
    when that block ends. Starting Ray and importing torch in its workers takes seconds, so several
    maps should share a block: its worker processes stay, what they had built is dropped.
    """

    workers: int | None = None
    """Actors; None takes one for each CPU (GPU, when num_gpus is set) that Ray has."""
    num_cpus: float = 1
    """CPUs for each actor."""
    num_gpus: float = 0
    """GPUs for each actor; fractions share one."""
    address: str | None = None
    """A running cluster's address; None starts Ray here."""
    in_flight: int = 2
    """Items given to an actor at once: one in work and one waiting."""
    attempts: int = 3
    """How often an item is tried when its worker dies."""
    _session: _Session = field(default_factory=lambda: _Session(), repr=False, compare=False)

    def __enter__(self) -> Self:
        """Keep Ray up between maps."""
        self._session.held = True
        return self

    def __exit__(self, *raised: object) -> None:
        """Shut down the Ray that was started."""
        self._session.held = False
        self._session.end()

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Results as they are ready. Raises RunnerError, or what the work raised."""
        queue = iter(items)
        first = next(queue, None)
        if first is None:
            return
        ray = self._connect()
        pool = _Pool[Item, Result](self, ray, build)
        try:
            yield from pool.run(first, queue)
        finally:
            pool.close()
            if not self._session.held:
                self._session.end()

    def _connect(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray runs workers at niceness 15, so that beside anything else they starve.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # The present meaning of "no GPUs asked for"; without it every start prints a warning.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise RunnerError("ray is not installed; install it, or use LocalRunner()") from error
        if ray.is_initialized():
            return ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is not None:
            options["address"] = self.address
        else:
            options |= {"num_cpus": self._cpus(), "include_dashboard": False, "address": "local"}
        try:
            _require_open(self.address)
            with _import_paths():
                ray.init(**options)
        except Exception as error:
            where = f"at {self.address}" if self.address else "on this machine"
            raise RunnerError(
                f"Ray could not be started {where}: {error}. Check the address and that the cluster "
                "runs the same Ray and Python versions, or use LocalRunner(), which needs no Ray"
            ) from error
        self._session.started = True
        return ray

    def _cpus(self) -> int:
        here = len(os.sched_getaffinity(0))
        return max(here, ceil((self.workers or 1) * self.num_cpus))


@contextmanager
def _import_paths() -> Iterator[None]:
    """Workers that start inside can import what this process can, such as a workflow's neighbours."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _require_open(address: str | None) -> None:
    """Raise OSError at once where nothing answers: Ray itself would try again for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^/\[\]:]+):(\d{1,5})", address or "")
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=5).close()


def _size(runner: RayRunner, resources: dict[str, float]) -> int:
    """How many actors to start: as many as asked for, but no more than there is room for.

    RunnerError when there is no room for one: it would wait for ever.
    """
    room = [(r, resources.get(r, 0), n) for r, n in _needs(runner).items() if n > 0]
    for name, has, needed in room:
        if has < needed:
            raise RunnerError(
                f"a worker needs {needed:g} {name} and Ray has {has:g} in all; ask for fewer, or start "
                "Ray with more"
            )
    fitting = [int(has / needed) for name, has, needed in room]
    if runner.workers is None:
        # A GPU is what a worker waits for; CPUs are counted where none is asked for.
        return min(fitting, default=1)
    return max(min([runner.workers, *fitting]), 1)


def _needs(runner: RayRunner) -> dict[str, float]:
    return {"CPU": runner.num_cpus, "GPU": runner.num_gpus}


class _UnreadableWorkError(Exception):
    """The work could not be read in the worker: most often a module that it cannot import."""


class _Worker:
    """The actor: built once for each map, then asked again and again."""

    def __init__(self) -> None:
        self._made_from: Any = None
        self._work: Any = None
        self._failure: Exception | None = None

    def work(self, source: list[Any], item: Any) -> Any:
        """`source` holds the reference of the map's `build`, in a list so that Ray leaves it alone."""
        if self._made_from != source[0]:
            self.forget()
            self._made_from = source[0]
            try:
                self._work = _fetched(source[0])()
            except Exception as error:
                self._failure = error
        if self._failure is not None:
            raise self._failure
        return self._work(item)

    def forget(self) -> None:
        """Let go of what was built: a teacher's memory is wanted by what comes next."""
        self._made_from = self._work = self._failure = None


def _fetched(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except Exception as error:
        raise _UnreadableWorkError(str(error)) from error


@dataclass
class _Entry(Generic[Item]):
    """An item and how often it was tried."""

    item: Item
    attempts: int = 0
    """How often a worker died of it."""
    suspect: bool = False
    """Whether it was in the hands of a worker that died."""


@dataclass
class _Pool(Generic[Item, Result]):
    """Actors and what each of them has in hand."""

    runner: RayRunner
    ray: Any
    build: Callable[[], Callable[[Item], Result]]
    actors: list[Any] = field(default_factory=list)
    flying: dict[Any, tuple[_Entry[Item], Any]] = field(default_factory=dict)
    """In the order of submission, which is the order in which an actor works."""
    again: list[_Entry[Item]] = field(default_factory=list)

    def run(self, first: Item, queue: Iterator[Item]) -> Iterator[Result]:
        size = _size(self.runner, dict(self.ray.cluster_resources()))
        self.actors, self.runner._session.idle = self.runner._session.idle[:size], []
        # Put once: large arrays inside are shared by all workers of a node, not copied for each.
        shared = self.ray.put(self.build)
        waiting: list[Item] = [first]
        while True:
            self._fill(waiting, queue, size, shared)
            if not self.flying:
                return
            (ready,), _ = self.ray.wait(list(self.flying), num_returns=1)
            actor = self.flying[ready][1]
            try:
                yield self._taken(ready)
            except self.ray.exceptions.RayActorError as error:
                yield from self._lost(actor, error)

    def _taken(self, ready: Any) -> Result:
        """A finished item's result; what the work raised is raised as it is."""
        try:
            result: Result = self.ray.get(ready)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, _UnreadableWorkError):
                raise RunnerError(f"a worker could not be started: {error.cause}") from error
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        del self.flying[ready]
        return result

    def _fill(self, waiting: list[Item], queue: Iterator[Item], size: int, shared: Any) -> None:
        """Give every actor up to `in_flight` items, those of dead workers first.

        What may have killed a worker is tried alone, so that no other item is blamed for it.
        """
        while True:
            loads = {id(a): 0 for a in self.actors}
            for _, actor in self.flying.values():
                loads[id(actor)] += 1
            tried = {id(actor) for entry, actor in self.flying.values() if entry.suspect}
            free = [
                a
                for a in self.actors
                if loads[id(a)] < self.runner.in_flight and id(a) not in tried
            ]
            idle = [a for a in free if loads[id(a)] == 0]
            grow = not idle and len(self.actors) < size
            room = idle if self.again else free
            if not room and not grow:
                return
            entry = self._next(waiting, queue)
            if entry is None:
                return
            if grow:
                self.actors.append(self._start())
                target = self.actors[-1]
            else:
                target = min(room, key=lambda a: loads[id(a)])
            self.flying[target.work.remote([shared], entry.item)] = (entry, target)

    def _next(self, waiting: list[Item], queue: Iterator[Item]) -> _Entry[Item] | None:
        if self.again:
            return self.again.pop()
        if waiting:
            return _Entry(waiting.pop())
        for item in queue:
            return _Entry(item)
        return None

    def _start(self) -> Any:
        remote = self.ray.remote(num_cpus=self.runner.num_cpus, num_gpus=self.runner.num_gpus)
        return remote(_Worker).options(max_restarts=0).remote()

    def _lost(self, actor: Any, error: Exception) -> Iterator[Result]:
        """Forget a dead actor: what it had finished is given, the rest goes to another one.

        Only the first unfinished item was in work when the actor died and counts as tried.
        """
        self.actors = [a for a in self.actors if a is not actor]
        lost = []
        for ref in [ref for ref, (_, owner) in self.flying.items() if owner is actor]:
            entry = self.flying[ref][0]
            try:
                yield self._taken(ref)
            except self.ray.exceptions.RayActorError:
                del self.flying[ref]
                entry.suspect = True
                lost.append(entry)
        lost[0].attempts += 1
        if lost[0].attempts >= self.runner.attempts:
            raise RunnerError(
                f"{lost[0].item} was tried {lost[0].attempts} times and its worker died each time: "
                f"{error}. Most often the machine runs out of memory: use fewer workers or a smaller "
                "batch. What was finished is kept; run again to go on"
            ) from error
        self.again += reversed(lost)

    def close(self) -> None:
        """Give the workers back to the session, or end them; those still at work are ended."""
        busy = {id(actor) for _, actor in self.flying.values()}
        # Ray may be gone already, when a map was left half done and its `with` block ended.
        if self.ray.is_initialized():
            for actor in self.actors:
                if self.runner._session.held and id(actor) not in busy:
                    actor.forget.remote()
                    self.runner._session.idle.append(actor)
                else:
                    self.ray.kill(actor)
        self.actors = []
