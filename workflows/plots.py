"""The report's figures as SVG text to put inside HTML: no fonts, links or colours of their own.

Text stays text and takes the page's font; ink is the page's text colour and the series colours
are CSS variables, so that one figure serves light mode, dark mode and print. Equal input gives
equal bytes. Matplotlib is imported here, so import this module late.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Student = Mapping[str, Any]

INK = "#010101"  # stands for the page's text colour until the SVG is written
# Light-mode colours, told apart by the usual kinds of colour blindness; the page's style sheet
# holds the dark-mode ones under the same names.
SERIES = {"#0072b2": "s0", "#c75000": "s1", "#00805e": "s2", "#a8487f": "s3", "#7a6200": "s4"}
BLUE, ORANGE, GREEN, PINK, OLIVE = SERIES
TAUGHT: dict[str, Any] = {"color": BLUE, "marker": "o", "markerfacecolor": BLUE}
LABELS_ONLY: dict[str, Any] = {"color": ORANGE, "marker": "s", "markerfacecolor": "none"}
DASHES = (("o", "-"), ("^", "--"), ("D", "-."), ("v", ":"))
# Sixteen different lines; the first four differ in colour, marker and dash alike.
TAUGHT_LINES = [
    (colour, *DASHES[(index + turn) % 4])
    for turn in range(4)
    for index, colour in enumerate((BLUE, GREEN, PINK, OLIVE))
]
LABEL_LINES = [(ORANGE, "s", dash) for _, dash in DASHES]
DEFAULTS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # wider than most page fonts: what fits here fits there
    "font.size": 10,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def _svg(key: str, label: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """Draw one set of axes (inches; 72 units each); `key` keeps the ids of two figures apart."""
    with style.context(["default", {**DEFAULTS, "svg.hashsalt": key}]), warnings.catch_warnings():
        # The reader's browser draws the text: that DejaVu lacks a letter does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    view = re.search(r'viewBox="[\d. ]+"', text)
    assert view is not None, "matplotlib always writes a viewBox"
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->|<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    # Only inside tags: names and other text come through as they are.
    body = re.sub(r"<[^>]*>", lambda tag: _page_tag(tag[0], key), body)
    body = re.sub(r">\s+<", ">\n<", body).strip()
    return f'<svg {view[0]} role="img" aria-label="{escape(label)}">\n{body}'


def _page_tag(tag: str, key: str) -> str:
    """One tag with the page's colours and font, and ids that no other figure of the page has."""
    tag = re.sub(r"\s+", " ", tag)
    tag = re.sub(
        r'^<g id="[^"]*"', "<g", tag
    )  # matplotlib's names for parts; nothing refers to them
    tag = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{key}-", tag).replace(
        "xlink:href", "href"
    )
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag).replace(INK, "currentColor")
    for colour, name in SERIES.items():
        tag = tag.replace(colour, f"var(--{name}, {colour})")
    return tag


def intervals(
    key: str, students: Sequence[Student], metric: str, axis: str, teacher: float | None = None
) -> str:
    """A dot and an interval for each student, its seeds as small dots, the teacher as a line."""

    def draw(axes: Axes) -> None:
        for row, student in enumerate(students):
            look = TAUGHT if student["uses_teacher"] else LABELS_ONLY
            seeds = [run[metric] for run in student["runs"] if run.get(metric) is not None]
            axes.plot(seeds, [row + 0.27] * len(seeds), ".", color=look["color"], ms=4, alpha=0.6)
            value = student[metric]
            if not student["one_seed"]:
                axes.plot([value["low"], value["high"]], [row, row], color=look["color"], lw=2)
            axes.plot([value["mean"]], [row], lw=0, markersize=6, markeredgewidth=1.5, **look)
        if teacher is not None:
            axes.axvline(teacher, color=INK, lw=1, ls="--")
            left, right = axes.get_xlim()
            late = teacher > (left + right) / 2
            axes.annotate(
                f"teacher {teacher:.1%}",
                (teacher, -0.95),
                (-4 if late else 4, 0),
                textcoords="offset points",
                ha="right" if late else "left",
                va="top",
            )
        names = [_wrapped(s["name"], 22) for s in students]
        axes.set_yticks(range(len(students)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(students) - 0.4, -1.0)
        axes.margins(x=0.08)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set_xlabel(axis)

    told = "; ".join(f"{s['name']} {s[metric]['mean']:.1%}" for s in students)
    reference = "" if teacher is None else f"; the teacher {teacher:.1%}"
    height = 0.75 + 0.38 * len(students)
    return _svg(key, f"{axis}: {told}{reference}", 4.6, height, draw)


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
    return _svg(key, f"Reliability of {name}: {told}", 2.35, 2.1, draw)


def line_looks(students: Sequence[Student]) -> list[tuple[str, str, str]]:
    """Colour, marker and dash for each student: the same recipe and labels, the same look."""
    kinds = [(bool(s["uses_teacher"]), s.get("recipe"), s.get("labels")) for s in students]
    looks: dict[tuple[bool, Any, Any], tuple[str, str, str]] = {}
    for kind in kinds:
        family = TAUGHT_LINES if kind[0] else LABEL_LINES
        used = sum(other[0] == kind[0] for other in looks)
        looks.setdefault(kind, family[used % len(family)])
    return [looks[kind] for kind in kinds]


def curves(
    key: str,
    title: str,
    students: Sequence[Student],
    looks: Sequence[tuple[str, str, str]],
    teacher: float,
) -> str:
    """Mean accuracy over the seeds after each epoch, one line a student; dotted: the teacher."""
    lines = [mean_curve(student) for student in students]

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
                label=f" {student['name']}",  # matplotlib leaves out labels that begin with "_"
            )
        axes.axhline(teacher, color=INK, lw=1, ls=":")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set(xlabel="epoch", ylabel="accuracy")
        columns = 2 if max(len(s["name"]) for s in students) <= 20 else 1
        figure = axes.get_figure()
        assert figure is not None
        figure.legend(loc="outside lower center", ncols=columns, handlelength=3.5)

    told = "; ".join(
        f"{s['name']} from {m[0]:.1%} to {m[-1]:.1%}"
        for s, (_, m) in zip(students, lines, strict=True)
    )
    return _svg(key, f"Accuracy by epoch, {title}: {told}", 4.6, 2.9 + 0.16 * len(students), draw)


def mean_curve(student: Student) -> tuple[list[int], list[float]]:
    """Epochs and, for each, the mean accuracy over the seeds that reached it."""
    found: dict[int, list[float]] = {}
    for run in student["runs"]:
        for point in run.get("curve", ()):
            found.setdefault(point["epoch"], []).append(point["accuracy"])
    epochs = sorted(found)
    return epochs, [sum(found[e]) / len(found[e]) for e in epochs]


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
        axes.set_yticks(range(len(rows)), [_wrapped(name, 22) for name, _, _ in rows])
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
    return _svg(key, f"{axis}: {told}", 4.6, height, draw)


def _percent(value: float, _: int | None = None) -> str:
    return f"{100 * value:g}%"


def _wrapped(name: str, width: int) -> str:
    """The name on at most two lines."""
    return "\n".join(textwrap.wrap(name, width, max_lines=2, placeholder=" …")) or name
