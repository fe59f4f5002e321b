"""The one HTML report of a run: plain JSON results in, a single file out that needs no other.

The summary is computed from the numbers, and it says where distillation lost as plainly as where
it won. Matplotlib and Jinja are imported only when a report is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.storage.files import write_atomic
from stillroom.workflows.report_words import compare, cost_bars, cost_words, size_bars, summarise
from stillroom.workflows.spelling import (
    NONE,
    amount,
    decimals,
    duration,
    share,
    signed,
    span,
    whole,
)

METRICS = ("accuracy", "agreement", "ece", "nll", "seconds")
OPTIONAL = {
    "dataset": ("train_rows", "test_rows", "classes"),
    "teacher": ("parameters", "ece", "identity", "reliability"),
    "cache": ("path", "snapshot", "rows", "bytes", "signals"),
    "cost": (
        *("teacher_seconds", "teacher_rows", "student_seconds", "students"),
        *("epochs_rows", "online_teacher_seconds", "wall_seconds"),
    ),
    "environment": (),
}


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the report of `results` to `path`: one HTML file that refers to nothing outside it.

    Equal results give equal bytes. KeyError or ValueError name what is missing or wrong;
    ImportError names the extra to install when Matplotlib or Jinja is missing.
    """
    checked = _checked(results)
    try:
        import jinja2
        from markupsafe import Markup

        from stillroom.workflows import plots
    except ImportError as error:
        raise ImportError(
            f"the report needs Matplotlib and Jinja ({error}): pip install 'stillroom[report]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        **{f.__name__: f for f in (share, decimals, signed, whole, span, amount, duration)}
    )
    environment.globals.update(plots=plots, svg=Markup, absent=NONE, size_bars=size_bars)
    template = environment.from_string(
        Path(__file__).with_name("report.html.j2").read_text("utf-8")
    )
    students = checked["students"]
    page = template.render(
        **checked,
        comparisons=(comparisons := compare(students)),
        summary=summarise(checked, comparisons),
        architectures=list(dict.fromkeys(s["architecture"] for s in students)),
        looks=plots.line_looks(students),
        one_seed=any(s["one_seed"] for s in students),
        cost_words=cost_words(checked["cost"] or {}),
        cost_bars=cost_bars(checked["cost"] or {}),
    )
    write_atomic(path, [page.encode()])


def _checked(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with every optional part present (empty or None), the required ones checked."""
    _need(results, "results", "title", "dataset", "teacher", "students")
    _need(results["dataset"], "results['dataset']", "name")
    _need(results["teacher"], "results['teacher']", "name", "accuracy")
    if not results["students"]:
        raise ValueError("results['students'] is empty: a report needs at least one student")
    students = []
    for number, student in enumerate(results["students"]):
        where = f"results['students'][{number}]"
        _need(student, where, "name", "architecture", "uses_teacher", "accuracy")
        values = {m: _interval(student.get(m), f"{where}['{m}']") for m in METRICS}
        if values["accuracy"] is None:
            raise ValueError(f"{where}['accuracy']['mean'] should be a finite number")
        low, high = values["accuracy"]["low"], values["accuracy"]["high"]
        runs = list(student.get("runs") or ())
        blank = {"recipe": "", "parameters": None, "labels": None, "rows": None}
        more: dict[str, Any] = {"reliability": list(student.get("reliability") or ()), "runs": runs}
        # Without the runs, an interval of no width can only be a single seed.
        more["one_seed"] = len(runs) == 1 if runs else low == high
        students.append({**blank, **student, **values, **more})
    return {
        "when": None,
        **results,
        **{part: _filled(results.get(part), keys) for part, keys in OPTIONAL.items()},
        "students": students,
    }


def _filled(part: Mapping[str, Any] | None, keys: Sequence[str]) -> dict[str, Any] | None:
    """The part with None for what it lacks; None when it is not there at all."""
    return {**dict.fromkeys(keys), **part} if part else None


def _need(part: Mapping[str, Any], where: str, *keys: str) -> None:
    missing = [key for key in keys if part.get(key) is None]
    if missing:
        raise KeyError(f"{where} lacks {', '.join(missing)}: the report cannot be written without")


def _interval(value: Mapping[str, Any] | None, where: str) -> dict[str, float] | None:
    """Mean, low and high, or None where there is no finite mean (a run that diverged)."""
    if value is None:
        return None
    if "mean" not in value:
        raise KeyError(f"{where} lacks mean: an interval is mean, low and high")
    mean = value["mean"]
    if mean is None or not math.isfinite(mean):
        return None
    ends = {k: value.get(k) for k in ("low", "high")}
    return {"mean": mean, **{k: mean if v is None else v for k, v in ends.items()}}
