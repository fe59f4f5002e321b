"""A report of any run: as a step of its workflow, or of a folder that lies there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.pipeline.step import Result, Run
from stillroom.stages.student import Record
from stillroom.storage.cache import Cache
from stillroom.storage.errors import StillroomError, UnknownSignalError
from stillroom.storage.snapshot import Snapshot
from stillroom.workflows.reporting.gathering import gather, newest
from stillroom.workflows.reporting.held_out import (
    HeldOut,
    best_taught,
    shown_differing,
    teacher_reference,
)
from stillroom.workflows.reporting.writing import write_page
from stillroom.workflows.students import records_below, stopped_below, stopped_line

LookAt = Callable[[Run, Mapping[str, Result]], HeldOut]
"""Makes the held-out rows of a run from what the steps before have left."""
_DEPTH = 4


class SeveralCachesError(StillroomError, LookupError):
    """A run has more than one cache, and nothing says which one its students read."""


def report_run(
    run: Run,
    inputs: Mapping[str, Result],
    *,
    held_out: LookAt | None = None,
    title: str = "",
    dataset: str = "",
    page: str = "report.html",
    cache: str = "",
    main: str = "",
    better: Mapping[str, str] | None = None,
) -> Result:
    """The step that writes a run's page, beside it results.json, for the next page to compare with.

    In a workflow: `Step("report", report_run, {"title": "..."}, (students, teach))`. It takes the
    records that a step before it names (`records`, folders below the run's, as train gives them), or
    every record below the run's folder, and the cache named `cache`, or the only one there is. With
    `partial(report_run, held_out=function)` in its place the page also shows the rows on which the best
    student and its teacher differ most. `main` is the metric that the page is about; `better` says of
    metrics whose name does not tell whether "higher" or "lower" is better.
    """
    records = records_of(run.folder, inputs)
    found = cache_below(run.folder, cache)
    results = report(
        records,
        found,
        title=title or run.folder.resolve().name,
        dataset=dataset,
        held=None if held_out is None else held_out(run, inputs),
        main=main,
        better=better,
        stopped=stopped_lines(run.folder),
    )
    place = run.folder / page
    beside = write_page(results, place)
    return {"outputs": [_below(run, place), _below(run, beside)], "report": _below(run, place)}


def report(
    records: Sequence[Record],
    cache: Cache | None,
    *,
    title: str,
    dataset: str = "",
    held: HeldOut | None = None,
    references: Sequence[Mapping[str, Any]] = (),
    main: str = "",
    better: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    stopped: Sequence[str] = (),
) -> dict[str, Any]:
    """Gathered results with, where `held` is given, the teacher's line and the rows that differ.

    `references` are more lines of the table, as `gather` takes them; one with `what` "teacher" stands
    for the teacher, which is then not measured again. Raises what `gather` does.
    """
    known = dict(facts or {}) | ({"name": dataset} if dataset else {})
    lines = [dict(reference) for reference in references]
    given: dict[str, Any] = {"title": title, "main": main, "better": better}
    given |= {"environment": environment, "references": lines, "stopped": stopped}
    snapshot = None if cache is None else _snapshot_read(cache, records)
    if held is not None and snapshot is not None:
        known.setdefault("test_rows", len(held.keys))
        if not any(line.get("what") == "teacher" for line in lines):
            name = _teacher_of(snapshot, held)
            lines += [line] if (line := teacher_reference(held, snapshot, name)) else []
    results = gather(records, cache, dataset=known, **given)
    chosen = best_taught(records, results)
    if held is not None and snapshot is not None and chosen is not None:
        results["differing"] = [shown_differing(chosen, held, snapshot)]
    return results


def records_of(folder: Path, inputs: Mapping[str, Result]) -> list[Record]:
    """The records that steps name, or else the newest of each student and seed below the folder."""
    named = [place for result in inputs.values() for place in result.get("records") or ()]
    if named:
        return [Record.read(folder / str(place)) for place in dict.fromkeys(named)]
    return newest(records_below(folder))


def stopped_lines(folder: Path) -> list[str]:
    """A line for each student below the folder that a sweep stopped early."""
    return [stopped_line(stopped) for stopped in stopped_below(folder)]


def cache_below(folder: Path, named: str = "") -> Cache | None:
    """The cache of that name below a folder, or the only one; None where there is none.

    SeveralCachesError names them, NotACacheError says what is no cache.
    """
    if named:
        return Cache(folder / named)
    places = sorted(
        place.parent
        for depth in range(_DEPTH)
        for place in folder.glob("*/" * depth + "cache.json")
    )
    if len(places) > 1:
        names = ", ".join(str(place.relative_to(folder)) for place in places)
        raise SeveralCachesError(
            f"{folder} has several caches: {names}; say which one students read"
        )
    return Cache(places[0]) if places else None


def _snapshot_read(cache: Cache, records: Sequence[Record]) -> Snapshot | None:
    """The newest snapshot that a student read and that is still there, or the newest."""
    there = cache.snapshots()
    read = {n for r in records if (n := r.content.get("snapshot")) is not None} & set(there)
    number = max(read, default=max(there, default=None))
    return None if number is None else cache.snapshot(number)


def _teacher_of(snapshot: Snapshot, held: HeldOut) -> str:
    try:
        return snapshot.sources[snapshot.find(held.signal)[0]].teacher
    except UnknownSignalError:
        return "teacher"


def _below(run: Run, place: Path) -> str:
    """As a result names files: below the run's folder, where it lies there."""
    return str(place.relative_to(run.folder) if place.is_relative_to(run.folder) else place)
