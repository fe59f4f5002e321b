"""The report's sentences and comparisons, computed from the numbers, the disappointing ones too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.workflows.spelling import amount, duration, share, signed, span, times, whole


def compare(students: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each taught student against the best label-only one of its architecture and number of training rows.

    `baseline` is None where no such student was trained. A verdict is "won" or "lost" when the two
    intervals do not overlap, "no difference" when they do, "undecided" when one has one seed only.
    """
    found = []
    for student in students:
        if not student["uses_teacher"]:
            continue
        kind = (student["architecture"], student["rows"])
        plain = [s for s in students if not s["uses_teacher"]]
        alike = [s for s in plain if (s["architecture"], s["rows"]) == kind]
        baseline = max(alike, key=_mean_accuracy, default=None)
        row: dict[str, Any] = {"student": student, "baseline": baseline}
        if baseline is not None:
            row["accuracy"] = _verdict(student, baseline, "accuracy", 1)
            row["ece"] = _verdict(student, baseline, "ece", -1)
        found.append(row)
    return found


def _verdict(
    student: Mapping[str, Any], baseline: Mapping[str, Any], metric: str, better: int
) -> dict[str, Any] | None:
    ours, theirs = student[metric], baseline[metric]
    if ours is None or theirs is None:
        return None
    difference = ours["mean"] - theirs["mean"]
    if student["one_seed"] or baseline["one_seed"]:
        word = "undecided"
    elif ours["low"] <= theirs["high"] and theirs["low"] <= ours["high"]:
        word = "no difference"
    else:
        word = "won" if difference * better > 0 else "lost"
    return {"difference": difference, "word": word}


def summarise(results: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The run in one paragraph of plain words."""
    teacher, data, students = results["teacher"], results["dataset"], results["students"]
    rows = "" if data["test_rows"] is None else f"{whole(data['test_rows'])} "
    said = [
        f"The teacher, {teacher['name']}, gets {share(teacher['accuracy'])} of the {rows}test rows "
        f"of {data['name']} right."
    ]
    best = max(students, key=_mean_accuracy)
    smaller = ""
    if best["parameters"] and teacher["parameters"]:
        ratio = teacher["parameters"] / best["parameters"]
        smaller = f", with {times(ratio)} fewer parameters than the teacher"
        smaller = smaller if ratio > 1 else ", with no fewer parameters than the teacher"
    said.append(f"The best student by mean accuracy is {_told(best)}{smaller}.")
    plain = [s for s in students if not s["uses_teacher"]]
    taught = [s for s in students if s["uses_teacher"]]
    if best in taught and plain:
        other = _told(max(plain, key=_mean_accuracy))
        said.append(f"The best trained on labels alone is {other}.")
    elif best in plain:
        said.append("It was trained on labels alone, without the teacher.")
        if taught:
            said.append(f"The best distilled one is {_told(max(taught, key=_mean_accuracy))}.")
    matched = [c for c in comparisons if c["baseline"] is not None]
    if matched:
        few = any(c["accuracy"]["word"] == "undecided" for c in matched)
        undecided = ", and one seed, which has no interval, decides nothing" if few else ""
        said.append(
            "Each distilled student is set against the best label-only student of the same "
            "architecture and number of training rows; overlapping 95% intervals count as no difference"
            f"{undecided}. In accuracy, distillation {_outcomes(matched, 'accuracy')}."
        )
    if any(c["ece"] for c in matched):
        said.append(f"In calibration (ECE), it {_outcomes(matched, 'ece')}.")
    if alone := [_quoted(c["student"]) for c in comparisons if c["baseline"] is None]:
        said.append(f"No label-only counterpart was trained for {_listed(alone)}.")
    cost = results["cost"] or {}
    once, always = cost.get("teacher_seconds"), cost.get("online_teacher_seconds")
    if once and always:
        said.append(
            f"Running the teacher once for the cache took {duration(once)}; inside every training "
            f"it would have cost {duration(always)}, {times(always / once)} as much."
        )
    return " ".join(said)


def _mean_accuracy(student: Mapping[str, Any]) -> float:
    return float(student["accuracy"]["mean"])


def _told(student: Mapping[str, Any]) -> str:
    bounds = "one seed, no interval" if student["one_seed"] else span(student["accuracy"], 100)
    return f"{_quoted(student)} at {share(student['accuracy']['mean'])} ({bounds})"


def _quoted(student: Mapping[str, Any]) -> str:
    """The name in quotation marks, for it may hold commas in a list of names."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{student['name']}\N{RIGHT DOUBLE QUOTATION MARK}"


def _outcomes(matched: Sequence[Mapping[str, Any]], metric: str) -> str:
    phrases = {
        "won": "won for",
        "no difference": "made no difference for",
        "undecided": "cannot be judged for",
        "lost": "lost for",
    }
    parts = []
    for word, phrase in phrases.items():
        names = [
            f"{_quoted(c['student'])}{_points(c, metric)}"
            for c in matched
            if c[metric] is not None and c[metric]["word"] == word
        ]
        parts += [f"{phrase} {_listed(names)}"] if names else []
    return "; it ".join(parts)


def _points(comparison: Mapping[str, Any], metric: str) -> str:
    difference = comparison[metric]["difference"]
    return f" ({signed(100 * difference, 1)} points)" if metric == "accuracy" else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def cost_words(cost: Mapping[str, Any]) -> str:
    """What the teacher cost with the cache, what it would have cost without, and how we know."""
    once, always = cost.get("teacher_seconds"), cost.get("online_teacher_seconds")
    trained, visits = cost.get("student_seconds"), cost.get("epochs_rows")
    said = []
    if once is not None:
        over = "" if cost["teacher_rows"] is None else f" over {whole(cost['teacher_rows'])} rows"
        said.append(f"To fill the cache the teacher ran{over} once, in {duration(once)}.")
    if trained is not None:
        count = "" if cost["students"] is None else f"{whole(cost['students'])} "
        said.append(f"The {count}trainings took {duration(trained)} in all.")
    if once and always and visits:
        said.append(
            f"The students that read the teacher visited {whole(visits)} rows, every epoch counted. At "
            f"the measured {duration(always / visits)} a row, the teacher inside all of these "
            f"trainings would have run for {duration(always)} in all: {times(always / once)} as much "
            "as the single pass. This is computed from the measured time a row, not a run of its own."
        )
        if trained is not None:
            said.append(
                f"With the students' own time that makes {duration(once + trained)} from the cache "
                f"against {duration(always + trained)}, "
                f"{times((always + trained) / (once + trained))} as much."
            )
    return " ".join(said)


def cost_bars(cost: Mapping[str, Any]) -> list[tuple[str, list[float], str]]:
    """Bars of teacher and student seconds, with the cache and without; empty if not all known."""
    keys = ("teacher_seconds", "online_teacher_seconds", "student_seconds")
    once, always, trained = (cost.get(key) for key in keys)
    if not once or not always or trained is None:
        return []
    ways = {"teacher once, from the cache": once, "teacher in every training": always}
    return [(name, [own, trained], duration(own + trained)) for name, own in ways.items()]


def size_bars(signals: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float], str]]:
    """A bar of megabytes for each signal."""
    return [(s["name"], [s["bytes"] / 1e6], amount(s["bytes"])) for s in signals]
