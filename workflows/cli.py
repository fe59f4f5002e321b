"""The command line. Heavy packages are imported by the command that needs them.

Exit codes: 0 done, also when nothing had to be done; 1 the work failed; 2 the command line or a
setting is wrong; 3 verify, audit or repair found damage; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.workflows.export_commands import export
from stillroom.workflows.flow_command import Config, FlowCommand, Sets, arguments_of
from stillroom.workflows.looking import register as register_looking
from stillroom.workflows.recipe_commands import prove, recipes_app
from stillroom.workflows.reporting.command import register as register_reporting
from stillroom.workflows.schedules.commands import register as register_schedules
from stillroom.workflows.student_commands import students

FAILED, WRONG, DAMAGED, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    name="stillroom",
    help="Run big teachers once, keep what they said, train many students from the cache.",
    epilog="Exit codes: 0 done (also: nothing to do), 1 failed, 2 wrong usage, 3 damage found, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="Look into a cache and care for it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(recipes_app, name="recipes")
app.command()(prove)
app.command()(students)
register_looking(app)
register_reporting(app)
register_schedules(app)

_FLOW = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command("export", context_settings=_FLOW, cls=FlowCommand)(export)
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for everything; out/NAME if not given.")
]
Workers = Annotated[int | None, typer.Option(help="Ray workers; 0 runs in this process.")]
Pool = Annotated[
    str | None,
    typer.Option(
        "--workers",
        help="Ray workers: a number; LEAST-MOST on a cluster that grows; 0 runs in this process.",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster's HOST:PORT; auto: the one on this host.")
]
Where = Annotated[str, typer.Argument(help="A cache's folder, or its URL (s3://bucket/prefix).")]
Limit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="What the folder for outputs may hold, such as 20GB: a quota."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


@app.command(context_settings=_FLOW, cls=FlowCommand)
def run(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(help="A bundled workflow (digits) or a Python file.")],
    out: Out = None,
    config: Config = None,
    sets: Sets = None,
    workers: Pool = None,
    address: Address = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="CPUs for each worker; 1.")] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs for each worker; 0.5: two share one.")
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=AMOUNT", help="What else a worker's node must have."),
    ] = None,
    worker_wait: Annotated[
        float | None, typer.Option(min=1, help="Seconds without any worker before giving up; 300.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="Append what happens to this file, as JSON lines.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for a file that TensorBoard shows.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for another run in the same folder.")
    ] = 0,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Run a workflow: compute what is stale, nothing else.

    Further flags are the workflow's own settings: stillroom run digits --epochs 20. With FLOW, --help
    lists them.
    Ctrl-C once finishes what is in hand, twice stops at once; run again to go on.
    """
    from stillroom.workflows.pools import pool_settings, workers_of
    from stillroom.workflows.running import InterruptedRunError, Running, limit_of, run_workflow
    from stillroom.workflows.schedules.commands import run_arguments, state_folder
    from stillroom.workflows.schedules.recording import recorded

    arguments = arguments_of(context, config, sets)
    pool = pool_settings(resource or (), cpus, gpus, worker_wait)
    how = Running(out, workers_of(workers), address, as_json, events, tensorboard, pool)
    how = replace(how, limit=limit_of(limit))
    said = run_arguments(flow, arguments)
    try:
        with recorded(state_folder(), flow, said, out, wait) as record:
            how = replace(how, listen=record, within=record.holding)
            run_workflow(flow, arguments, how)
    except InterruptedRunError as end:
        print(end, file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from end


@app.command(context_settings=_FLOW, cls=FlowCommand)
def plan(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(help="A bundled workflow (digits) or a Python file.")],
    out: Out = None,
    config: Config = None,
    sets: Sets = None,
    probe: Annotated[bool, typer.Option(help="Load teachers and time some rows.")] = False,
    workers: Workers = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of a machine that runs one worker.")
    ] = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Say what a run would compute, why, and what that takes: bytes, seconds, room, N*.

    Nothing is computed or written; with --probe each teacher that is to answer is loaded once and
    answers a few batches. Exit code 1 when what is to be written does not fit the disk.
    """
    from stillroom.workflows.running import limit_of, plan_workflow

    count = len(os.sched_getaffinity(0)) if workers is None else max(workers, 1)
    options = {"probe": probe, "workers": count, "price_per_hour": price_per_hour}
    arguments = arguments_of(context, config, sets)
    if not plan_workflow(flow, arguments, out, options, as_json, limit_of(limit)):
        raise typer.Exit(FAILED)


@cache_app.command("show")
def cache_show(
    path: Where,
    teacher: Annotated[str | None, typer.Option(help="This teacher alone.")] = None,
    identity: Annotated[bool, typer.Option("--identity", help="Identities in full.")] = False,
    as_json: Json = False,
) -> None:
    """Teachers and their identities, how those differ, signals, bytes, errors, snapshots."""
    from stillroom.workflows.inspecting import describe_cache
    from stillroom.workflows.showing import print_cache, print_identities

    described = describe_cache(path)
    if identity:
        print_identities(described, teacher)
    elif as_json:
        _print(described)
    else:
        print_cache(described, teacher)


@cache_app.command("verify")
def cache_verify(path: Where, as_json: Json = False) -> None:
    """Read every stored byte and compare it with what it must be; exit code 3 when one differs."""
    from stillroom.workflows.caring import verify_cache

    if verify_cache(path, as_json):
        raise typer.Exit(DAMAGED)


@cache_app.command("prune")
def cache_prune(
    path: Where,
    keep_last: Annotated[int | None, typer.Option(min=1, help="Newest snapshots to keep.")] = None,
    keep_days: Annotated[float | None, typer.Option(min=0, help="Keep younger snapshots.")] = None,
    draft_days: Annotated[
        float, typer.Option(min=0, help="Drop cut-off work older than this.")
    ] = 7,
    quarantine: Annotated[bool, typer.Option(help="Also what repair put aside.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Drop snapshots outside the policy, then what no kept snapshot uses.

    A snapshot stays that is among the last or young enough; the newest always stays.
    """
    from stillroom.workflows.caring import prune_cache

    policy = {"keep_last": keep_last, "keep_days": keep_days, "draft_days": draft_days}
    prune_cache(path, {**policy, "quarantine": quarantine, "dry_run": dry_run}, as_json)


@cache_app.command("compact")
def cache_compact(
    path: Where,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be joined.")] = False,
    as_json: Json = False,
) -> None:
    """Join each teacher's segments into one, without changing a byte of any row."""
    from stillroom.workflows.caring import compact_cache

    compact_cache(path, dry_run, as_json)


@app.command(context_settings=_FLOW, cls=FlowCommand)
def audit(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(help="A bundled workflow (digits) or a Python file.")],
    out: Out = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Ask the teachers again for some rows of every shard; exit code 3 when a shard differs."""
    from stillroom.workflows.caring import audit_workflow

    if audit_workflow(flow, arguments_of(context, config, sets), out, as_json):
        raise typer.Exit(DAMAGED)


@app.command(context_settings=_FLOW, cls=FlowCommand)
def repair(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(help="A bundled workflow (digits) or a Python file.")],
    out: Out = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Compute again what verify or audit finds wrong; exit code 3 when something stays wrong."""
    from stillroom.workflows.caring import repair_workflow

    if repair_workflow(flow, arguments_of(context, config, sets), out, as_json):
        raise typer.Exit(DAMAGED)


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point: errors that a user can mend are printed as one message, not as a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        from stillroom.pipeline.execute import WorkflowError
        from stillroom.pipeline.runner import RunnerError
        from stillroom.storage.errors import MissingPackageError, StillroomError
        from stillroom.workflows.flows import SettingsError

        if not isinstance(error, StillroomError | RunnerError | WorkflowError):
            raise
        print(f"stillroom: {error}", file=sys.stderr)
        wrong = isinstance(error, SettingsError | WorkflowError | MissingPackageError)
        sys.exit(WRONG if wrong else FAILED)
