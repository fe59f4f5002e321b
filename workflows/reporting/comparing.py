"""Which of two means over seeds is better, by their intervals, and each student beside another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.workflows.reporting.metrics import Metric

Line = Mapping[str, Any]
"""A student of gathered results."""
WORDS = ("won", "no difference", "undecided", "lost")


def verdict(ours: Line, theirs: Line, metric: Metric) -> dict[str, Any] | None:
    """`difference` and, in a `word`, what two 95% intervals say of it; None where one has none.

    "no difference" where they overlap, which does not prove that there is none; "undecided" where one
    of the two has a single seed; "changed" where nobody knows which direction is the better one.
    """
    mine, other = ours["metrics"].get(metric.name), theirs["metrics"].get(metric.name)
    if mine is None or other is None:
        return None
    difference = mine["mean"] - other["mean"]
    if len(ours["runs"]) < 2 or len(theirs["runs"]) < 2:
        word = "undecided"
    elif mine["low"] <= other["high"] and other["low"] <= mine["high"]:
        word = "no difference"
    elif not metric.sign:
        word = "changed"
    else:
        word = "won" if difference * metric.sign > 0 else "lost"
    return {"difference": difference, "word": word}


def against_labels(students: Sequence[Line], metrics: Sequence[Metric], main: Metric) -> list[Line]:
    """Each student that reads a teacher against the best that reads none, built alike, on as many rows.

    `baseline` is None where no such student was trained; else `verdicts` has one for each metric.
    """
    found: list[Line] = []
    plain = [s for s in students if not s["uses_teacher"]]
    for student in students:
        if not student["uses_teacher"]:
            continue
        kind = student["build"], student["rows"]
        alike = [s for s in plain if (s["build"], s["rows"]) == kind and main.name in s["metrics"]]
        baseline = best_of(alike, main)
        row: dict[str, Any] = {"student": student, "baseline": baseline, "verdicts": {}}
        if baseline is not None:
            row["verdicts"] = {m.name: verdict(student, baseline, m) for m in metrics}
        found.append(row)
    return found


def best_of(students: Sequence[Line], metric: Metric) -> Line | None:
    """The best by its mean, the first of equal ones; of a metric of no known direction the first."""
    having = [s for s in students if metric.name in s["metrics"]]
    return max(
        having, key=lambda s: metric.sign * float(s["metrics"][metric.name]["mean"]), default=None
    )
