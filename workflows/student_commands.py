"""The command `students`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.workflows.printing import console


def students(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or any with trained students.")],
    best: Annotated[
        str | None,
        typer.Option(metavar="METRIC", help="Print the path of the best weights; -nll: smallest."),
    ] = None,
    show: Annotated[
        str | None, typer.Option(metavar="NAME", help="One student's records in full.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="ONE OTHER", help="What differs in two students, seed by seed."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Also what its teachers cost, and N*, in measured seconds.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")
    ] = False,
) -> None:
    """List the trained students of a folder with their metrics, 95% intervals over seeds."""
    from stillroom.storage.cache import Cache
    from stillroom.workflows import students as known

    records, stopped = known.records_below(folder), known.stopped_below(folder)
    if best is not None:
        found = known.best(records, best)
        said = {"student": found.name, "seed": found.seed, "weights": str(found.weights)}
        print(json.dumps(said) if as_json else found.weights)
    elif show is not None:
        chosen = [dict(each.content) for each in stopped if each.name == show]
        if not chosen or any(record.name == show for record in records):
            chosen += [dict(record.content) for record in known.named(records, show)]
        print(json.dumps(chosen, indent=2, ensure_ascii=False))
    elif compare is not None:
        print("\n".join(known.difference_lines(records, *compare)))
    else:
        lines = known.summary(records)
        costs = None if cache is None else known.ledger(records, Cache(cache), stopped)
        early = [dict(each.content) for each in stopped]
        if as_json:
            print(
                json.dumps(
                    {"students": lines, "ledger": costs, "stopped": early},
                    indent=2,
                    ensure_ascii=False,
                )
            )
        else:
            _print_table(lines)
            print("".join(f"{known.stopped_line(each)}\n" for each in stopped), end="")
            if costs is not None:
                print("\n".join(_ledger_lines(costs)))


def _print_table(lines: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    metrics = list(dict.fromkeys(m for line in lines for m in line["metrics"]))
    table = Table()
    for heading in ("student", "recipe", "parameters", "rows", "seeds", *metrics, "s"):
        table.add_column(heading, justify="left" if heading in ("student", "recipe") else "right")
    for line in lines:
        values = [_spelled(line["metrics"].get(metric)) for metric in metrics]
        counts = (f"{line['parameters']:,}", f"{line['rows']:,}", str(len(line["seeds"])))
        seconds = f"{line['seconds']['mean']:.1f}"
        table.add_row(line["student"], line["recipe"], *counts, *values, seconds)
    console().print(table)


def _spelled(at: Mapping[str, float] | None) -> str:
    if at is None:
        return ""
    half = (at["high"] - at["low"]) / 2
    return f"{at['mean']:.4f} ± {half:.4f}" if half else f"{at['mean']:.4f}"


def _ledger_lines(costs: Mapping[str, Any]) -> list[str]:
    said = [
        f"teachers: {costs['teacher_seconds']:.1f} s for {costs['teacher_rows']:,} rows once "
        f"({costs['teaching_seconds']:.1f} s with encoding and writing)",
        f"students: {costs['student_seconds']:.1f} s for {costs['trainings']} trainings",
    ]
    if costs["stopped"]:
        said.append(
            f"stopped early: {costs['stopped_seconds']:.1f} s for {costs['stopped']} students"
        )
    if costs["online_teacher_seconds"] is not None:
        said.append(
            f"the teacher inside every training would have been {costs['online_teacher_seconds']:.1f} s "
            f"({costs['rows_read']:,} rows)"
        )
    if costs["students"] is not None:
        number = costs["students"]
        said.append(f"N*: the cache is cheaper from {number} such training{'s' * (number > 1)} on")
    return said
