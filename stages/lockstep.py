"""Lockstep: a batch is gathered once, and every student of a group makes its step on it.

Each student has its own random numbers, which are put in place for its turn, so that what it becomes is
bit for bit what it would have become alone (on a CPU).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from stillroom.stages.fitting import TrainingError
from stillroom.stages.loading import Tensors
from stillroom.stages.streams import Int64s, Streams
from stillroom.stages.student_run import StudentRun
from stillroom.stages.student_work import StudentTask
from stillroom.stages.worker.asking import out_of_memory


class Training(Protocol):
    """What a worker does for one student."""

    def begin(self, task: StudentTask, streams: Streams) -> StudentRun:
        """Build it, or take it up where its checkpoint left it."""

    def end(self, task: StudentTask, run: StudentRun, seconds: float, together: int) -> Any:
        """Store what it leaves, and say it."""


class _Member:
    """A student of a group."""

    def __init__(self, task: StudentTask) -> None:
        self.task = task
        self.run: StudentRun | None = None
        self.error: Exception | None = None
        self.lacks_memory = ""
        """What was said when memory ran out in its turn."""
        self.said: dict[str, Any] | None = None
        self.random: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.seconds = 0.0
        self.overwrites = False
        """Whether it writes into the batches that it is given: then it is given copies."""

    @property
    def there(self) -> bool:
        """Whether it is still being trained."""
        return self.said is None and self.error is None and not self.lacks_memory

    @property
    def running(self) -> StudentRun:
        """Its run, which has begun."""
        assert self.run is not None
        return self.run


def train_in_lockstep(
    training: Training, tasks: Sequence[StudentTask], streams: Streams
) -> list[dict[str, Any]]:
    """Train students whose batches `streams` gives; what is said of each, in the order of their ends.

    Students that a checkpoint left behind the others catch up first. One that cannot be trained leaves
    the group and is said to have `failed`. One for which memory runs out beside others is trained alone
    when they have ended. Any other error is raised: before anything is trained where it shows that
    early, else when all others have ended.
    """
    said: list[dict[str, Any]] = []
    members = _trained(training, tasks, streams, said)
    for place, member in enumerate(members):
        if member.lacks_memory and len(tasks) > 1:
            _let_go()
            members[place] = _trained(training, [member.task], streams, said)[0]
    for member in members:
        if member.lacks_memory:
            said.append(_failed(member.task, _too_large(member)))
        elif isinstance(member.error, TrainingError):
            said.append(_failed(member.task, str(member.error)))
    _require_no_mistake(members)
    return said


def _require_no_mistake(members: Sequence[_Member]) -> None:
    """Raise the first error that is no word about a training."""
    for member in members:
        if member.error is not None and not isinstance(member.error, TrainingError):
            raise member.error


def _trained(
    training: Training,
    tasks: Sequence[StudentTask],
    streams: Streams,
    said: list[dict[str, Any]],
) -> list[_Member]:
    """Train a group until each has ended one way or the other; what those say that end well."""
    members = [_Member(task) for task in tasks]
    for member in members:
        with _turn(member):
            member.run = training.begin(member.task, streams)
    _require_no_mistake(members)  # before anything is trained
    while there := [member for member in members if member.there]:
        for member in there:
            if not member.running.goes_on:
                with _turn(member):
                    seconds = member.seconds
                    member.said = training.end(member.task, member.running, seconds, len(tasks))
                    said.append(member.said)
                member.run = None
        if there := [member for member in there if member.there]:
            behind = min(member.running.epochs for member in there)
            _epoch([m for m in there if m.running.epochs == behind], streams, behind + 1)
    return members


def _epoch(members: list[_Member], streams: Streams, number: int) -> None:
    """The same epoch of students that stand at the same one."""
    if len(members) == 1:  # nothing is shared
        (member,) = members
        with _turn(member):
            started = time.perf_counter()
            loss = member.running.fitting.epoch(number)
            member.running.epoch_done(loss, time.perf_counter() - started)
        return
    spent = {id(member): 0.0 for member in members}
    for member in members:
        with _turn(member):
            member.running.fitting.begin_epoch()
    gone, batches = 0, streams.epoch(number)
    while there := [member for member in members if member.there]:
        started = time.perf_counter()
        try:
            chosen, loaded = next(batches)
        except StopIteration:
            break
        except Exception as error:
            if not out_of_memory(error):
                raise
            for member in there:
                member.lacks_memory = _first_line(error)
                _leave(member)
            return
        loaded = _placed(loaded, there[0].running.fitting.learning.device)
        shared = (time.perf_counter() - started) / len(there)
        for member in there:
            started = time.perf_counter()
            loaded = _taken(member, loaded, streams, number, chosen, gone)
            member.seconds += shared
            spent[id(member)] += shared + time.perf_counter() - started
        gone += len(chosen)
    for member in members:
        if member.there:
            with _turn(member):
                run = member.running
                run.epoch_done(run.fitting.end_epoch(), spent[id(member)])


def _taken(
    member: _Member, loaded: Tensors, streams: Streams, number: int, chosen: Int64s, gone: int
) -> Tensors:
    """One student's step; the batch for the next one, made again where this one wrote into it."""
    versions = _versions(loaded)
    given = _copied(loaded) if member.overwrites else loaded
    with _turn(member):
        member.running.fitting.take_shared(given, number, chosen)
    if _versions(loaded) == versions:
        return loaded
    member.overwrites = True
    device = next(iter(t.device for t in loaded.values() if isinstance(t, torch.Tensor)))
    return _placed(streams.batch(number, chosen, gone), device)


@contextmanager
def _turn(member: _Member) -> Iterator[None]:
    """A student's own random numbers and its own clock; an error is kept, and the student left out."""
    started = time.perf_counter()
    if member.random is not None:
        _put_random(member.random)
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            # Without the error, whose frames hold on to all that lies in their memory.
            member.lacks_memory = _first_line(error)
        else:
            member.error = error
    finally:
        member.seconds += time.perf_counter() - started
        member.random = _random()
    if not member.there and member.said is None:
        _leave(member)


def _random() -> tuple[torch.Tensor, torch.Tensor | None]:
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None


def _put_random(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


def _placed(loaded: Tensors, device: torch.device) -> Tensors:
    """A batch on the device, once for all students of it."""
    if device.type == "cpu":
        return loaded
    return {n: t.to(device) if isinstance(t, torch.Tensor) else t for n, t in loaded.items()}


def _versions(loaded: Tensors) -> list[int]:
    """How often each tensor was written into, as torch counts it."""
    return [t._version for t in loaded.values() if isinstance(t, torch.Tensor)]


def _copied(loaded: Tensors) -> Tensors:
    return {n: t.clone() if isinstance(t, torch.Tensor) else t for n, t in loaded.items()}


def _leave(member: _Member) -> None:
    """A student that failed: its memory is for the others."""
    if member.run is not None:
        member.run.leave()
    member.run = None
    _let_go()


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _failed(task: StudentTask, why: str) -> dict[str, Any]:
    """`train` says it at the end."""
    return {"student": task.student.name, "seed": task.student.seed, "failed": why}


def _too_large(member: _Member) -> str:
    fit = member.task.student.fit
    half = fit.batch_size // 2
    steps = fit.accumulate * -(-fit.batch_size // max(half, 1))
    smaller = (
        f"smaller batches whose gradients make one step: Fit(batch_size={half}, accumulate={steps})"
    )
    instead = f"{smaller}; " if half else ""
    return (
        f"{member.task}: memory ran out, with no other student beside it, at batches of "
        f"{fit.batch_size} rows ({member.lacks_memory}). Take {instead}a lower precision; a smaller "
        "student; or a worker with more memory"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
