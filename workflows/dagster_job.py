"""A workflow as a Dagster job: an op for each step, in the order in which they need each other.

What is stale is still found by stillroom, from what lies in the run's folder: Dagster's ops pass
nothing to each other, so nothing is pickled and any of them can be called again. Extra `dagster`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from keyword import kwlist
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.pipeline.execute import StepFinished, StepStarted, WorkflowError, execute_step
from stillroom.pipeline.ray_runner import RayRunner
from stillroom.pipeline.runner import LocalRunner
from stillroom.pipeline.step import Run, Step
from stillroom.pipeline.stopping import Stop, stopping
from stillroom.stages.events import RowsTaught
from stillroom.stages.listeners.all_of import all_of
from stillroom.storage.errors import MissingPackageError, SettingsError
from stillroom.storage.files import limited
from stillroom.workflows.flows import open_flow
from stillroom.workflows.running import default_folder, flow_name
from stillroom.workflows.schedules.commands import state_folder
from stillroom.workflows.schedules.recording import Recording, found_words, recorded
from stillroom.workflows.schedules.schedule import cron_trigger

if TYPE_CHECKING:
    from dagster import JobDefinition, ScheduleDefinition

_RESOURCE = "stillroom"
_REFUSED = (
    *("context", "conf", "config", "meta", "arg_dict", "dict", "input_arg_dict", "output_arg_dict"),
    *("int", "str", "float", "bool", "input", "output", "type"),
)
"""What Dagster takes for no op's name, beside Python's own words."""
_NOT_TRIED_AGAIN = (WorkflowError, SettingsError, MissingPackageError)
"""What the next attempt would meet as well."""


@dataclass
class _Heard:
    """What the present step said; a listener of its events."""

    why: str = ""
    finished: StepFinished | None = None
    rows: int = 0

    def forget(self) -> None:
        """Another step begins."""
        self.why, self.finished, self.rows = "", None, 0

    def __call__(self, event: Any) -> None:
        """Take one event."""
        if isinstance(event, StepStarted):
            self.why = event.why
        elif found := found_words(event):
            # Steps that look by themselves learn why they run only once they do.
            self.why = f"{self.why}; {found}" if self.why else found
        elif isinstance(event, StepFinished):
            self.finished = event
        elif isinstance(event, RowsTaught):
            self.rows += event.rows


@dataclass
class _Opened:
    """A run of the job, which holds its folder."""

    run: Run
    heard: _Heard
    error: BaseException | None = None
    """What ended the last attempt of a step; None once one succeeded."""


@dataclass
class _Session:
    """What the ops of one run share; opened by the first of them, because Dagster asks for resources
    once more after a run has ended."""

    how: _How
    ends: ExitStack = field(default_factory=ExitStack)
    _opened: _Opened | None = None

    def opened(self) -> _Opened:
        """The run; BusyError when another one holds its folder."""
        if self._opened is None:
            self._opened = self.ends.enter_context(_opened(self.how))
        self._opened.heard.forget()
        return self._opened


@dataclass(frozen=True)
class _How:
    """Where and how runs of one job work."""

    flow: str
    arguments: tuple[str, ...]
    out: Path
    workers: int | tuple[int, int] | None
    address: str | None
    wait_s: float
    state: Path
    pool: Mapping[str, Any]
    limit: int | None


def dagster_job(
    flow: str | Path,
    arguments: Sequence[str] = (),
    *,
    name: str = "",
    out: str | Path | None = None,
    workers: int | tuple[int, int] | None = None,
    address: str | None = None,
    pool: Mapping[str, Any] | None = None,
    limit: int | None = None,
    retries: int = 0,
    backoff_s: float = 60.0,
    wait_s: float = 3600.0,
    state: str | Path | None = None,
) -> JobDefinition:
    """The Dagster job of a workflow by name or file, with settings as on a command line.

    Each op runs its step if it is stale; the op's metadata say `fresh`, `why`, `seconds`,
    `rows_taught`, the step's `result` and its `report`. All of them run in the process of Dagster's run,
    one after another, with one runner, and hold the folder alone. `retries` and `backoff_s` are a
    RetryPolicy of every op (waits of 1, 3, 7, ... times `backoff_s` seconds): a step that is tried again
    goes on with what it had stored; wrong settings and missing packages are not tried again. `workers`,
    `address` and `pool` are those of a RayRunner, with 0 workers a LocalRunner. A run waits `wait_s`
    seconds for another one in its folder, which may hold `limit` bytes (None: what the disk has), and is
    written into the ledger in the folder `state`.

    Raises MissingPackageError without the extra `dagster`, and what `open_flow` does: the workflow's
    function is called each time that Dagster loads the job.
    """
    dagster = _dagster()
    steps = open_flow(str(flow), arguments)
    where = Path(out or default_folder(str(flow))).absolute()
    at = state_folder(Path(state) if state else None).absolute()
    given = (workers, address, wait_s, at, dict(pool or {}), limit)
    how = _How(str(flow), tuple(arguments), where, *given)
    policy = None
    if retries:
        exponential = dagster.Backoff.EXPONENTIAL
        policy = dagster.RetryPolicy(max_retries=retries, delay=backoff_s, backoff=exponential)
    names = op_names([step.name for step in steps])
    needs = {
        names[step.name]: {
            "needs": dagster.MultiDependencyDefinition(
                [dagster.DependencyDefinition(names[needed.name]) for needed in step.needs]
            )
        }
        for step in steps
        if step.needs
    }
    graph = dagster.GraphDefinition(
        name or _plain(Path(flow).stem),
        description=f"stillroom run {flow} {' '.join(arguments)}".strip(),
        node_defs=[_op(dagster, step, names[step.name], policy) for step in steps],
        dependencies=needs,
    )
    opened = dagster.ResourceDefinition(_resource(how), description=f"stillroom in {where}")
    made: JobDefinition = graph.to_job(
        resource_defs={_RESOURCE: opened},
        # One process: the steps share a Ray and hold their folder together.
        executor_def=dagster.in_process_executor,
    )
    return made


def dagster_schedule(
    job: JobDefinition, cron: str, timezone: str = "UTC", *, running: bool = False
) -> ScheduleDefinition:
    """A schedule of the job by a cron line; `running` is what it is until somebody turns it on or off
    in Dagster. CronError for a line or a zone that is none."""
    dagster = _dagster()
    cron_trigger(cron, timezone)
    status = dagster.DefaultScheduleStatus
    made: ScheduleDefinition = dagster.ScheduleDefinition(
        job=job,
        cron_schedule=cron,
        execution_timezone=timezone,
        default_status=status.RUNNING if running else status.STOPPED,
    )
    return made


def op_names(steps: Sequence[str]) -> dict[str, str]:
    """A name that Dagster takes for each step, never one for two.

    >>> op_names(["teach", "train.big", "train-big", "input"])
    {'teach': 'teach', 'train.big': 'train_big', 'train-big': 'train_big_2', 'input': 'input_2'}
    """
    found: dict[str, str] = {}
    taken = {*_REFUSED, *kwlist}
    for step in steps:
        plain, number = _plain(step), 1
        while (tried := plain if number == 1 else f"{plain}_{number}") in taken:
            number += 1
        taken.add(tried)
        found[step] = tried
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _op(dagster: Any, step: Step, name: str, policy: Any) -> Any:
    """The op that runs one step."""
    return dagster.OpDefinition(
        lambda context, inputs: _computed(dagster, step, context),
        name,
        description=f"step {step.name} of stillroom",
        ins={"needs": dagster.In(dagster.Nothing)} if step.needs else {},
        outs={"result": dagster.Out(dagster.Nothing)},
        required_resource_keys={_RESOURCE},
        retry_policy=policy,
    )


def _computed(dagster: Any, step: Step, context: Any) -> Iterator[Any]:
    opened: _Opened = context.resources.stillroom.opened()
    try:
        with stopping(opened.run.stop):
            result = execute_step(step, opened.run)
    except _NOT_TRIED_AGAIN as error:
        opened.error = error
        raise dagster.Failure(str(error), allow_retries=False) from error
    except BaseException as error:
        opened.error = error
        raise
    opened.error = None
    said = _said(opened.heard, step)
    context.log.info(f"step {step.name}: {_words(said)}")
    if result.get("report"):
        page = opened.run.folder / str(result["report"])
        said["report"] = dagster.MetadataValue.path(str(page))
    said["result"] = dagster.MetadataValue.json(result)
    yield dagster.Output(None, metadata=said)


def _said(heard: _Heard, step: Step) -> dict[str, Any]:
    finished = heard.finished
    assert finished is not None
    if not finished.fresh:
        why = heard.why or "its result is another than the last one"
    elif step.preview is None:
        why = "its code, settings, files and inputs are those of its last run"
    else:
        why = "it looked for what is stale, and found nothing"
    return {
        "fresh": finished.fresh,
        "why": why,
        "seconds": finished.seconds,
        "rows_taught": heard.rows,
    }


def _words(said: Mapping[str, Any]) -> str:
    did = "fresh" if said["fresh"] else f"computed in {said['seconds']:.1f} s"
    taught = f", {said['rows_taught']:,} rows taught" if said["rows_taught"] else ""
    return f"{did}{taught}: {said['why']}"


def _resource(how: _How) -> Callable[[Any], Iterator[_Session]]:
    def resource(context: Any) -> Iterator[_Session]:
        session = _Session(how)
        try:
            yield session
        finally:
            session.ends.close()

    return resource


@contextmanager
def _opened(how: _How) -> Iterator[_Opened]:
    """The folder, held; a runner; a row in the ledger, which says at the end what became of it."""
    opened: _Opened | None = None
    try:
        with recorded(how.state, how.flow, how.arguments, how.out, how.wait_s) as record:
            with _running(how, record) as opened:
                yield opened
            if opened.error is not None:
                raise opened.error  # for the ledger alone: Dagster knows it
    except BaseException as error:
        if opened is None or error is not opened.error:
            raise


@contextmanager
def _running(how: _How, record: Recording) -> Iterator[_Opened]:
    stop, heard = Stop(), _Heard()
    listen = all_of(record, heard)
    with record.holding(how.out), limited(how.out, how.limit), ExitStack() as ends:
        given = {"workers": how.workers, "address": how.address, **how.pool}
        ray = RayRunner(**given, stop=stop, listen=listen)
        runner = LocalRunner(stop) if how.workers == 0 else ends.enter_context(ray)
        named = flow_name(how.flow)
        yield _Opened(Run(how.out, runner, listen, flow=named, stop=stop), heard)


def _dagster() -> Any:
    try:
        import dagster
    except ImportError as error:
        raise MissingPackageError(
            f"a Dagster job needs the package dagster ({error}): pip install 'stillroom[dagster]'"
        ) from error
    return dagster
