"""What lies on disk after a run, as plain JSON: students by name, their cache, what both have cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.stages.student import Record
from stillroom.storage.cache import Cache
from stillroom.storage.errors import GARBLED, StillroomError
from stillroom.storage.files import read_json
from stillroom.storage.identity import digest
from stillroom.storage.place import Place
from stillroom.workflows.inspecting import describe_cache
from stillroom.workflows.intervals import interval
from stillroom.workflows.reporting.metrics import main_of, metric_of, metrics_json
from stillroom.workflows.spelling import finite
from stillroom.workflows.students import ledger, summary

FORMAT = 2
"""Of a results file; 1 was the demo's alone."""


def gather(
    records: Sequence[Record],
    cache: Cache | None,
    *,
    title: str,
    dataset: Mapping[str, Any] | None = None,
    references: Sequence[Mapping[str, Any]] = (),
    better: Mapping[str, str] | None = None,
    main: str = "",
    environment: Mapping[str, Any] | None = None,
    stopped: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that a page says of these records and this cache, without the rows themselves.

    `references` are lines of the table that no student was trained for, such as the teacher: `name` and
    `metrics`, and where known `what`, `parameters` and `reliability`. `better` says of metrics with
    names of your own whether "higher" or "lower" is better; `main` is the one that the page is about.
    `dataset` has a `name` and, where known, `train_rows` and `test_rows`; `stopped` are lines about
    students that a sweep stopped early. Nothing here is a clock's: equal files give equal results.
    """
    students = _students(records)
    names = dict.fromkeys(m for s in students for m in s["metrics"])
    metrics = [metric_of(name, better) for name in names]
    about = main_of(metrics, main)
    libraries: Mapping[str, Any] = _within(records[0].content, "identity", "student", "libraries")
    machines = sorted({str(r.content["machine"]) for r in records if r.content.get("machine")})
    given = {"trained on": "; ".join(machines), **libraries, **(environment or {})}
    return {
        "stillroom": "report",
        "format": FORMAT,
        "title": title,
        "when": _newest(records),
        "dataset": dict(dataset or {}),
        "metrics": metrics_json(metrics),
        "main": about.name if about else "",
        "references": [dict(reference) for reference in references],
        "students": students,
        "cache": None if cache is None else _cache(cache, records),
        "cost": None if cache is None else ledger(records, cache),
        "environment": {name: value for name, value in given.items() if value},
        "stopped": list(stopped),
        "differing": [],
    }


def _newest(records: Sequence[Record]) -> str:
    """When the last of them was finished: its record is written last."""
    at = max((record.folder / "record.json").stat().st_mtime for record in records)
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


def _students(records: Sequence[Record]) -> list[dict[str, Any]]:
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record.name, []).append(record)
    lines = {str(line["student"]): line for line in summary(records)}
    return [_student(name, runs, lines[name]) for name, runs in by_name.items()]


def _student(name: str, records: Sequence[Record], line: Mapping[str, Any]) -> dict[str, Any]:
    first = records[0].content
    build: Mapping[str, Any] = _within(first, "identity", "student", "build")
    rates = [float(r.content["rows_per_second"]) for r in records if "rows_per_second" in r.content]
    return {
        "name": name,
        "architecture": _spelled_build(build),
        "build": digest(build) if build else "",
        "recipe": line["recipe"],
        "terms": list(line["terms"]),
        "learns_from": _sources(first),
        "uses_teacher": bool(first["reads"]),
        "parameters": line["parameters"],
        "rows": line["rows"],
        "snapshot": line["snapshot"],
        "metrics": {m: v for m, v in line["metrics"].items() if finite(v["mean"])},
        "seconds": line["seconds"],
        "rows_per_second": interval(rates) if len(rates) == len(records) else None,
        "runs": [_run(record) for record in records],
        "reliability": pooled([r.metrics.get("reliability") or () for r in records]),
    }


def _run(record: Record) -> dict[str, Any]:
    content = record.content
    return {
        "seed": record.seed,
        "digest": content["digest"],
        "seconds": content["seconds"],
        "peak_memory_bytes": content.get("peak_memory_bytes"),
        "metrics": {m: v for m, v in record.metrics.items() if _is_number(v)},
        "curve": [_point(point) for point in content.get("curve") or ()],
    }


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and finite(value)


def _within(content: Mapping[str, Any], *names: str) -> Any:
    """A part of a record, an empty dict where an older record lacks it."""
    part: Any = content
    for name in names:
        part = part.get(name, {}) if isinstance(part, Mapping) else {}
    return part


def _sources(content: Mapping[str, Any]) -> list[str]:
    """The signals and the columns that its losses read, in the cache's and the data set's words."""
    inputs = set(_within(content, "identity", "student", "inputs") or ())
    columns = []
    for term in content["terms"]:
        for piece in str(term).replace("(", " ").replace(")", " ").replace(",", " ").split():
            name = piece.removeprefix("row.")
            if piece.startswith("row.") and name not in inputs:
                columns.append(name)
    return [*content["reads"], *dict.fromkeys(columns)]


def _spelled_build(build: Mapping[str, Any]) -> str:
    """How it was built, as one would call it: cnn(4)."""
    root = build.get("root", "") if isinstance(build, Mapping) else ""
    if isinstance(root, str):
        return _bare(root)
    if not isinstance(root, Mapping) or "partial" not in root:
        return ""
    named = [f"{name}={_bare(value)}" for name, value in (root.get("keywords") or {}).items()]
    given = ", ".join([*(_bare(value) for value in root.get("args") or ()), *named])
    return f"{_bare(root['partial'])}({given})"


def _bare(value: Any) -> str:
    """A value as short as can be: of a long name its last part, of something long its beginning."""
    text = str(value).partition(" of ")[0]
    if "." in text and text.replace(".", "").replace("_", "").isidentifier():
        text = text.rpartition(".")[2]
    return text if len(text) <= 24 else f"{text[:23]}…"


def pooled(runs: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """The reliability bins of all seeds together, weighted by their rows."""
    bins: dict[int, list[Mapping[str, float]]] = {}
    for entry in (entry for run in runs for entry in run):
        bins.setdefault(min(int(entry["confidence"] * 10), 9), []).append(entry)
    found = []
    for _, entries in sorted(bins.items()):
        count = sum(entry["count"] for entry in entries)
        weighted = {
            name: sum(entry[name] * entry["count"] for entry in entries) / count
            for name in ("confidence", "accuracy")
        }
        found.append({**weighted, "count": count})
    return found


def _cache(cache: Cache, records: Sequence[Record]) -> dict[str, Any]:
    """The state that the students read, or the newest: its signals and every segment behind it."""
    described = describe_cache(cache.path)
    read = [n for r in records if (n := r.content.get("snapshot")) is not None]
    known = {s["number"]: s for s in described["snapshots"]}
    number = max((n for n in read if n in known), default=max(known, default=None))
    segments = [
        {
            **{k: s[k] for k in ("name", "teacher", "digest", "rows", "bytes", "why", "at")},
            "seconds": _seconds(cache.path / "segments" / s["name"]),
        }
        for s in described["segments"]
    ]
    return {
        "path": cache.path.name,
        "snapshot": number,
        "snapshots": len(known),
        "rows": known[number]["rows"] if number is not None else 0,
        "bytes": described["bytes"],
        "signals": [] if number is None else _signals(cache, number),
        "teachers": [
            {
                "name": teacher["name"],
                "digest": teacher["identities"][-1]["digest"],
                "identities": len(teacher["identities"]),
                "differs": teacher["identities"][-1]["differs"],
            }
            for teacher in described["teachers"]
        ],
        "segments": segments,
    }


def _signals(cache: Cache, number: int) -> list[dict[str, Any]]:
    """Of a snapshot: what each is, its bytes in the segments that serve it, its encoding's error."""
    snapshot, found = cache.snapshot(number), []
    segments = {s.path.name: s for s in cache.segments()}
    for name, signal in snapshot.signals.items():
        used = sorted({run.segment.name for run in snapshot.runs(name)})
        size = sum(segments[n].signal_bytes[signal.name] for n in used)
        error = segments[used[-1]].errors[signal.name] if used else None
        found.append({"name": name, **signal.to_json(), "bytes": size, "error": error})
    return found


def _seconds(segment: Place) -> float | None:
    """What a segment's shards took, encoding and writing included, where that was noted."""
    if not isinstance(segment, Path):
        return None
    total, noted = 0.0, False
    for place in sorted(segment.glob("made/[0-9]*.json")):
        try:
            total, noted = total + float(read_json(place)["seconds"]), True
        except (StillroomError, *GARBLED):
            continue  # it is no part of the cache's content
    return total if noted else None


def newest(records: Sequence[Record]) -> list[Record]:
    """Of each name and seed the last that was trained: earlier ones stay in their folders."""
    found: dict[tuple[str, int], tuple[float, Record]] = {}
    for record in records:
        at = (record.folder / "record.json").stat().st_mtime
        key = record.name, record.seed
        if key not in found or found[key][0] < at:
            found[key] = at, record
    return [found[key][1] for key in sorted(found)]
