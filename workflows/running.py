"""The commands `run` and `plan`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.pipeline.events import WorkerLost
from stillroom.pipeline.execute import StepPlan, execute
from stillroom.pipeline.execute import plan as plan_steps
from stillroom.pipeline.ray_runner import RayRunner
from stillroom.pipeline.runner import LocalRunner
from stillroom.pipeline.step import Result, Run
from stillroom.pipeline.stopping import Stopped, stopping
from stillroom.stages.listeners.all_of import all_of
from stillroom.stages.listeners.json_lines import JsonLines
from stillroom.stages.listeners.tensor_board import TensorBoard
from stillroom.storage.errors import SettingsError
from stillroom.storage.files import limited
from stillroom.workflows.flows import open_flow
from stillroom.workflows.spelling import bytes_of

if TYPE_CHECKING:
    from stillroom.workflows.progress import Progress


@dataclass(frozen=True)
class Running:
    """How `run` runs a workflow; nothing of it changes what is computed."""

    out: Path | None = None
    workers: int | tuple[int, int] | None = None
    address: str | None = None
    as_json: bool = False
    events: Path | None = None
    """File that events are appended to, as JSON lines."""
    tensorboard: Path | None = None
    """Folder for TensorBoard's file."""
    pool: Mapping[str, Any] = field(default_factory=dict)
    """What else the RayRunner is told of its workers, by its fields."""
    listen: Callable[[Any], None] | None = None
    """One more listener of events."""
    limit: int | None = None
    """Bytes that the folder for outputs may hold; None: what the disk has."""
    within: Callable[[Path], AbstractContextManager[Any]] = nullcontext
    """Is entered with the folder for outputs before anything of it is read, and left at the end."""


class InterruptedRunError(Exception):
    """The run was ended by the user; the message says what is stored and how to go on."""


def run_workflow(flow: str, arguments: list[str], how: Running) -> None:
    """Run a workflow and print its progress, then its table (or one JSON object).

    One Ctrl-C or SIGTERM finishes what is in hand, a second one ends it at once; either way it raises
    InterruptedRunError.
    """
    from rich.console import Console

    from stillroom.workflows.progress import Progress

    started = time.perf_counter()
    steps = open_flow(flow, arguments)
    folder = how.out or default_folder(flow)
    progress = Progress(Console(stderr=how.as_json, quiet=how.as_json))
    with how.within(folder), limited(folder, how.limit), ExitStack() as ends, stopping() as stop:
        ends.callback(progress.close)
        listen = _listeners(progress, how, ends)
        given = {"workers": how.workers, "address": how.address, **how.pool}
        ray = RayRunner(**given, stop=stop, listen=listen)
        runner = LocalRunner(stop) if how.workers == 0 else ends.enter_context(ray)
        try:
            named = flow_name(flow)
            results = execute(steps, Run(folder, runner, listen, flow=named, stop=stop))
        except KeyboardInterrupt as end:
            raise InterruptedRunError(_stored(progress, isinstance(end, Stopped))) from end
    seconds = time.perf_counter() - started
    if how.as_json:
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


def _listeners(progress: Progress, how: Running, ends: ExitStack) -> Callable[[Any], None]:
    """The progress that people see, and the files that were asked for."""
    found: list[Callable[[Any], None]] = [progress]
    if how.listen is not None:
        found.append(how.listen)
    if how.events is not None:
        lines = JsonLines(how.events)
        ends.callback(lines.close)
        found.append(lines)
    if how.tensorboard is not None:
        board = TensorBoard(how.tensorboard, retried=(WorkerLost,))
        ends.callback(board.close)
        found.append(board)
    return all_of(*found)


def _stored(progress: Progress, in_hand_finished: bool) -> str:
    """What a user who interrupted wants to know."""
    least = "" if in_hand_finished else "at least "
    said = [
        f"{least}{pace.stored:,} of {pace.resumed + pace.rows:,} rows of {pace.teacher} are stored"
        for pace in progress.tally.unfinished
    ]
    kept = "; ".join(said) or "what was finished is kept"
    return f"interrupted: {kept}. Run the same command again to go on"


def _named(results: Mapping[str, Result], key: str) -> list[str]:
    """Files that steps want a person to see: `show` is printed, `report` is pointed to."""
    return [str(result[key]) for result in results.values() if result.get(key)]


def plan_workflow(
    flow: str,
    arguments: list[str],
    out: Path | None,
    options: Mapping[str, Any],
    as_json: bool,
    limit: int | None = None,
) -> bool:
    """Print for each step whether it would run, why, and what that takes; whether all of it can.

    `options` go to the steps' previews; `limit`: bytes that the folder for outputs may hold.
    """
    steps, folder = open_flow(flow, arguments), out or default_folder(flow)
    with limited(folder, limit):
        planned = list(plan_steps(steps, Run(folder, options=options, flow=flow_name(flow))))
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


def flow_name(flow: str) -> str:
    """What steps note of their workflow: its file's whole path, or the name of a bundled one."""
    return str(Path(flow).resolve()) if flow.endswith(".py") else flow


def limit_of(text: str | None) -> int | None:
    """Bytes of what `--limit` was told; SettingsError when it is no size."""
    if text is None:
        return None
    if (size := bytes_of(text)) is None:
        raise SettingsError(f"--limit {text}: expected a size such as 500MB, 20GB or 1.5TB")
    return size


def default_folder(flow: str) -> Path:
    """Where a workflow's outputs go when nothing is said."""
    return Path("out") / Path(flow).stem
