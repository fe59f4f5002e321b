"""The page's figures: intervals, a metric against size and cost, curves, reliability, bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Affine2D

from stillroom.workflows.reporting.drawing import (
    BLUE,
    GREEN,
    INK,
    LABELS_ONLY,
    ORANGE,
    TAUGHT,
    Look,
    Student,
    svg,
    wrapped,
)
from stillroom.workflows.reporting.metrics import Metric
from stillroom.workflows.spelling import duration, whole


def intervals(
    key: str, students: Sequence[Student], metric: Metric, teacher: float | None = None
) -> str:
    """A dot and an interval for each student, its seeds as small dots, the teacher as a line."""

    def draw(axes: Axes) -> None:
        for row, student in enumerate(students):
            look = TAUGHT if student["uses_teacher"] else LABELS_ONLY
            seeds = [
                m for run in student["runs"] if (m := run["metrics"].get(metric.name)) is not None
            ]
            axes.plot(seeds, [row + 0.27] * len(seeds), ".", color=look["color"], ms=4, alpha=0.6)
            value = student["metrics"][metric.name]
            if len(student["runs"]) > 1:
                axes.plot([value["low"], value["high"]], [row, row], color=look["color"], lw=2)
            axes.plot([value["mean"]], [row], lw=0, markersize=6, markeredgewidth=1.5, **look)
        if teacher is not None:
            axes.axvline(teacher, color=INK, lw=1, ls="--")
            left, right = axes.get_xlim()
            late = teacher > (left + right) / 2
            axes.annotate(
                f"teacher {metric.spell(teacher)}",
                (teacher, -0.95),
                (-4 if late else 4, 0),
                textcoords="offset points",
                ha="right" if late else "left",
                va="top",
            )
        names = [wrapped(s["name"], 22) for s in students]
        axes.set_yticks(range(len(students)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(students) - 0.4, -1.0)
        axes.margins(x=0.08)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_spelled(metric)))
        axes.set_xlabel(_axis(metric))

    told = "; ".join(
        f"{s['name']} {metric.spell(s['metrics'][metric.name]['mean'])}" for s in students
    )
    reference = "" if teacher is None else f"; the teacher {metric.spell(teacher)}"
    height = 0.75 + 0.38 * len(students)
    return svg(key, f"{metric.label}: {told}{reference}", 4.6, height, draw)


def against(
    key: str,
    students: Sequence[Student],
    looks: Sequence[Look],
    metric: Metric,
    what: str,
    teacher: tuple[float | None, float | None] = (None, None),
) -> str:
    """A metric against `what` its student has: "parameters", or the mean "seconds" of a training.

    `teacher` is its own place there and its metric; with the metric alone it is a line.
    """
    places = [_place_of(student, what) for student in students]
    at, level = teacher
    every = [place for place in (*places, at) if place]
    wide = len(every) == len(places) + (at is not None) and max(every) > 5 * min(every)

    ends = [student["metrics"][metric.name] for student in students]
    levels = [e[end] for e in ends for end in ("low", "high")] + [
        v for v in (level,) if v is not None
    ]

    def draw(axes: Axes) -> None:
        # Said, not found: what is moved aside would be taken for data of its own.
        if wide:
            axes.set_xscale("log")
            axes.set_xlim(min(every) / 1.6, max(every) * 1.6)
            axes.xaxis.set_major_locator(LogLocator(10, (1.0, 3.0), numticks=6))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            room = 0.12 * (max(every) - min(every)) or 0.5 * max(every) or 1.0
            axes.set_xlim(max(min(every) - room, 0), max(every) + room)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        room = 0.06 * (max(levels) - min(levels)) or 0.1 * abs(max(levels)) or 1.0
        axes.set_ylim(min(levels) - room, max(levels) + room)
        for row, (student, place) in enumerate(zip(students, places, strict=True)):
            (colour, marker, _), value = looks[row], student["metrics"][metric.name]
            alike = [i for i, other in enumerate(places) if other == place]
            # Students of one size stand beside each other, not upon.
            aside = 7 * (alike.index(row) - (len(alike) - 1) / 2)
            moved = axes.transData + Affine2D().translate(aside, 0)
            if len(student["runs"]) > 1:
                bounds = [value["low"], value["high"]]
                axes.plot([place, place], bounds, color=colour, lw=1.2, transform=moved)
            axes.plot(
                [place],
                [value["mean"]],
                lw=0,
                marker=marker,
                color=colour,
                markersize=6,
                markerfacecolor=colour if student["uses_teacher"] else "none",
                transform=moved,
                label=_legend_name(student),
            )
        if level is not None:
            if at is None:
                axes.axhline(level, color=INK, lw=1, ls=":")
            else:
                axes.plot([at], [level], lw=0, marker="D", color=INK, label=" the teacher")
        spell = _short if what == "parameters" else duration
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spell(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(_spelled(metric)))
        axes.set_xlabel(what if what == "parameters" else "training time")
        axes.set_ylabel(_axis(metric))
        _legend(axes, students)

    told = "; ".join(
        f"{s['name']} {metric.spell(s['metrics'][metric.name]['mean'])} with {_told(place, what)}"
        for s, place in zip(students, places, strict=True)
    )
    height = 2.9 + 0.16 * len(students)
    return svg(key, f"{metric.label} against {what}: {told}", 4.6, height, draw)


def _place_of(student: Student, what: str) -> float:
    return float(student["parameters"] if what == "parameters" else student["seconds"]["mean"])


def _told(place: float, what: str) -> str:
    return f"{whole(place)} parameters" if what == "parameters" else duration(place)


def _short(value: float) -> str:
    """2,000 as 2k, 3,000,000 as 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def reliability(key: str, name: str, bins: Sequence[Mapping[str, float]], kind: str) -> str:
    """Accuracy against confidence by bin; the area of a point grows with its number of rows.

    `kind` is "teacher", "taught" or "labels" and chooses colour and marker.
    """
    looks: dict[str, tuple[str, str]] = {"teacher": (INK, "D"), "taught": (BLUE, "o")}
    colour, marker = looks.get(kind, (ORANGE, "s"))

    def draw(axes: Axes) -> None:
        most = max(b["count"] for b in bins)
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls="--", alpha=0.6)
        axes.plot(x, y, color=colour, lw=1)
        sizes = [8 + 72 * b["count"] / most for b in bins]
        axes.scatter(x, y, s=sizes, color=colour, marker=marker, alpha=0.75, lw=0, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        # Ticks at the two ends only, so that the axis's name fits between them.
        axes.set(xticks=(0, 1), yticks=(0, 1), xticklabels=("0", "100%"), yticklabels=("0", "100%"))
        axes.set_xlabel("confidence", labelpad=-9)
        axes.set_ylabel("accuracy", labelpad=-16)

    told = "; ".join(f"{b['confidence']:.0%} sure, {b['accuracy']:.0%} right" for b in bins)
    return svg(key, f"Reliability of {name}: {told}", 2.35, 2.1, draw)


def curves(
    key: str,
    title: str,
    students: Sequence[Student],
    looks: Sequence[Look],
    metric: Metric,
    teacher: float | None,
) -> str:
    """Mean over the seeds after each epoch, one line a student; dotted: the teacher."""
    lines = [mean_curve(student, metric.name) for student in students]

    def draw(axes: Axes) -> None:
        for student, (epochs, means), (colour, marker, dash) in zip(
            students, lines, looks, strict=True
        ):
            axes.plot(
                epochs,
                means,
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=4,
                markerfacecolor="none" if marker == "s" else colour,
                markevery=max(1, len(epochs) // 8),
                lw=1.5,
                label=_legend_name(student),
            )
        if teacher is not None:
            axes.axhline(teacher, color=INK, lw=1, ls=":")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_spelled(metric)))
        axes.set(xlabel="epoch", ylabel=_axis(metric))
        _legend(axes, students)

    told = "; ".join(
        f"{s['name']} from {metric.spell(m[0])} to {metric.spell(m[-1])}"
        for s, (_, m) in zip(students, lines, strict=True)
    )
    label = f"{metric.label} by epoch, {title}: {told}"
    return svg(key, label, 4.6, 2.9 + 0.16 * len(students), draw)


def mean_curve(student: Student, metric: str) -> tuple[list[int], list[float]]:
    """Epochs and, for each, the mean over the seeds that reached it and have the metric there."""
    found: dict[int, list[float]] = {}
    for run in student["runs"]:
        for point in run["curve"]:
            if metric in point and "epoch" in point:
                found.setdefault(int(point["epoch"]), []).append(point[metric])
    epochs = sorted(found)
    return epochs, [sum(found[e]) / len(found[e]) for e in epochs]


def spread(key: str, axis: str, edges: Sequence[float], counts: Sequence[int]) -> str:
    """How many rows lie between each two edges, on a logarithmic axis of rows."""

    def draw(axes: Axes) -> None:
        width = [b - a for a, b in pairwise(edges)]
        axes.bar(edges[:-1], counts, width, align="edge", fc=BLUE, ec="none", log=True)
        axes.set(xlabel=axis, ylabel="rows")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0.7)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())

    told = (
        f"{counts[0]:,} of {sum(counts):,} rows below {edges[1]:.3g}, the largest {edges[-1]:.3g}"
    )
    return svg(key, f"{axis}: {told}", 4.6, 2.2, draw)


def _legend_name(student: Student) -> str:
    """Matplotlib leaves out labels that begin with "_"."""
    return f" {wrapped(student['name'], 36)}"


def _legend(axes: Axes, students: Sequence[Student]) -> None:
    columns = 2 if max(len(s["name"]) for s in students) <= 20 else 1
    figure = axes.get_figure()
    assert figure is not None
    figure.legend(loc="outside lower center", ncols=columns, handlelength=3.5)


def _axis(metric: Metric) -> str:
    """Its name, and where that is not plain which direction is the better one."""
    return f"{metric.label} (lower is better)" if metric.sign < 0 else metric.label


def _spelled(metric: Metric) -> Callable[[float, int | None], str]:
    """Of an axis: percent of a share, the number otherwise."""

    def spelled(value: float, _: int | None = None) -> str:
        return f"{100 * value:g}%" if metric.is_share else f"{value:g}"

    return spelled


def bars(
    key: str, axis: str, parts: Sequence[str], rows: Sequence[tuple[str, Sequence[float], str]]
) -> str:
    """Horizontal bars, one a row: its name, its length in each part, the text at its end."""

    def draw(axes: Axes) -> None:
        start = [0.0] * len(rows)
        for index, part in enumerate(parts):
            size = [lengths[index] for _, lengths, _ in rows]
            colour, hatch = ((INK, "///"), (BLUE, ""))[index] if len(parts) > 1 else (GREEN, "")
            fill = "none" if hatch else colour
            axes.barh(
                range(len(rows)), size, 0.6, start, fc=fill, ec=colour, hatch=hatch, label=part
            )
            start = [a + b for a, b in zip(start, size, strict=True)]
        for row, (_, _, text) in enumerate(rows):
            axes.annotate(text, (start[row], row), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [wrapped(name, 22) for name, _, _ in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, max(*start, 1e-9) * 1.3), xlabel=axis)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if len(parts) > 1:
            figure = axes.get_figure()
            assert figure is not None
            figure.legend(loc="outside lower center", ncols=2)

    told = "; ".join(f"{name} {text}" for name, _, text in rows)
    height = 0.7 + 0.4 * len(rows) + (0.3 if len(parts) > 1 else 0)
    return svg(key, f"{axis}: {told}", 4.6, height, draw)
