"""What the page shows of runs' folders: their caches, students, files, and what a run is doing now.

Only folders that are in the ledger are looked into, and what a browser asks for is never a path of this
machine: a cache has a short name, and a file is looked up below its run's folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.stages.student import Record
from stillroom.storage.cache import Cache
from stillroom.storage.errors import GARBLED, StillroomError
from stillroom.workflows.inspecting import describe_cache
from stillroom.workflows.schedules.ledger import RUNNING, WAITING, Run, StepRun, printed, runs
from stillroom.workflows.schedules.state import State
from stillroom.workflows.students import summary
from stillroom.workflows.verified import verified_of

_DEPTH = 4
"""Folders below a run's own in which caches and students are looked for."""
_TAIL_BYTES = 32_768
SHOWN = {
    ".css": "text/css",
    ".csv": "text/plain",
    ".gif": "image/gif",
    ".htm": "text/html",
    ".html": "text/html",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".md": "text/plain",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".webp": "image/webp",
}
"""Media types of the files of a report; a file of another kind is not shown."""


@dataclass(frozen=True)
class Teaching:
    """How far teaching has come in one cache."""

    cache: str
    done: int
    """Shards that are finished."""
    shards: int


@dataclass(frozen=True)
class Going:
    """A run that waits or runs, and how far it is."""

    run: Run
    step: StepRun | None
    took: float | None
    """Seconds that this step took when it last ran in this folder."""
    teaching: tuple[Teaching, ...]
    said: str
    """The last line that it printed."""


@dataclass(frozen=True)
class Curve:
    """One number over the epochs of a student's training, its mean over seeds."""

    metric: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Class:
    """The students of one folder."""

    folder: str
    run: int
    """The last run of that folder."""
    metrics: tuple[str, ...]
    """Whatever one of them was measured by."""
    lines: tuple[dict[str, Any], ...]
    """As `stillroom students --json` has them, each with its `curve`."""


def going(state: State) -> list[Going]:
    """Every run that waits or runs, newest first."""
    found, recent = [], runs(state, last=200)
    for run in recent:
        if run.state not in (WAITING, RUNNING):
            continue
        step = next((s for s in run.steps if s.fresh is None), None)
        took = None if step is None else _took(recent, run, step.step)
        lines = tail(run).splitlines()
        teaching = tuple(_teaching(run)) if run.state == RUNNING else ()
        found.append(Going(run, step, took, teaching, lines[-1] if lines else ""))
    return found


def _took(recent: Sequence[Run], run: Run, step: str) -> float | None:
    before = (
        one.seconds
        for other in recent
        if other.number < run.number and other.folder == run.folder
        for one in other.steps
        if one.step == step and one.fresh is False
    )
    return next(before, None)


def _teaching(run: Run) -> Iterator[Teaching]:
    for place in _below(Path(run.folder))[0]:
        try:
            for draft in Cache(place).drafts():
                shards = draft.shards()
                done = sum(draft.receipt(shard.index) is not None for shard in shards)
                yield Teaching(place.name, done, len(shards))
        except (OSError, StillroomError):
            continue  # sealed or removed while it was read


def tail(run: Run) -> str:
    """The end of what a run printed, from the beginning of a line on."""
    try:
        size = os.stat(run.log).st_size if run.log else 0
        start = max(size - _TAIL_BYTES, 0)
        text = printed(run, start).decode(errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if start else text


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Caches and students' folders below a folder; links are not followed."""
    caches, students = [], []
    top = len(folder.parts)
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders.sort()
        if "cache.json" in files:
            caches.append(here)
            folders.clear()
        elif len(here.parts) - top >= _DEPTH:
            folders.clear()
        if "record.json" in files:
            students.append(here)
    return caches, students


def _folders(state: State) -> dict[str, int]:
    """Every folder in the ledger and the last run in it, the newest first."""
    found: dict[str, int] = {}
    for run in runs(state, last=1000):
        found.setdefault(run.folder, run.number)
    return found


def caches(state: State) -> dict[str, Path]:
    """Every cache below the folders of runs, by a name that is safe in an address."""
    places = [place for folder in _folders(state) for place in _below(Path(folder))[0]]
    return {hashlib.sha256(str(p).encode()).hexdigest()[:16]: p for p in places}


def described(state: State, place: Path) -> dict[str, Any]:
    """As `stillroom cache show --json`, with `verified`; `damaged` alone when it cannot be read."""
    shown = {"path": str(place), "name": place.name, "verified": verified_of(state.folder, place)}
    try:
        return {**describe_cache(str(place)), **shown}
    except (OSError, StillroomError, *GARBLED) as error:
        return {**shown, "damaged": str(error) or type(error).__name__}


def classes(state: State) -> list[Class]:
    """Students by the folder that they are in; of one name and seed, the last that was trained."""
    found = []
    for folder, run in _folders(state).items():
        newest: dict[tuple[str, int], tuple[float, Record]] = {}
        for place in _below(Path(folder))[1]:
            try:
                record = Record.read(place)
                key, at = (record.name, record.seed), (place / "record.json").stat().st_mtime
                _ = record.metrics
            except (OSError, StillroomError, *GARBLED):
                continue  # some other tool's record.json
            if key not in newest or newest[key][0] < at:
                newest[key] = at, record
        records = [newest[key][1] for key in sorted(newest)]
        try:
            lines = summary(records)
        except GARBLED:
            continue
        for line in lines:
            line["curve"] = curve_of([r for r in records if r.name == line["student"]])
        if lines:
            metrics = tuple(dict.fromkeys(m for line in lines for m in line["metrics"]))
            found.append(Class(folder, run, metrics, tuple(lines)))
    return found


def curve_of(records: Sequence[Record]) -> Curve | None:
    """Accuracy over epochs, or else the first number that was kept; None where none was twice."""
    points: list[Mapping[str, Any]] = [p for r in records for p in r.content.get("curve") or ()]
    names = [n for n, v in points[0].items() if isinstance(v, float)] if points else []
    metric = "accuracy" if "accuracy" in names else next(iter(names), "")
    found: dict[int, list[float]] = {}
    for point in points:
        if isinstance(point.get(metric), float) and isinstance(point.get("epoch"), int):
            found.setdefault(point["epoch"], []).append(point[metric])
    epochs = tuple(sorted(found))
    if len(epochs) < 2:
        return None
    return Curve(metric, epochs, tuple(sum(found[e]) / len(found[e]) for e in epochs))


def file_of(run: Run, asked: str) -> Path | None:
    """A file of a report, by its path below the run's folder; None for whatever is not one.

    Where it really lies counts: neither `..` nor a link leads out of the folder.
    """
    try:
        top = Path(run.folder).resolve(strict=True)
        found = (top / asked).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None  # not there, a NUL, a circle of links
    fits = found.is_relative_to(top) and found.is_file() and found.suffix.lower() in SHOWN
    return found if fits else None


def report_of(run: Run) -> str | None:
    """The report's path below the run's folder; None when there is none, or it lies elsewhere."""
    if run.report is None:
        return None
    found = file_of(run, run.report)
    return None if found is None else str(found.relative_to(Path(run.folder).resolve()))
