"""The page itself: gathered results in, a single HTML file out that needs no other.

Matplotlib and Jinja are imported only when a page is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.storage.errors import MissingPackageError
from stillroom.storage.files import write_atomic, write_json
from stillroom.workflows.reporting import words
from stillroom.workflows.reporting.changes import (
    kept,
    kept_results,
    results_beside,
    with_changes,
)
from stillroom.workflows.reporting.comparing import Line, against_labels
from stillroom.workflows.reporting.metrics import Metric, metrics_from
from stillroom.workflows.spelling import NONE, amount, decimals, duration, share, signed, whole

_LINES, _POINTS, _DIAGRAMS, _VERDICTS = 8, 16, 12, 4
"""How many students share a panel of curves and one of points, how many have a reliability diagram, and
how many metrics distillation is judged by in the table."""


def write_page(results: Mapping[str, Any], page: Path) -> Path:
    """Write the page of gathered results, and the results beside it; return the results' path.

    What the results file had before is what the page compares with. Equal results and an equal file
    give equal bytes. FormatError when the results file is another's, ValueError when there are no
    students, ImportError that names the extra when Matplotlib or Jinja is missing.
    """
    beside = results_beside(page)
    whole_results = with_changes(results, kept_results(beside))
    text = page_text(whole_results)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, [text.encode()])
    write_json(beside, kept(whole_results))
    return beside


def page_text(results: Mapping[str, Any]) -> str:
    """The page of gathered results, with the `changes` that they have."""
    if not results["students"]:
        raise ValueError("results['students'] is empty: a report needs at least one student")
    try:
        import jinja2
        from markupsafe import Markup

        from stillroom.workflows.reporting import drawing, figures
    except ImportError as error:
        raise MissingPackageError(
            f"the report needs Matplotlib and Jinja ({error}): pip install 'stillroom[report]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    spelled = (share, decimals, signed, whole, amount, duration)
    environment.filters.update(**{f.__name__: f for f in spelled}, day=_day)
    environment.globals.update(
        figures=figures,
        svg=Markup,
        absent=NONE,
        style=Markup(_beside("page.css")),
        words=words,
        shape=_shape,
    )
    shown = _shown(results)
    names = [student["name"] for student in shown["students"]]
    return environment.get_template("page.html.j2").render(
        **shown,
        looks=dict(zip(names, drawing.line_looks(shown["students"]), strict=True)),
        points=drawing.point_looks(shown["scattered"]),
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _day(at: float | None) -> str:
    """Seconds since 1970 as a day, UTC."""
    import time

    return NONE if at is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def _shape(axes: Sequence[int | None]) -> str:
    """Of a row; an axis of which rows have different lengths is spelled n."""
    return (
        " \N{MULTIPLICATION SIGN} ".join("n" if axis is None else f"{axis:,}" for axis in axes)
        or "scalar"
    )


def _shown(results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template names, chosen and in order."""
    students = results["students"]
    metrics = metrics_from(results["metrics"])
    main = next((m for m in metrics if m.name == results["main"]), None)
    ordered = [m for m in metrics if m == main] + [m for m in metrics if m != main]
    judged = [m for m in ordered if m.sign and m.name != "agreement"][:_VERDICTS]
    comparisons = against_labels(students, judged, main) if main else []
    best_first = _best_first(students, main)
    teacher = next((r for r in results["references"] if r.get("what") == "teacher"), None)
    told = [m for m in judged if m == main or m.name == "ece"]
    having = [s for s in students if main and main.name in s["metrics"]]
    scattered = [s for s in best_first[:_POINTS] if s in having]
    curve = _curve_metric(students, main, metrics)
    second = next((m for m in ordered if m.name in ("agreement", "kl") and m != main), None)
    reliable = [s for s in students if s["reliability"]]
    return {
        **results,
        "every_metric": ordered,
        "main": main,
        "judged": judged,
        "comparisons": comparisons,
        "summary": words.summarise(results, comparisons, main, told),
        "facts": _facts(results),
        "teacher": teacher,
        "having": having,
        "scattered": scattered,
        "sizes": len({s["parameters"] for s in scattered}),
        "second": second,
        "agreeing": [s for s in students if second and second.name in s["metrics"]],
        "curve": curve,
        "panels": _panels(best_first, curve),
        "reliable": [s for s in best_first if s in reliable][:_DIAGRAMS]
        if len(reliable) > _DIAGRAMS
        else reliable,
        "reliable_of": len(reliable),
        "one_seed": any(len(s["runs"]) < 2 for s in students),
        "change_lines": words.change_words(results["changes"]) if results.get("changes") else [],
        "moved": _moved_metrics(results.get("changes"), ordered),
        "cost_words": words.cost_words(results["cost"] or {}),
        "cost_bars": words.cost_bars(results["cost"] or {}),
        "sized": [s for s in (results["cache"] or {}).get("signals", ()) if s.get("bytes")],
        "changes": results.get("changes"),
    }


def _best_first(students: Sequence[Line], main: Metric | None) -> list[Line]:
    """In their own order where the page's metric has no better direction."""
    if main is None or not main.sign:
        return list(students)

    def place(student: Line) -> float:
        value = student["metrics"].get(main.name)
        return math.inf if value is None else -main.sign * float(value["mean"])

    return sorted(students, key=place)


def _facts(results: Mapping[str, Any]) -> list[str]:
    """What stands below the title."""
    trainings = sum(len(s["runs"]) for s in results["students"])
    count = len(results["students"])
    dataset = results["dataset"]
    found = [results["when"], dataset.get("name")]
    for name, what in (("train_rows", "training rows"), ("test_rows", "held-out rows")):
        found.append(f"{whole(dataset[name])} {what}" if dataset.get(name) else None)
    found.append(
        f"{count} student{'s' * (count != 1)}, {trainings} training{'s' * (trainings != 1)}"
    )
    return [fact for fact in found if fact]


def _curve_metric(
    students: Sequence[Line], main: Metric | None, metrics: Sequence[Metric]
) -> Metric | None:
    """What learning curves are of: the page's metric, or else another that was kept, or the loss."""
    kept_names = {n for s in students for run in s["runs"] for point in run["curve"] for n in point}
    loss = Metric("loss", "lower", False)
    candidates = [*([main] if main else []), *metrics, loss]
    return next((m for m in candidates if m.name in kept_names), None)


def _panels(students: Sequence[Line], curve: Metric | None) -> list[dict[str, Any]]:
    """Students that share a panel of curves: of one architecture, at most a few, the best ones."""
    if curve is None:
        return []
    found: dict[str, list[Line]] = {}
    for student in students:
        if any(curve.name in point for run in student["runs"] for point in run["curve"]):
            found.setdefault(student["architecture"], []).append(student)
    return [
        {"architecture": name, "students": some[:_LINES], "of": len(some)}
        for name, some in found.items()
    ]


def _moved_metrics(changes: Mapping[str, Any] | None, metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that students had before and have now."""
    names = {name for one in (changes or {}).get("changed", ()) for name in one["metrics"]}
    return [m for m in metrics if m.name in names][:_VERDICTS]
