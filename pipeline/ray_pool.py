"""The pool of one map: its actors, what each has in hand, and what happens when they come and go.

ray.util.ActorPool loses the items of an actor that dies, so the book of what is in flight is kept
here. Actors that are asked for and have not come are what Ray's autoscaler reacts to.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic
from uuid import uuid4

from stillroom.pipeline.events import WorkersAwaited, WorkersChanged
from stillroom.pipeline.ray_losses import Entry, blamed, deaths
from stillroom.pipeline.ray_needs import Needs, Size
from stillroom.pipeline.ray_session import Head, Session, Watch
from stillroom.pipeline.ray_worker import (
    NotBegunError,
    UnreadableWorkError,
    Worker,
    drop_mark,
    put_mark,
)
from stillroom.pipeline.runner import Item, Result, RunnerError
from stillroom.pipeline.stopping import Until

_LOOK_S = 1.0
"""How often the head and the nodes are looked at."""
_HEAD_S = 15.0
"""The head may be silent for so long, as when it is restarted. Ray itself ends processes after 60."""
_SHORT_S = 3.0
"""Longer than workers take to start where there is room: then those who hold it and do nothing end."""
_SAY_S = 10.0
"""How often waiting for workers is mentioned."""


@dataclass
class Pool(Generic[Item, Result]):
    """Actors and what each of them has in hand."""

    ray: Any
    head: Head
    watch: Watch
    session: Session
    needs: Needs
    size: Size
    in_flight: int
    attempts: int
    wait_s: float
    runtime_env: Mapping[str, Any] | None
    listen: Callable[[Any], None]
    actors: list[Any] = field(default_factory=list)
    """Those that run."""
    places: dict[int, tuple[str, str]] = field(default_factory=dict)
    """The node of each that runs: its id, and its name for messages."""
    starting: dict[Any, Any] = field(default_factory=dict)
    """Those that were asked for, by the reference that is ready when they are."""
    flying: dict[Any, tuple[Entry[Item], Any]] = field(default_factory=dict)
    """In the order of submission, which is the order in which an actor works."""
    again: list[Entry[Item]] = field(default_factory=list)
    mark: str = ""
    """Workers begin no item once this is put; empty where nobody can ask for an end."""
    ended: bool = False
    waiting: deque[Entry[Item]] = field(default_factory=deque)
    drained: bool = False
    """Whether all items were drawn."""
    wanted: int = 0
    """Actors that the pool should have now."""
    failed_starts: int = 0
    alone_since: float = field(default_factory=time.monotonic)
    """Since when no actor runs."""
    short_since: float | None = None
    """Since when some that were asked for have not come."""
    looked: float = -inf
    said: float = field(default_factory=time.monotonic)

    def run(
        self, build: Callable[[], Callable[[Item], Result]], first: Item, queue: Until[Item]
    ) -> Iterator[Result]:
        """Results as they are ready."""
        self.waiting.append(Entry(first))
        self._look(at_start=True)
        for actor in self.session.taken(self.needs, self.ray, self.wanted):
            self.starting[actor.ready.remote()] = actor
        # Put once: large arrays inside are shared by all workers of a node, not copied for each.
        shared = self.ray.put(build)
        self.mark = f"stillroom-stop-{uuid4().hex}" if queue.stoppable else ""
        while True:
            if queue.asked:
                self._take_back(queue)
            if time.monotonic() - self.looked >= _LOOK_S:
                self._look()
            if self.head.unanswered_since is None:
                self._grow(queue)
                self._fill(queue, shared)
                self._shrink()
            if not self.flying and not self._peek(1, queue):
                return
            watched = [*self.flying, *self.starting]
            if not watched:
                time.sleep(_LOOK_S / 4)  # the head does not answer, and nothing is in work
                continue
            for ready in self.ray.wait(watched, num_returns=1, timeout=_LOOK_S)[0]:
                if ready in self.starting:
                    self._came(ready)
                    continue
                actor = self.flying[ready][1]
                try:
                    yield self._taken(ready)
                except NotBegunError:
                    del self.flying[ready]
                    queue.give_back()
                except self._deaths as error:
                    yield from self._lost(actor, error, queue)

    @property
    def _deaths(self) -> tuple[type[Exception], ...]:
        return deaths(self.ray)

    def _taken(self, ready: Any) -> Result:
        """A finished item's result; what the work raised is raised as it is."""
        try:
            result: Result = self.ray.get(ready)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, self._deaths):
                raise error.cause from error  # the worker lost something, not the work
            if isinstance(error.cause, UnreadableWorkError):
                raise RunnerError(str(error.cause)) from error
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        del self.flying[ready]
        return result

    # How many actors

    def _look(self, *, at_start: bool = False) -> None:
        """Whether the head answers, what the cluster has, and whether that is waited for too long."""
        self.looked = time.monotonic()
        if not self.head.answers():
            if self.head.silent_s() > _HEAD_S:
                raise RunnerError(
                    f"the head of the Ray cluster at {self.head.address} has not answered for "
                    f"{self.head.silent_s():.0f} s; Ray cannot go on without it. What was finished is "
                    "kept: start the cluster again and run again to go on"
                )
            return
        if not self.watch.ask(_HEAD_S if at_start else 0) and at_start:
            raise RunnerError(
                f"the head of the Ray cluster at {self.head.address} takes connections and does not "
                "answer; start the cluster again"
            )
        nodes = self.watch.nodes
        fitting = self.needs.fitting(nodes)
        if at_start and not fitting and not self.size.grows:
            raise RunnerError(
                f"{self.needs.lacking(nodes, {})}. Ask for less, or start Ray with more; for a cluster "
                "that grows when it is asked, say workers=(0, N)"
            )
        alive = sum(bool(node["Alive"]) for node in nodes)
        self.wanted = self.size.wanted(fitting, alive)
        self.short_since = (self.short_since or self.looked) if self.starting else None
        if self.short_since and self.looked - self.short_since > _SHORT_S:
            self.session.end_idle(self.ray)
        if self.actors:
            self.alone_since = time.monotonic()
        alone = time.monotonic() - self.alone_since
        if alone > min(_SAY_S, self.wait_s) and self.looked - self.said > min(_SAY_S, self.wait_s):
            self.said = self.looked
            why = self.needs.lacking(nodes, self.watch.free)
            if alone >= self.wait_s:
                raise RunnerError(
                    f"no worker came within {self.wait_s:g} s: {why}. Free it, add a node that has it, "
                    "ask for less, or wait longer (worker_wait_s)"
                )
            self.listen(WorkersAwaited(why, alone))

    def _grow(self, queue: Until[Item]) -> None:
        """Ask for actors while more items wait than there are actors without work."""
        loads = self._loads()
        idle = sum(not loads[id(actor)] for actor in self.actors)
        while len(self.actors) + len(self.starting) < self.wanted and self._peek(
            len(self.starting) + idle + 1, queue
        ):
            options = {**self.needs.options(), "max_restarts": 0}
            if self.runtime_env:
                options["runtime_env"] = dict(self.runtime_env)
            actor = self.ray.remote(Worker).options(**options).remote()
            self.starting[actor.ready.remote()] = actor

    def _came(self, ready: Any) -> None:
        """An actor that was asked for runs, or cannot."""
        actor = self.starting.pop(ready)
        try:
            self.places[id(actor)] = self.ray.get(ready)
        except Exception as error:
            self.failed_starts += 1
            forever = isinstance(
                error,
                self.ray.exceptions.RuntimeEnvSetupError
                | self.ray.exceptions.ActorUnschedulableError,
            )
            if forever or (self.failed_starts >= self.attempts and not self.actors):
                raise RunnerError(
                    f"a worker could not be started: {error}. Every node needs the same Python and Ray, "
                    "and stillroom; what else it lacks can be shipped with runtime_env"
                ) from error
            return
        self.failed_starts = 0
        self.actors.append(actor)
        self._say()

    def _shrink(self) -> None:
        """When all items are drawn, take back what was asked for more, and give idle actors back."""
        if not self.drained:
            return
        surplus = len(self.starting) - len(self.waiting) - len(self.again)
        for ready in list(self.starting)[::-1][: max(surplus, 0)]:
            self.ray.kill(self.starting.pop(ready))
        if not self.size.grows or self.waiting or self.again:
            return
        loads = self._loads()
        for actor in [a for a in self.actors if not loads[id(a)]]:
            if len(self.actors) <= self.size.least:
                break
            self.actors = [a for a in self.actors if a is not actor]
            self.ray.kill(actor)
            self._say()

    # Who does what

    def _loads(self) -> Counter[int]:
        return Counter(id(actor) for _, actor in self.flying.values())

    def _fill(self, queue: Until[Item], shared: Any) -> None:
        """Give every actor up to `in_flight` items, those of dead workers first.

        What may have killed a worker is tried alone, so that no other item is blamed for it. An
        actor that is about to come finds an item: nobody gets a second one that it could have had.
        """
        loads = self._loads()
        tried = {id(actor) for entry, actor in self.flying.values() if entry.suspect}
        while True:
            free = [a for a in self.actors if loads[id(a)] < self.in_flight and id(a) not in tried]
            room = [a for a in free if not loads[id(a)]]
            if not room and free and not self.again:
                room = free if self._peek(len(self.starting) + 1, queue) else []
            if not room or not self._peek(1, queue):
                return
            entry = self.again.pop() if self.again else self.waiting.popleft()
            target = min(room, key=lambda a: loads[id(a)])
            loads[id(target)] += 1
            if entry.suspect:
                tried.add(id(target))
            self.flying[target.work.remote([shared, self.mark], entry.item)] = (entry, target)

    def _peek(self, count: int, queue: Until[Item]) -> bool:
        """Whether so many items wait; draws no more than that."""
        while not self.drained and len(self.again) + len(self.waiting) < count:
            try:
                self.waiting.append(Entry(next(queue)))
            except StopIteration:
                self.drained = True
        return len(self.again) + len(self.waiting) >= count

    def _take_back(self, queue: Until[Item]) -> None:
        """An end was asked for: what no worker began is not done. Items that wait at an actor cannot be
        cancelled (Ray would only drop their results), so workers look for a mark before each."""
        queue.give_back(len(self.again) + len(self.waiting))
        self.again.clear()
        self.waiting.clear()
        if not self.drained:
            self.drained = True
            next(queue, None)  # notes whether items were left
        if not self.ended:
            self.ended = True
            put_mark(self.mark)

    # Deaths

    def _lost(self, actor: Any, error: Exception, queue: Until[Item]) -> Iterator[Result]:
        """Forget a dead actor: what it had finished is given, the rest goes to another one.

        Only the first unfinished item was in work when the actor died and counts as tried.
        """
        self.actors = [a for a in self.actors if a is not actor]
        # One that is only out of reach would go on, and its other items would wait for it.
        self.ray.kill(actor)
        node = self.places.pop(id(actor), ("", "an unknown node"))
        lost = []
        for ref in [ref for ref, (_, owner) in self.flying.items() if owner is actor]:
            entry = self.flying[ref][0]
            try:
                if self.ray.wait([ref], timeout=10)[0]:
                    yield self._taken(ref)
                    continue
            except NotBegunError:
                del self.flying[ref]
                queue.give_back()
                continue
            except self._deaths:
                pass
            del self.flying[ref]
            entry.suspect = True
            lost.append(entry)
        if not lost:
            return  # everything had been answered
        self.listen(blamed(lost[0], error, node, self.attempts, self.ray, self.watch.nodes))
        self.again += reversed(lost)
        self._say()

    def _say(self) -> None:
        self.listen(WorkersChanged(len(self.actors), len(self.starting)))

    def close(self) -> None:
        """Give the workers back to the session, or end them; those still at work are ended."""
        # Ray may be gone already, when a map was left half done and its `with` block ended.
        if self.ray.is_initialized():
            self.watch.end()
            if self.ended and self.head.unanswered_since is None:
                drop_mark(self.mark)
            loads, kept = self._loads(), 0
            for actor in self.actors:
                keep = self.session.held and not loads[id(actor)] and kept < self.size.least
                if keep and self.head.unanswered_since is None:
                    kept += 1
                    actor.forget.remote()
                    self.session.idle.append((self.needs, actor))
                else:
                    self.ray.kill(actor)
            for actor in self.starting.values():
                self.ray.kill(actor)
        self.actors, self.starting = [], {}
