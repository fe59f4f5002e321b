"""The command `report`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillroom.workflows.flow_command import Config, FlowCommand, Sets, arguments_of

if TYPE_CHECKING:
    from stillroom.pipeline.step import Step

_FLOW = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", context_settings=_FLOW, cls=FlowCommand)(report)


def report(
    context: typer.Context,
    flow: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|FLOW", help="A folder with trained students, or a workflow that ran."
        ),
    ],
    cache: Annotated[
        str | None, typer.Option(help="The cache that they read; if not given, the one in there.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; report.html in the folder if not given.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Of a workflow: where it ran; out/NAME if not given.")
    ] = None,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "",
    main: Annotated[
        str, typer.Option(metavar="METRIC", help="The metric that the page is about.")
    ] = "",
    lower: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC", help="Of this metric less is better; can be repeated."),
    ] = None,
    higher: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC", help="Of this metric more is better; can be repeated."),
    ] = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Write the page of a run: students, curves, calibration, the cache, what it all cost.

    It is one HTML file. Of a workflow whose own step writes a page, that page is written again, with
    the inputs on which student and teacher differ; of a folder, from what lies there. The results are
    kept beside it, and the next page says what changed since.
    """
    better = dict.fromkeys(lower or (), "lower") | dict.fromkeys(higher or (), "higher")
    given = {"cache": cache or "", "title": title, "main": main, "better": better}
    said = {name: value for name, value in given.items() if value}
    place = Path(flow)
    if place.is_dir():
        print(f"report: {_of_folder(place, out, said)}")
        return
    from stillroom.workflows.flows import open_flow
    from stillroom.workflows.running import default_folder

    steps = open_flow(flow, arguments_of(context, config, sets))
    ran = folder or default_folder(flow)
    for page in _of_flow(steps, ran, out, said) or [_of_folder(ran, out, said)]:
        print(f"report: {page}")


def _of_folder(folder: Path, out: Path | None, said: Mapping[str, Any]) -> Path:
    from stillroom.storage.cache import Cache
    from stillroom.workflows.reporting.gathering import newest
    from stillroom.workflows.reporting.step import cache_below, report, stopped_lines
    from stillroom.workflows.reporting.writing import write_page
    from stillroom.workflows.students import records_below

    given = dict(said)
    named = given.pop("cache", "")
    given.setdefault("title", folder.resolve().name)
    records = newest(records_below(folder))
    found = Cache(named) if named else cache_below(folder)
    page = out or folder / "report.html"
    write_page(report(records, found, stopped=stopped_lines(folder), **given), page)
    return page


def _of_flow(
    steps: list[Step], folder: Path, out: Path | None, said: Mapping[str, Any]
) -> list[Path]:
    """Let the steps that left a page write it again; none where there are none."""
    from stillroom.pipeline.execute import act, ordered
    from stillroom.pipeline.step import Run

    changed = {**said, **({"page": str(out.absolute())} if out else {})}
    every: dict[str, Step] = {}
    for step in ordered(steps):  # each after what it needs
        needs = tuple(every[needed.name] for needed in step.needs)
        every[step.name] = replace(step, needs=needs, actions={})
        if _left_a_page(folder, step.name):
            taken = {n: v for n, v in changed.items() if _takes(step, n)}
            if lacking := changed.keys() - taken.keys():
                raise typer.BadParameter(
                    f"step {step.name!r} of this workflow writes its own page and takes no "
                    f"{', '.join(sorted(lacking))}; give its folder instead: stillroom report {folder}"
                )
            settings = {**step.settings, **taken}
            written = {"report": step.function}
            every[step.name] = replace(every[step.name], settings=settings, actions=written)
    if not any(step.actions for step in every.values()):
        return []
    done = act(list(every.values()), Run(folder), "report")
    return [folder / str(result["report"]) for result in done.values()]


def _left_a_page(folder: Path, step: str) -> bool:
    """Whether the step's record names a page; the record lies where `execute` writes it."""
    from stillroom.storage.errors import StillroomError
    from stillroom.storage.files import read_json

    try:
        result = read_json(folder / "steps" / f"{step}.json").get("result")
    except (StillroomError, OSError):
        return False
    return isinstance(result, dict) and bool(result.get("report"))


def _takes(step: Step, setting: str) -> bool:
    parameters = inspect.signature(step.function).parameters
    return setting in parameters
