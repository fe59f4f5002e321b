"""Trained students: their records listed, compared and judged, and what the cache has saved them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.stages.halving import Stopped
from stillroom.stages.plans.estimating import break_even
from stillroom.stages.race import STOPPED
from stillroom.stages.student import Record
from stillroom.storage.cache import Cache
from stillroom.storage.errors import GARBLED, StillroomError, nearest
from stillroom.storage.files import read_json
from stillroom.workflows.intervals import interval


class NoStudentsError(StillroomError, LookupError):
    """There is no trained student, or none of that name or metric."""


def records_below(folder: Path) -> list[Record]:
    """Every record in a folder and below it, by name and seed. NoStudentsError where there is none."""
    found = []
    for place in sorted(folder.rglob("record.json")):
        try:
            record = Record.read(place.parent)
            _ = record.name, record.seed, record.metrics
        except (StillroomError, *GARBLED):
            continue  # some other tool's record.json
        found.append(record)
    if not found:
        raise NoStudentsError(
            f"no trained student below {folder}; give the folder of a run, or that of train()"
        )
    return sorted(found, key=lambda record: (record.name, record.seed))


def stopped_below(folder: Path) -> list[Stopped]:
    """Students that were stopped early and not trained to their end since, by name and seed."""
    found = []
    for place in sorted(folder.rglob(STOPPED)):
        if (place.parent / "record.json").exists():
            continue
        try:
            stopped = Stopped.read(place.parent)
            _ = stopped.name, stopped.seed, stopped.epoch, stopped.value
            _ = stopped.content["watch"], stopped.content["by"], stopped.content["epochs"]
        except (StillroomError, *GARBLED):
            continue  # some other tool's
        found.append(stopped)
    return sorted(found, key=lambda stopped: (stopped.name, stopped.seed))


def stopped_line(stopped: Stopped) -> str:
    """Where a student was stopped, and by what."""
    said = stopped.content
    return (
        f"{stopped.name}, seed {stopped.seed}: stopped after epoch {stopped.epoch} of {said['epochs']}, "
        f"{said['watch'].removeprefix('-')} {stopped.value:.4f}, by {said['by']}"
    )


def named(records: Sequence[Record], name: str) -> list[Record]:
    """One student's records, by seed; NoStudentsError offers the nearest name."""
    chosen = [record for record in records if record.name == name]
    if not chosen:
        raise NoStudentsError(f"no student {name!r}; {nearest(name, {r.name for r in records})}")
    return chosen


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One line for each student: settings, and its metrics' means and 95% intervals over seeds."""
    lines = []
    for name in dict.fromkeys(record.name for record in records):
        mine = named(records, name)
        first = mine[0].content
        lines.append(
            {
                "student": name,
                "recipe": first["recipe"],
                "terms": first["terms"],
                "parameters": first["parameters"],
                "rows": first["rows"],
                "seeds": [record.seed for record in mine],
                "metrics": {m: interval(v) for m, v in _metrics(mine).items()},
                "seconds": interval([float(record.content["seconds"]) for record in mine]),
                "snapshot": first["snapshot"],
            }
        )
    return lines


def _metrics(records: Sequence[Record]) -> dict[str, list[float]]:
    """The numbers that every one of them has."""
    common = [
        name
        for name in records[0].metrics
        if all(isinstance(record.metrics.get(name), float) for record in records)
    ]
    return {name: [float(record.metrics[name]) for record in records] for name in common}


def best(records: Sequence[Record], metric: str) -> Record:
    """The record with the largest value of a metric, of `-nll` the smallest.

    One seed's: which student is better on average is what the table says. NoStudentsError for a
    metric that none has.
    """
    name = metric.removeprefix("-")
    having = [record for record in records if isinstance(record.metrics.get(name), float)]
    if not having:
        known = {m for record in records for m, v in record.metrics.items() if isinstance(v, float)}
        raise NoStudentsError(f"no student has a metric {name!r}; {nearest(name, known)}")
    sign = -1 if metric.startswith("-") else 1
    return max(having, key=lambda record: sign * record.metrics[name])


def ledger(
    records: Sequence[Record], cache: Cache, stopped: Sequence[Stopped] = ()
) -> dict[str, Any]:
    """What the teachers cost once and would have cost inside every training; all of it measured.

    A teacher's seconds are those noted with its shards, of all rows that it ever answered for; a
    student that reads it goes through its rows in each epoch that it made. `students` is N*: from how
    many such trainings on (their mean) the cache is the cheaper way. None where nothing was measured. Of
    students that were stopped early only their own seconds are counted.
    """
    inside, whole, rows = 0.0, 0.0, 0
    loads = set()  # every shard notes how long its worker took to load the teacher
    for place in sorted(Path(str(cache.path)).glob("segments/*/made/[0-9]*.json")):
        made = read_json(place)
        inside, whole = inside + float(made["teacher_seconds"]), whole + float(made["seconds"])
        rows += int(made["rows"])
        loads.add((place.parent, float(made.get("load_seconds") or 0.0)))
    whole += sum(seconds for _, seconds in loads)
    reading = [record for record in records if record.content["reads"]]
    visits = sum(int(r.content["rows"]) * int(r.content["epochs"]) for r in reading)
    online = inside / rows * visits if rows else None
    each = online / len(reading) if online is not None and reading else None
    return {
        "teacher_seconds": inside,
        "teaching_seconds": whole,
        "teacher_rows": rows,
        "student_seconds": sum(float(record.content["seconds"]) for record in records),
        "trainings": len(records),
        "stopped_seconds": sum(float(each.content.get("fit_seconds", 0.0)) for each in stopped),
        "stopped": len(stopped),
        "rows_read": visits,
        "online_teacher_seconds": online,
        "students": None if each is None else break_even(whole, each, 0.0),
    }


def difference_lines(records: Sequence[Record], one: str, other: str) -> Iterator[str]:
    """Two students compared: what differs in them, and their metrics seed by seed."""
    mine, theirs = named(records, one), named(records, other)
    first, second = mine[0].content, theirs[0].content
    for key in ("recipe", "terms", "fit", "split", "rows", "parameters", "reads", "beside"):
        if first.get(key) != second.get(key):
            yield from _differing(key, first.get(key), second.get(key))
    seeds = sorted({r.seed for r in mine} & {r.seed for r in theirs})
    if not seeds:
        yield "no seed in common"
        return
    pairs = [[next(r for r in each if r.seed == seed) for seed in seeds] for each in (mine, theirs)]
    measured = [_metrics(each) for each in pairs]
    for name in measured[0].keys() & measured[1].keys():
        at = interval([a - b for a, b in zip(*(m[name] for m in measured), strict=True)])
        yield f"{name}: {at['mean']:+.4f} [{at['low']:+.4f}, {at['high']:+.4f}] over {len(seeds)} seeds"


def _differing(key: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}):
            if one.get(name) != other.get(name):
                yield f"{key}.{name}: {one.get(name)} and {other.get(name)}"
    else:
        yield f"{key}: {one} and {other}"
