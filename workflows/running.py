"""The commands `run` and `plan`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom.pipeline.execute import StepPlan, execute
from stillroom.pipeline.execute import plan as plan_steps
from stillroom.pipeline.ray_runner import RayRunner
from stillroom.pipeline.runner import LocalRunner
from stillroom.pipeline.step import Result, Run
from stillroom.workflows.flows import find_workflow, parse_settings


def run_workflow(
    flow: str,
    arguments: list[str],
    out: Path | None,
    workers: int | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Run a workflow and print its progress, then its table (or one JSON object)."""
    from rich.console import Console

    from stillroom.workflows.progress import Progress

    started = time.perf_counter()
    workflow = find_workflow(flow)
    steps = workflow(**parse_settings(workflow, arguments))
    folder = out or default_folder(flow)
    console = Console(stderr=as_json, quiet=as_json)
    progress = Progress(console)
    ray = RayRunner(workers=workers, address=address)
    try:
        if workers == 0:
            results = execute(steps, Run(folder, LocalRunner(), progress))
        else:
            with ray:
                results = execute(steps, Run(folder, ray, progress))
    finally:
        progress.close()
    seconds = time.perf_counter() - started
    if as_json:
        said = {"folder": str(folder), "computed": progress.computed, "seconds": seconds}
        print(json.dumps({**said, "results": results}, indent=2))
        return
    for name in _named(results, "show"):
        print((folder / name).read_text().rstrip())
    if progress.computed:
        print(f"computed {', '.join(progress.computed)} in {seconds:.1f} s")
    else:
        print(f"nothing to do: everything is fresh, no teacher was loaded ({seconds:.1f} s)")
    for name in _named(results, "report"):
        print(f"report: {folder / name}")


def _named(results: Mapping[str, Result], key: str) -> list[str]:
    """Files that steps want a person to see: `show` is printed, `report` is pointed to."""
    return [str(result[key]) for result in results.values() if result.get(key)]


def plan_workflow(
    flow: str, arguments: list[str], out: Path | None, options: Mapping[str, Any], as_json: bool
) -> bool:
    """Print for each step whether it would run, why, and what that takes; whether all of it can.

    `options` go to the steps' previews.
    """
    workflow = find_workflow(flow)
    steps = workflow(**parse_settings(workflow, arguments))
    planned = list(plan_steps(steps, Run(out or default_folder(flow), options=options)))
    if as_json:
        each = ({"step": p.step, "runs": bool(p.why), **asdict(p)} for p in planned)
        print(json.dumps(list(each), indent=2))
    else:
        print("\n".join(_plan_lines(planned)))
    return not any(p.refused for p in planned)


def _plan_lines(planned: Sequence[StepPlan]) -> Iterator[str]:
    width = max(len(p.step) for p in planned)
    for p in planned:
        yield f"{p.step:<{width}}  {'run:   ' + p.why if p.why else 'fresh'}"
        yield from (f"{'':<{width}}         {line}" for line in p.lines)
        if p.refused:
            yield f"{'':<{width}}  cannot run: {p.refused}"
    if not any(p.why for p in planned):
        yield "nothing to do: everything is fresh"


def default_folder(flow: str) -> Path:
    """Where a workflow's outputs go when nothing is said."""
    return Path("out") / Path(flow).stem
