"""Recipes for people and for machines: a line, a description, the page of all with their proofs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.stages import recipes
from stillroom.stages.proving.proof import Proof
from stillroom.stages.recipe import Recipe
from stillroom.storage.files import read_json

HEADER = """# Recipes

Every published method that stillroom has, one file each in `stages/recipes/`, and what its proof measured. This page is made from those files and from `docs/proofs/` by `make proofs`, which runs everything again; `stillroom prove NAME` runs one.

A proof is the smallest honest experiment for what a paper claims, on data that fits a laptop: equal budgets for all arms, five seeds or more. Settings are not tuned on test rows; where somebody looked at them while setting up, or tried something else, the second half of this page says so. Differences are paired by seed, with a 95% t-interval; positive is in the claim's favour. *Holds* means that the interval lies above zero (or above minus the stated margin), *contrary here* below it, *no difference here* neither. A small experiment that shows no difference says nothing against a paper's large one.
"""  # noqa: E501


def recipe_lines() -> dict[str, str]:
    """Every method and the first line of its file."""
    return {
        name: (recipes.module(name).__doc__ or "").strip().splitlines()[0]
        for name in recipes.names()
    }


def describe_recipe(name: str) -> dict[str, Any]:
    """A method's docstring, terms, what it reads and of what shape, defaults and claims, as plain JSON."""
    module = recipes.module(name)
    made = module.recipe()
    parameters = inspect.signature(module.recipe).parameters.values()
    proof = getattr(module, "PROOF", None)
    named = [c.name for c in (made.answer, made.controller) if hasattr(c, "name")]
    return {
        "name": made.name,
        "paper": made.paper,
        "family": made.family,
        "about": inspect.cleandoc(module.__doc__ or ""),
        "terms": [repr(term) for term in made.terms],
        "step": getattr(made.step, "__name__", "") or ("its own" if made.step else ""),
        "reads": list(made.reads),
        "columns": list(made.columns),
        "streams": list(made.streams),
        "tables": list(made.tables),
        "passes": {n: list(given) for n, given in made.passes.items()},
        "heads": [h.name + (" (kept)" if h.kept else "") for h in made.heads],
        "state": [] if made.controller is None else _states(made),
        "answer": named[:1] if made.answer is not None else [],
        "shapes": dict(made.shapes),
        "defaults": {p.name: p.default for p in parameters},
        "proof": None if not isinstance(proof, Proof) else proof.data,
        "claims": [f"{c.better} > {c.than} ({c.metric})" for c in proof.claims]
        if isinstance(proof, Proof)
        else [],
    }


def _states(made: Recipe) -> list[str]:
    assert made.controller is not None
    return sorted(made.controller.start(**made.controller.settings))


def description_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """What `recipes show` prints: the docstring, then everything that is there."""
    yield described["about"]
    yield ""
    for key, value in described.items():
        if key in ("name", "about") or value in ("", [], {}, None):
            continue
        if isinstance(value, dict):
            width = max(map(len, value))
            yield f"{key}:"
            yield from (f"  {name:<{width}}  {said}" for name, said in value.items())
        elif key in ("terms", "claims"):
            yield f"{key}:"
            yield from (f"  {one}" for one in value)
        else:
            yield f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}"


def page(proofs: Path) -> str:
    """docs/recipes.md: every method with its paper, what it reads, its claims and what was measured."""
    table = [
        "| method | family | reads | claim | measured difference | verdict |",
        "|" + "---|" * 6,
    ]
    notes = []
    for name in recipes.names():
        described = describe_recipe(name)
        run = newest(proofs, described["name"])
        title = described["about"].splitlines()[0].rstrip(".")
        known = f"**{described['name']}**"
        reads = ", ".join(f"`{r}`" for r in described["reads"]) or "no teacher"
        start = f"| {known} | {described['family']} | {reads}"
        for claim in run["claims"] if run else ():
            table.append(f"{start} | {_claimed(claim)} | {_measured(claim)} | {claim['verdict']} |")
            start = "| | |"
        if not run:
            table.append(
                f"{start} | a baseline | | |"
                if not described["claims"]
                else f"{start} | not run yet | | |"
            )
        notes.append(f"- {known}: {title}.")
        if run:
            tried = f" {run['tried'].rstrip('.')}." if run["tried"] else ""
            took = f"{run['seeds']} seeds, {run['seconds']:.0f} s, {run['at'][:10]}"
            notes.append(f"  {run['data'].rstrip('.')}.{tried} ({took})")
    return "\n".join([HEADER, *table, "", "## Methods and their experiments", "", *notes, ""])


def newest(proofs: Path, name: str) -> dict[str, Any] | None:
    """The last whole run of a recipe's proof; None where there is none."""
    place = proofs / f"{name}.json"
    runs = [r for r in read_json(place)["runs"] if not r["smoke"]] if place.exists() else []
    return runs[-1] if runs else None


def _claimed(claim: Mapping[str, Any]) -> str:
    margin = f" by no more than {claim['margin']:g} worse" if claim["margin"] else ""
    order = ">" if claim["larger"] else "<"
    said = f"; {claim['says']}" if claim["says"] else ""
    return f"{claim['better']} {order} {claim['than']} in {claim['metric']}{margin}{said}"


def _measured(claim: Mapping[str, Any]) -> str:
    at, (better, than) = claim["difference"], claim["means"]
    return (
        f"{at['mean']:+.3g} [{at['low']:+.3g}, {at['high']:+.3g}] ({better:.3g} against {than:.3g})"
    )
