"""The page of results, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measuring import Line, Section, Table, Timing

_HEAD = """\
# Benchmarks

`make bench` writes this page. Each time is the median of interleaved rounds (least to most in
brackets); the ratio is stillroom's median ÷ the other's, both from the same rounds, so below 1
stillroom is faster. Files lie in the page cache, as they do while students train.
"""


def page(sections: Sequence[Section], machine: Sequence[str], settings: str) -> str:
    """The whole page."""
    parts = [_HEAD, *(f"- {line}" for line in (*machine, settings)), ""]
    for section in sections:
        parts += [f"## {section.title}", "", section.intro, ""]
        if section.lines:
            parts += [*_comparisons(section.lines), ""]
        for table in section.tables:
            parts += [*_table(table), ""]
        if section.notes:
            parts += [*(f"- {note}" for note in section.notes), ""]
    return "\n".join(parts).rstrip() + "\n"


def _comparisons(lines: Sequence[Line]) -> list[str]:
    columns = ("what", "stillroom", "against", "its time", "ratio", "goal", "met")
    return _table(Table(columns, tuple(_row(line) for line in lines)))


def _row(line: Line) -> tuple[str, ...]:
    goal = ""
    if line.seconds is not None:
        goal = f"≤ {line.seconds:g} s"
    elif line.ratio is not None:
        goal = f"≤ {line.ratio:g}"
    met = {True: "yes", False: "**no**", None: ""}[line.met]
    ratio = f"{_number(line.ours.median / line.other.median)}" if line.other else ""
    other = _time(line.other) if line.other else line.remark
    return (line.what, _time(line.ours), line.against, other, ratio, goal, met)


def _table(table: Table) -> list[str]:
    rows = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return [f"| {' | '.join(row)} |" for row in rows]


def _time(timing: Timing) -> str:
    scale, unit = next(
        (s, u)
        for s, u in ((1, "s"), (1e3, "ms"), (1e6, "µs"))
        if timing.median * s >= 1 or s == 1e6
    )
    low, high = min(timing.seconds) * scale, max(timing.seconds) * scale
    return f"{timing.median * scale:.3g} {unit} ({low:.3g} to {high:.3g})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
