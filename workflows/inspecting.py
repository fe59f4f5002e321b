"""What there is, for people and for machines: caches, recipes, trained students."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stillroom.stages import recipes
from stillroom.storage.cache import Cache


def describe_cache(path: str) -> dict[str, Any]:
    """Snapshots, segments and their teachers' identities, as plain JSON."""
    cache = Cache(path)
    snapshots = [cache.snapshot(number) for number in cache.snapshots()]
    return {
        "path": str(path),
        "snapshots": [
            {
                "number": s.number,
                "rows": s.rows,
                "why": s.why,
                "signals": {n: signal.to_json() for n, signal in s.signals.items()},
            }
            for s in snapshots
        ],
        "segments": [
            {
                "name": s.path.name,
                "teacher": s.teacher,
                "identity": s.identity,
                "rows": int(s.served().sum()),
                "bytes": s.bytes,
                "signals": {
                    n: {**signal.to_json(), "bytes": s.signal_bytes[n], "error": s.errors[n]}
                    for n, signal in s.signals.items()
                },
            }
            for s in cache.segments()
        ],
        "unfinished": [
            {
                "name": d.path.name,
                "rows": d.rows,
                "shards_finished": sum(d.receipt(s.index) is not None for s in d.shards()),
                "shards": len(d.shards()),
            }
            for d in cache.drafts()
        ],
    }


def print_cache(described: Mapping[str, Any]) -> None:
    """The same for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for segment in described["segments"]:
        table = Table(
            title=f"{segment['name']}: {segment['rows']:,} rows, {segment['bytes']:,} bytes",
            title_justify="left",
        )
        for heading in ("signal", "row", "encoding", "from", "bytes", "error"):
            table.add_column(heading)
        for name, s in segment["signals"].items():
            shape = "x".join("*" if n is None else str(n) for n in s["shape"]) or "1"
            error = ", ".join(f"{k} {v:.2g}" for k, v in s["error"].items())
            source = s["source"] or "output"
            row = (name, f"{s['dtype']}[{shape}]", s["encoding"], source, f"{s['bytes']:,}", error)
            table.add_row(*row)
        console.print(table)
    for draft in described["unfinished"]:
        done = f"{draft['shards_finished']} of {draft['shards']} shards"
        console.print(f"{draft['name']}: not finished, {done}; teach again to go on")
    for s in described["snapshots"]:
        signals = ", ".join(s["signals"])
        console.print(f"snapshot {s['number']}: {s['rows']:,} rows, {signals} ({s['why']})")


def recipe_lines() -> dict[str, str]:
    """Every method and the first line of its file."""
    return {
        name: (recipes.module(name).__doc__ or "").strip().splitlines()[0]
        for name in recipes.names()
    }


def describe_recipe(name: str) -> dict[str, Any]:
    """A method's docstring, its terms with the paper's defaults, and what it reads."""
    module = recipes.module(name)
    made = module.recipe()
    parameters = inspect.signature(module.recipe).parameters.values()
    return {
        "name": made.name,
        "paper": made.paper,
        "about": inspect.cleandoc(module.__doc__ or ""),
        "terms": [repr(term) for term in made.terms],
        "reads": list(made.reads),
        "columns": list(made.columns),
        "defaults": {p.name: p.default for p in parameters},
    }
