"""The commands `recipes` and `prove`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

recipes_app = typer.Typer(
    help="List the methods, show one, or write the page of all.", invoke_without_command=True
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
_PROOFS = Path("docs/proofs")
Proofs = Annotated[Path, typer.Option(help="Folder with NAME.json of every proof that was run.")]


@recipes_app.callback()
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the methods (one line each), or show one: stillroom recipes show kd."""
    if context.invoked_subcommand is not None:
        return
    from stillroom.workflows.recipe_words import recipe_lines

    lines = recipe_lines()
    if as_json:
        print(json.dumps(lines, indent=2, ensure_ascii=False))
    else:
        width = max(map(len, lines), default=0)
        print("\n".join(f"{name:<{width}}  {line}" for name, line in lines.items()))


@recipes_app.command("show")
def show_recipe(name: str, as_json: Json = False) -> None:
    """The paper, the formula, what it reads, its defaults. NAME is a method, or your own module's
    dotted name."""
    from stillroom.workflows.recipe_words import describe_recipe, description_lines

    described = describe_recipe(name)
    if as_json:
        print(json.dumps(described, indent=2, ensure_ascii=False, default=repr))
    else:
        print("\n".join(description_lines(described)))


@recipes_app.command("page")
def recipes_page(proofs: Proofs = _PROOFS) -> None:
    """Print docs/recipes.md: every method, what it claims and what its proof measured."""
    from stillroom.workflows.recipe_words import page

    print(page(proofs), end="")


def prove(
    names: Annotated[
        list[str] | None, typer.Argument(help="Methods, or your own modules' dotted names.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every method that has a proof.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Each teaches and trains everything anew.")] = 5,
    smoke: Annotated[
        bool, typer.Option(help="Tiny: shows that it runs, and nothing else.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Methods at the same time.")] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(help="Append the run to NAME.json in this folder; docs/proofs where that is."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a method's smallest honest experiment and say whether its claims hold here.

    Exit code 0 whatever the verdict: an experiment that finds no difference has not failed.
    """
    from stillroom.workflows import proving

    chosen = [*(names or ()), *(proving.provable() if everything else ())]
    if not chosen:
        raise typer.BadParameter("name a method, or say --all", param_hint="NAMES")
    if keep is None and _PROOFS.is_dir():
        keep = _PROOFS
    found = []
    for run in proving.run_proofs(chosen, seeds=seeds, smoke=smoke, jobs=jobs):
        found.append(run)
        if not as_json:
            print("\n".join(proving.lines(run)) + "\n", flush=True)
        if keep is not None and not smoke:
            place = proving.keep(run, keep)
            print(f"kept in {place}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
