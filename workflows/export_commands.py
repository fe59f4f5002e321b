"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillroom.workflows.flow_command import Config, Sets, arguments_of


def export(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(help="A bundled workflow (digits) or a Python file.")],
    name: Annotated[str, typer.Argument(help="The student.")],
    seed: Annotated[int | None, typer.Option(help="Of which seed; its first.")] = None,
    formats: Annotated[
        str,
        typer.Option("--format", help="Of safetensors (always written), pt2, onnx; with commas."),
    ] = "safetensors",
    weights: Annotated[
        str, typer.Option(help="best (those that its metrics are of), last, or average.")
    ] = "best",
    outputs: Annotated[
        str, typer.Option(help="With commas; its answer, or what the module returns.")
    ] = "",
    to: Annotated[
        Path | None, typer.Option(help="Folder to write to; export/NAME-SEED of the run's folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; out/FLOW if not given.")
    ] = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")
    ] = False,
) -> None:
    """Write a trained student as inference needs it, and check what is written on the test rows.

    Its weights and what they are, a torch.export program (pt2), an ONNX file (extra export). Each is
    loaded again and must answer as the student does; exit code 1 when one does not, or cannot be made.
    """
    from stillroom.workflows.exporting import Wanted, export_workflow

    wanted = Wanted(
        *(name, seed, _listed(formats), weights, _listed(outputs), "" if to is None else str(to))
    )
    export_workflow(flow, arguments_of(context, config, sets), out, wanted, as_json)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
