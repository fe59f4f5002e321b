"""Placing: groups of students on workers that have what they need, different needs at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

from stillroom.stages.grouping import groups_of
from stillroom.stages.mapper import Mapper, Placing
from stillroom.stages.needs import Needs
from stillroom.stages.student_work import Group, StudentTask, StudentWork


def placed_students(
    runner: Mapper, work: StudentWork, tasks: Sequence[StudentTask], *, together: bool = True
) -> Iterator[Mapping[str, Any]]:
    """What workers say of each student, group after group, as groups end.

    A group whose worker died is given to another one, where its students go on from their last
    checkpoints. When one map fails, those with other needs are still finished.
    """
    if not tasks:
        return
    rows = {name: len(keys) for name, keys in work.splits.items()}
    if not isinstance(runner, Placing):
        for said in runner.map(work, groups_of(tasks, 1, rows, together=together)):
            yield from said
        return
    by_needs: dict[Needs, list[StudentTask]] = {}
    for task in tasks:
        by_needs.setdefault(task.student.needs, []).append(task)
    with ExitStack() as stack:
        stack.enter_context(cast(Any, runner))  # Ray is started once for counting and for all maps
        maps = []
        # A Ray that is started here has CPUs for the workers of whom it is started for.
        for needs in sorted(by_needs, key=lambda needs: -(needs.cpus or 0)):
            mine = by_needs[needs]
            groups = _fitting_groups(runner, needs, mine, rows, together)
            largest = max(len(group.tasks) for group in groups)
            maps.append((_with_needs(runner, needs.times(largest)), groups))
        for said in _at_once(maps, work):
            yield from said


def _with_needs(runner: Placing, needs: Needs) -> Placing:
    return runner.needing(needs.cpus, needs.gpus, needs.memory_bytes)


def _fitting_groups(
    runner: Placing,
    needs: Needs,
    tasks: Sequence[StudentTask],
    rows: Mapping[str, int],
    together: bool,
) -> list[Group]:
    """Groups for as many workers as there is room for; more, and smaller ones, where the memory that
    all students of one need is more than a worker can have."""
    places = _with_needs(runner, needs).places()
    for count in range(min(max(places, 1), len(tasks)), len(tasks) + 1):
        groups = groups_of(tasks, count, rows, together=together)
        largest = max(len(group.tasks) for group in groups)
        alone = largest == 1 or not needs.memory_bytes
        if alone or _with_needs(runner, needs.times(largest)).places():
            break
    return groups


def _at_once(
    maps: Sequence[tuple[Mapper, Sequence[Group]]], work: StudentWork
) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The results of several maps as they are ready; an error is raised when all have ended."""
    if len(maps) == 1:
        yield from maps[0][0].map(work, maps[0][1])
        return
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    abandoned, ended = threading.Event(), object()

    def run(runner: Mapper, groups: Sequence[Group]) -> None:
        end: Any = ended
        try:
            for records in runner.map(work, groups):
                said.put(records)
                if abandoned.is_set():
                    break
        except BaseException as error:
            end = error
        said.put(end)

    # Daemons, so that a process whose user gives up can end while a group is still at work.
    threads = [threading.Thread(target=run, args=each, daemon=True) for each in maps]
    left, errors = len(threads), list[BaseException]()
    try:
        for thread in threads:
            thread.start()
        while left:
            given = said.get()
            if isinstance(given, BaseException):
                errors.append(given)
            elif given is not ended:
                yield given
                continue
            left -= 1
    finally:
        abandoned.set()
    if errors:
        raise errors[0]
