"""Grouping: which students share batches, and into how many groups they are put for so many workers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from stillroom.stages.student import Student
from stillroom.stages.student_work import Group, StudentTask
from stillroom.storage.identity import digest

_ENOUGH = 1.1
"""Groups are split until the busiest worker has at most this times what it would have, were each
student by itself."""


def batches_of(student: Student) -> Hashable:
    """What decides the batches that a student is given: equal for those that can share them.

    Columns beside the student's inputs may differ; a group reads all that any of them wants.
    """
    recipe, fit = student.recipe, student.fit
    return (
        student.split,
        tuple((stream, student.beside[stream]) for stream in recipe.streams),
        frozenset(student.inputs),
        frozenset(student.reads),
        frozenset(student.signals.get(name, name) for name in recipe.parts),
        *(fit.batch_size, fit.views, student.order_seed),
        student.needs,
    )


def groups_of(
    tasks: Sequence[StudentTask], places: int, rows: Mapping[str, int], *, together: bool = True
) -> list[Group]:
    """As few groups as keep `places` workers busy, the costliest first.

    Whole groups where workers then have about the same to do. Else all students are laid in a row,
    those that share batches beside one another, and the row is cut into equal shares: that makes at most
    places - 1 more groups. `rows` are those of every split. Without `together` every student is a group.
    """
    if not together or not tasks:
        return [Group((task,)) for task in tasks]
    cost = {id(task): cost for task, cost in zip(tasks, _costs(tasks, places, rows), strict=True)}
    by_batches: dict[Hashable, list[StudentTask]] = {}
    for task in tasks:
        by_batches.setdefault(batches_of(task.student), []).append(task)

    def load(some: Sequence[StudentTask]) -> float:
        return sum(cost[id(task)] for task in some)

    found = sorted(by_batches.values(), key=load, reverse=True)
    apart = _busiest(list(cost.values()), places)
    if _busiest([load(some) for some in found], places) > _ENOUGH * apart:
        share, gone = sum(cost.values()) / places, 0.0
        cut: dict[tuple[int, int], list[StudentTask]] = {}
        for number, some in enumerate(found):
            for task in sorted(some, key=lambda task: cost[id(task)], reverse=True):
                middle = gone + cost[id(task)] / 2
                cut.setdefault((number, int(middle / share)), []).append(task)
                gone += cost[id(task)]
        found = sorted(cut.values(), key=load, reverse=True)
    return [Group(tuple(some)) for some in found]


def _busiest(loads: Sequence[float], places: int) -> float:
    """What the busiest worker does when each takes the costliest group that is left."""
    busy = [0.0] * max(places, 1)
    for load in sorted(loads, reverse=True):
        busy[busy.index(min(busy))] += load
    return max(busy)


def _costs(tasks: Sequence[StudentTask], places: int, rows: Mapping[str, int]) -> list[float]:
    """Rows that each student is shown in all its epochs, times its parameters where those differ."""
    found = []
    builds = {digest(task.identity["student"]["build"]): task.student for task in tasks}
    sizes: dict[str, float] = {}
    if places > 1 and len(builds) > 1:
        sizes = {name: _parameters(student) for name, student in builds.items()}
    for task in tasks:
        student = task.student
        recipe, epochs = student.recipe, student.fit.epochs
        shown = rows[student.split] * (1 + len(recipe.streams)) * (1 + len(recipe.passes)) * epochs
        found.append(shown * sizes.get(digest(task.identity["student"]["build"]), 1.0))
    return found


def _parameters(student: Student) -> float:
    """How many its module has, without making their memory; 1 where it cannot be built so."""
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return max(float(sum(p.numel() for p in student.build().parameters())), 1.0)
    except Exception:
        return 1.0
