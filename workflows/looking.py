"""The commands that look at a workflow without running it: `graph` and `config show`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillroom.workflows.flow_command import Config, FlowCommand, Sets, arguments_of

_FLOW = {"allow_extra_args": True, "ignore_unknown_options": True}
Flow = Annotated[str, typer.Argument(help="A bundled workflow (digits) or a Python file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]

config_app = typer.Typer(help="Settings of a workflow.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Give the commands to the command line."""
    app.add_typer(config_app, name="config")
    app.command("graph", context_settings=_FLOW, cls=FlowCommand)(graph)


def graph(
    context: typer.Context,
    flow: Flow,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the outputs; out/NAME if not given.")
    ] = None,
    config: Config = None,
    sets: Sets = None,
    svg: Annotated[Path | None, typer.Option(help="Write a picture to this file.")] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Text that GitHub draws.")] = False,
    as_json: Json = False,
) -> None:
    """Draw the steps: what needs what, what would run and why. Nothing is computed."""
    from stillroom.pipeline.step import Run
    from stillroom.storage.files import write_atomic
    from stillroom.workflows.flows import open_flow
    from stillroom.workflows.graph import graph_json, graph_mermaid, graph_of, graph_text
    from stillroom.workflows.graph_svg import graph_svg
    from stillroom.workflows.running import default_folder

    steps = open_flow(flow, arguments_of(context, config, sets))
    nodes = graph_of(steps, Run(out or default_folder(flow)))
    if svg is not None:
        svg.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(svg, [graph_svg(nodes, Path(flow).stem).encode()])
        print(f"picture: {svg}", file=sys.stderr)
    if as_json:
        print(json.dumps(graph_json(nodes), indent=2, ensure_ascii=False))
    elif mermaid:
        print(graph_mermaid(nodes))
    elif svg is None:
        print(graph_text(nodes))


@config_app.command("show", context_settings=_FLOW, cls=FlowCommand)
def show(
    context: typer.Context,
    flow: Flow,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print the settings that a run would have, and where each came from.

    The output is a file that --config takes: stillroom config show FLOW > flow.yaml
    """
    from stillroom.workflows.flows import find_workflow
    from stillroom.workflows.settings import settings_of
    from stillroom.workflows.settings_words import as_config, origins, plain

    settings = settings_of(find_workflow(flow), arguments_of(context, config, sets))
    for notice in settings.notices:
        print(f"stillroom: {notice}", file=sys.stderr)
    if as_json:
        values = {name: plain(value) for name, value in settings.values.items()}
        shown = {"schema": settings.schema, "settings": values, "from": origins(settings)}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        print(as_config(settings))
