"""The page's sentences, computed from the numbers, the disappointing ones too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stillroom.workflows.reporting.comparing import WORDS, Line, best_of
from stillroom.workflows.reporting.metrics import Metric
from stillroom.workflows.spelling import amount, duration, times, whole


def summarise(
    results: Mapping[str, Any],
    comparisons: Sequence[Line],
    main: Metric | None,
    judged: Sequence[Metric],
) -> str:
    """The run in one paragraph of plain words; `judged` are the metrics that distillation is judged by."""
    students = results["students"]
    if main is None:
        return f"{_many(len(students), 'student')}; the evaluation gave no number of them."
    said = []
    teacher = next((r for r in results["references"] if main.name in r["metrics"]), None)
    if teacher is not None:
        said.append(_teacher_words(teacher, results["dataset"], main))
    best, word = best_of(students, main), "mean" if main.sign else "(of unknown direction)"
    if best is None:
        return " ".join([*said, f"No student has a finite {main.label}."])
    if main.sign:
        sized = _size_words(best, teacher)
        said.append(f"The best student by {word} {main.label} is {_told(best, main)}{sized}.")
        said += _other_words(students, best, main)
    else:
        said.append(
            f"Whether more or less {main.label} is better is not known to this page; "
            f"{_told(best, main)} is one of {_many(len(students), 'student')}."
        )
    said += _comparison_words(comparisons, main, judged)
    cost = results["cost"] or {}
    once, always = cost.get("teacher_seconds"), cost.get("online_teacher_seconds")
    if once and always:
        said.append(
            f"Running the teacher once for the cache took {duration(once)}; inside every training "
            f"it would have cost {duration(always)}, {times(always / once)} as much."
        )
    return " ".join(said)


def _teacher_words(teacher: Line, dataset: Mapping[str, Any], main: Metric) -> str:
    value = main.spell(teacher["metrics"][main.name])
    rows, name = dataset.get("test_rows"), dataset.get("name")
    where = f"the {whole(rows)} held-out rows" if rows else "the held-out rows"
    where += f" of {name}" if name else ""
    if main.name == "accuracy":
        return f"The teacher, {teacher['name']}, gets {value} of {where} right."
    return f"The teacher, {teacher['name']}, has {main.label} {value} on {where}."


def _size_words(best: Line, teacher: Line | None) -> str:
    if teacher is None or not teacher.get("parameters") or not best["parameters"]:
        return ""
    ratio = teacher["parameters"] / best["parameters"]
    if ratio > 1:
        return f", with {times(ratio)} fewer parameters than the teacher"
    return ", with no fewer parameters than the teacher"


def _other_words(students: Sequence[Line], best: Line, main: Metric) -> list[str]:
    plain = best_of([s for s in students if not s["uses_teacher"]], main)
    taught = best_of([s for s in students if s["uses_teacher"]], main)
    if best["uses_teacher"]:
        return [f"The best trained without a teacher is {_told(plain, main)}."] if plain else []
    said = ["It was trained without a teacher."]
    return said + ([f"The best distilled one is {_told(taught, main)}."] if taught else [])


def _comparison_words(
    comparisons: Sequence[Line], main: Metric, judged: Sequence[Metric]
) -> list[str]:
    matched = [c for c in comparisons if c["baseline"] is not None]
    said = []
    if matched and main.sign:
        verdicts = [c["verdicts"].get(main.name) for c in matched]
        few = any(v and v["word"] == "undecided" for v in verdicts)
        undecided = ", and one seed, which has no interval, decides nothing" if few else ""
        said.append(
            "Each distilled student is set against the best one without a teacher of the same "
            "architecture and number of training rows; overlapping 95% intervals count as no difference"
            f"{undecided}. In {main.label}, distillation {_outcomes(matched, main)}."
        )
        for metric in judged:
            if metric != main and any(c["verdicts"].get(metric.name) for c in matched):
                said.append(f"In {metric.label}, it {_outcomes(matched, metric)}.")
    if alone := [quoted(c["student"]["name"]) for c in comparisons if c["baseline"] is None]:
        said.append(f"No counterpart without a teacher was trained for {listed_words(alone)}.")
    return said


def _told(student: Line, main: Metric) -> str:
    value = student["metrics"][main.name]
    bounds = "one seed, no interval" if len(student["runs"]) < 2 else main.span(value)
    return f"{quoted(student['name'])} at {main.spell(value['mean'])} ({bounds})"


def quoted(name: str) -> str:
    """The name in quotation marks, for it may hold commas in a list of names."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"


def _outcomes(matched: Sequence[Line], metric: Metric) -> str:
    phrases = {
        "won": "won for",
        "no difference": "made no difference for",
        "undecided": "cannot be judged for",
        "lost": "lost for",
    }
    parts = []
    for word in WORDS:
        chosen = [c for c in matched if (v := c["verdicts"].get(metric.name)) and v["word"] == word]
        names = [
            f"{quoted(c['student']['name'])} "
            f"({metric.moved(c['verdicts'][metric.name]['difference'])})"
            for c in chosen
        ]
        if len(names) > _NAMED:
            names = [f"{len(names)} students"]
        parts += [f"{phrases[word]} {listed_words(names)}"] if names else []
    return "; it ".join(parts)


_NAMED = 6
"""Students that a sentence names; of more it says how many."""


def listed_words(names: Sequence[str]) -> str:
    """One, two and three."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _many(count: int, what: str) -> str:
    return f"{whole(count)} {what}{'' if count == 1 else 's'}"


def cost_words(cost: Mapping[str, Any]) -> str:
    """What the teacher cost with the cache, what it would have cost without, and how we know."""
    once, always = cost.get("teacher_seconds"), cost.get("online_teacher_seconds")
    trained, visits = cost.get("student_seconds"), cost.get("rows_read")
    said = []
    if once:
        whole_time = cost.get("teaching_seconds")
        more = f" ({duration(whole_time)} with encoding and writing)" if whole_time else ""
        said.append(
            f"The teacher's answers to {_many(cost['teacher_rows'], 'row')} were computed once, in "
            f"{duration(once)}{more}."
        )
    if trained is not None:
        trainings = _many(cost["trainings"], "training")
        said.append(f"The {trainings} took {duration(trained)} in all.")
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
    if cost.get("students") is not None:
        said.append(
            f"N*: from {_many(cost['students'], 'such training')} on, their mean taken, the cache is the "
            "cheaper way."
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


def size_bars(signals: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[float], str]]:
    """A bar of megabytes for each signal."""
    return [(s["name"], [s["bytes"] / 1e6], amount(s["bytes"])) for s in signals]


def change_words(changes: Mapping[str, Any]) -> list[str]:
    """What changed since the last page, a line for each kind; empty where nothing did."""
    said = []
    for words, names in (("New", changes["new"]), ("Gone", changes["gone"])):
        if names:
            said.append(f"{words}: {listed_words([quoted(n) for n in names])}.")
    if changes["changed"] or changes["same"]:
        kept = _many(changes["same"], "student")
        moved = len(changes["changed"])
        said.append(
            f"Trained again or with other seeds: {moved}; as it was: {kept}."
            if moved
            else f"As before: {kept}."
        )
    for teacher in changes["teachers"]:
        why = f": {'; '.join(teacher['differs'][:4])}" if teacher["differs"] else ""
        said.append(f"Teacher {quoted(teacher['name'])}: {teacher['what']}{why}.")
    if changes["rows"]:
        before, now = changes["rows"]
        said.append(f"The cache serves {_many(now, 'row')}, {whole(before)} before.")
    if changes["snapshot"] and not changes["rows"] and not changes["taught"]:
        said.append("The cache has another snapshot of the same rows.")
    for segment in changes["taught"]:
        took = "" if segment["seconds"] is None else f" in {duration(segment['seconds'])}"
        why = f" ({segment['why']})" if segment["why"] else ""
        said.append(
            f"Taught by {quoted(segment['teacher'])}: {_many(segment['rows'], 'row')}{took}{why}."
        )
    return said
