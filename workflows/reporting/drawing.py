"""How the page's figures are drawn: SVG text without fonts, links or colours of its own.

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

Student = Mapping[str, Any]
"""A student of gathered results."""
Look = tuple[str, str, str]
"""Colour, marker and dash of a line."""
INK = "#010101"  # stands for the page's text colour until the SVG is written
# Light-mode colours, told apart by the usual kinds of colour blindness; the page's style sheet
# holds the dark-mode ones under the same names.
SERIES = {"#0072b2": "s0", "#b84a00": "s1", "#00805e": "s2", "#a8487f": "s3", "#7a6200": "s4"}
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
LABEL_POINTS = [(ORANGE, marker, "") for marker in ("s", "D", "^", "v", "o", "P", "X", "<", ">")]
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


def svg(key: str, label: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """One set of axes, in inches of 72 units each; `key` keeps the ids of two figures of a page apart."""
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


def line_looks(students: Sequence[Student]) -> list[Look]:
    """Colour, marker and dash for each student: the same recipe, terms and rows, the same look."""
    kinds = [(bool(s["uses_teacher"]), s["recipe"], str(s["terms"]), s["rows"]) for s in students]
    looks: dict[tuple[Any, ...], Look] = {}
    for kind in kinds:
        family = TAUGHT_LINES if kind[0] else LABEL_LINES
        used = sum(other[0] == kind[0] for other in looks)
        looks.setdefault(kind, family[used % len(family)])
    return [looks[kind] for kind in kinds]


def point_looks(students: Sequence[Student]) -> list[Look]:
    """Of points beside each other: every student has its own look, while there are enough."""
    looks: list[Look] = []
    for student in students:
        family = TAUGHT_LINES if student["uses_teacher"] else LABEL_POINTS
        used = sum(s["uses_teacher"] == student["uses_teacher"] for s in students[: len(looks)])
        looks.append(family[used % len(family)])
    return looks


def wrapped(name: str, width: int) -> str:
    """The name on at most two lines."""
    return "\n".join(textwrap.wrap(name, width, max_lines=2, placeholder=" …")) or name
