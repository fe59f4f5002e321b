"""Commands that take a workflow: their help also says the workflow's settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Config = Annotated[
    list[Path] | None,
    typer.Option("--config", metavar="FILE", help="YAML file with the workflow's settings."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="One setting; fit.epochs=20 for a part of one."
    ),
]


class FlowCommand(TyperCommand):
    """A command whose `--help` goes on with the settings of the workflow that is named beside it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments: help is printed before they are read."""
        ctx.meta["stillroom.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The command's own help, then the workflow's settings."""
        super().format_help(ctx, formatter)
        flow = self._flow(ctx)
        if flow is None:
            name = ctx.command_path
            print(f"A workflow's settings are flags as well; {name} FLOW --help lists them.\n")
            return
        from stillroom.storage.errors import StillroomError
        from stillroom.workflows.flows import find_workflow
        from stillroom.workflows.settings_words import settings_help

        sys.stdout.flush()
        try:
            print(f"{settings_help(find_workflow(flow), self._flags())}\n")
        except StillroomError as error:
            print(f"stillroom: {error}", file=sys.stderr)
            raise typer.Exit(2) from error

    def _flags(self) -> tuple[str, ...]:
        options = (
            option for param in self.params for option in (*param.opts, *param.secondary_opts)
        )
        return tuple(option for option in options if option.startswith("--"))

    def _flow(self, ctx: Any) -> str | None:
        """The workflow that is named; None where there is none."""
        given = [a for a in ctx.meta["stillroom.arguments"] if a not in ctx.help_option_names]
        try:
            found, _, _ = self.make_parser(ctx).parse_args(args=given)
        except Exception:  # an option without its value, beside --help
            return None
        return str(found["flow"]) if found.get("flow") else None


def arguments_of(
    context: typer.Context, config: list[Path] | None, sets: list[str] | None
) -> list[str]:
    """Everything that a command line says of settings, in one list, as `parse_settings` reads it."""
    files = [f"--config={path}" for path in config or ()]
    return [*files, *(f"--set={text}" for text in sets or ()), *context.args]
