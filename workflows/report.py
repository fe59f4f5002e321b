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
NONE = "\N{EM DASH}"
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


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
        blank = {"recipe": "", "parameters": None, "labels": None}
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


def compare(students: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each taught student against the best label-only one of its architecture and number of labels.

    `baseline` is None where no such student was trained. A verdict is "won" or "lost" when the two
    intervals do not overlap, "no difference" when they do, "undecided" when one has one seed only.
    """
    found = []
    for student in students:
        if not student["uses_teacher"]:
            continue
        kind = (student["architecture"], student["labels"])
        plain = [s for s in students if not s["uses_teacher"]]
        alike = [s for s in plain if (s["architecture"], s["labels"]) == kind]
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
            "architecture and number of labels; overlapping 95% intervals count as no difference"
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


def share(value: float | None, places: int = 1) -> str:
    """0.9512 as 95.1%; a dash for what is missing or not finite, as in every function below."""
    return NONE if _absent(value) else f"{value:.{places}%}"


def decimals(value: float | None, places: int = 3) -> str:
    """A number with fixed decimals."""
    return NONE if _absent(value) else f"{value:.{places}f}".replace("-", MINUS)


def signed(value: float | None, places: int = 1) -> str:
    """A difference, its sign always shown."""
    return NONE if _absent(value) else f"{value:+.{places}f}".replace("-", MINUS)


def whole(value: float | None) -> str:
    """A count with separators between the thousands."""
    return NONE if _absent(value) else f"{value:,.0f}"


def span(value: Mapping[str, float] | None, scale: float = 1, places: int = 1) -> str:
    """The two ends of an interval, scaled: 94.8-95.4 with a proper dash."""
    if value is None:
        return NONE
    low, high = (decimals(value[end] * scale, places) for end in ("low", "high"))
    return f"{low}{DASH}{high}"


def amount(value: float | None) -> str:
    """Bytes in the largest decimal unit that leaves at least one."""
    if value is None or _absent(value):
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds as milliseconds, seconds, minutes or hours, to about three figures."""
    if seconds is None or _absent(seconds):
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def times(ratio: float) -> str:
    """A factor, to about three figures: 44.1 times."""
    return f"{ratio:.1f} times" if ratio < 100 else f"{ratio:,.0f} times"


def _absent(value: float | None) -> bool:
    return value is None or not math.isfinite(value)
