"""Execute a workflow: each step whose code, settings, files or inputs changed, in order; no other."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.pipeline.staleness import changed, plain_result, step_identity
from stillroom.pipeline.step import Preview, Result, Run, Step
from stillroom.pipeline.step import WorkflowError as WorkflowError
from stillroom.storage.errors import StillroomError
from stillroom.storage.files import read_json, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class StepStarted:
    """A step begins, because `why`."""

    step: str
    why: str


@dataclass(frozen=True)
class StepFound:
    """The step that runs, one that looks by itself, found something to do, because `why`."""

    why: str


@dataclass(frozen=True)
class StepFinished:
    """A step is done; `fresh` when nothing had to be computed."""

    step: str
    fresh: bool
    seconds: float
    result: Result


@dataclass(frozen=True)
class StepPlan:
    """What would happen to a step."""

    step: str
    why: str
    """Why it would run; empty when it is fresh."""
    lines: tuple[str, ...] = ()
    """What its preview says besides."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The same as plain JSON."""
    refused: str = ""
    """Why it cannot run; empty when it can."""


def ordered(steps: Sequence[Step]) -> list[Step]:
    """The steps and everything they need, each after what it needs.

    Raises WorkflowError naming the circle, the doubled name, or what is no step.
    """
    done: dict[str, Step] = {}
    above: dict[str, Iterator[Step]] = {}  # what is being visited, with what it still waits for

    def begin(step: Any, by: str) -> Step | None:
        """A step that was not visited yet; None for one that is done."""
        if not isinstance(step, Step):
            raise WorkflowError(f"{by} a {type(step).__name__}, which is no Step: {step!r:.60}")
        if step.name in above:
            circle = " -> ".join((*above, step.name))
            raise WorkflowError(f"steps need each other: {circle}; drop one of these needs")
        if not _NAME.fullmatch(step.name):
            raise WorkflowError(
                f"step name {step.name!r}: expected letters, digits, '_', '.' or '-', starting with a "
                "letter or digit, because it names a file; rename it"
            )
        if step.name in done:
            if not _same(done[step.name], step):
                raise WorkflowError(
                    f"two different steps are called {step.name!r}; rename one of them"
                )
            return None
        return step

    for top in steps:
        waiting = [step] if (step := begin(top, "the workflow returned")) else []
        while waiting:  # a loop, because rounds make chains that are deeper than Python's stack
            step = waiting[-1]
            for needed in above.setdefault(step.name, iter(step.needs)):
                if (found := begin(needed, f"step {step.name!r} needs")) is not None:
                    waiting.append(found)
                    break
            else:
                waiting.pop()
                del above[step.name]
                done[step.name] = step
    return list(done.values())


def _same(one: Step, other: Step) -> bool:
    """Whether two steps of one name are one; what they need is compared by name, each in its turn."""
    if one is other:
        return True
    names = [[needed.name for needed in step.needs] for step in (one, other)]
    fields = ("function", "settings", "files", "preview", "actions")
    return names[0] == names[1] and all(getattr(one, f) == getattr(other, f) for f in fields)


def execute(steps: Sequence[Step], run: Run) -> dict[str, Result]:
    """Run what is stale and return every step's result by name.

    Events: StepStarted and StepFinished to `run.listen`, and what the steps themselves send
    (StepFound, for one). An
    exception of a step ends the run, and so does Stopped before the next step once an end was asked
    for; what earlier steps did is kept.
    """
    results: dict[str, Result] = {}
    for step in ordered(steps):
        inputs = {needed.name: results[needed.name] for needed in step.needs}
        results[step.name] = _executed(step, run, inputs)
    return results


def execute_step(step: Step, run: Run) -> Result:
    """Run one step if it is stale, on what the steps that it needs left in the run's folder.

    For schedulers that call steps one by one; events and errors as of `execute`. WorkflowError when a
    step that is needed never ran there.
    """
    return _executed(step, run, _recorded_inputs(step, run))


def _executed(step: Step, run: Run, inputs: Mapping[str, Result]) -> Result:
    run.stop.require()
    now = step_identity(step, inputs)
    known = _record(run, step)
    why = _why(known, now, run, step, inputs)
    started = time.perf_counter()
    if not why and step.preview is None and known is not None:
        kept: Result = known["result"]
        run.listen(StepFinished(step.name, True, 0.0, kept))
        return kept
    if words := _of_another(known, run, step, why):
        raise WorkflowError(words)
    run.listen(StepStarted(step.name, why))
    result = plain_result(step, step.function(run, inputs, **step.settings))
    fresh = not why and known is not None and known["result"] == result
    if not fresh:
        by = {"flow": run.flow} if run.flow else {}
        write_json(_place(run, step), {"identity": now, "result": result, **by})
    run.listen(StepFinished(step.name, fresh, time.perf_counter() - started, result))
    return result


def plan(steps: Sequence[Step], run: Run) -> Iterator[StepPlan]:
    """Say for each step whether it would run and why; nothing is computed."""
    results: dict[str, Result] = {}
    waiting: set[str] = set()
    for step in ordered(steps):
        behind = [needed.name for needed in step.needs if needed.name in waiting]
        known, shown = _record(run, step), Preview("")
        if behind:
            why = f"after {', '.join(behind)}"
        else:
            inputs = {needed.name: results[needed.name] for needed in step.needs}
            why = _why(known, step_identity(step, inputs), run, step, inputs)
            if words := _of_another(known, run, step, why):
                shown = Preview(why, refused=words)
            elif step.preview is not None:
                # What it would compute says more; without it the step runs all the same.
                said = step.preview(run, inputs, **step.settings)
                shown = Preview(said) if isinstance(said, str) else said
                why = shown.why or why
        if why or known is None:
            waiting.add(step.name)
        else:
            results[step.name] = known["result"]
        yield StepPlan(step.name, why, shown.lines, shown.details, shown.refused)


def act(steps: Sequence[Step], run: Run, name: str) -> dict[str, Result]:
    """Call the action of that name of every step that has one; what each returns, by step.

    The steps themselves do not run: the actions get the recorded results of what their step needs.
    WorkflowError when no step has such an action, or when a step that is needed never ran here.
    """
    every = ordered(steps)
    acting = [step for step in every if name in step.actions]
    if not acting:
        known = sorted({action for step in every for action in step.actions})
        raise WorkflowError(
            f"no step of this workflow can {name}; known: {', '.join(known) or 'none'}"
        )
    done = {}
    for step in acting:
        if _record(run, step) is None:
            raise _never_ran(step, run)
        inputs = _recorded_inputs(step, run)
        done[step.name] = plain_result(step, step.actions[name](run, inputs, **step.settings))
    return done


def _of_another(known: Result | None, run: Run, step: Step, why: str) -> str:
    """Why a step must not run here, in words: another workflow, which is still there, has one of its
    name in the folder that is not this one. They would undo each other's work at every run."""
    other = (known or {}).get("flow", "")
    if not why or not run.flow or other in ("", run.flow):
        return ""
    if Path(other).is_absolute() and not Path(other).exists():
        return ""  # this workflow was moved or renamed
    return (
        f"step {step.name!r} of {run.folder} belongs to another workflow, {other}, and is another step "
        f"there ({why}); nothing was computed. Give one of the two a folder of its own with --out, or "
        f"rename the step; where {run.flow} is to replace the other one, remove "
        f"{run.folder / 'steps'}: caches and students are found again"
    )


def _recorded_inputs(step: Step, run: Run) -> dict[str, Result]:
    """Results of what it needs, by name, as they were left; WorkflowError when one never was."""
    records = {needed.name: _record(run, needed) for needed in step.needs}
    for needed in step.needs:
        if records[needed.name] is None:
            raise _never_ran(needed, run)
    return {name: record["result"] for name, record in records.items() if record}


def _never_ran(step: Step, run: Run) -> WorkflowError:
    return WorkflowError(f"step {step.name!r} never ran in {run.folder}; run the workflow first")


def _place(run: Run, step: Step) -> Path:
    return run.folder / "steps" / f"{step.name}.json"


def _record(run: Run, step: Step) -> Result | None:
    """What the step left when it last ran; None when it never did, or its record is damaged."""
    if not _place(run, step).exists():
        return None
    try:
        record = read_json(_place(run, step))
    except StillroomError:
        return None
    parts = (record.get("identity"), record.get("result"))
    return record if all(isinstance(part, dict) for part in parts) else None


def _why(
    known: Result | None, now: dict[str, Any], run: Run, step: Step, inputs: Mapping[str, Result]
) -> str:
    """Why a step is stale, in words; empty when it is not."""
    if known is None:
        return "it never ran here"
    if words := changed(known["identity"], now, step, inputs):
        return words
    for name in known["result"].get("outputs", ()):
        if not (run.folder / name).exists():
            return f"its output {name} is gone"
    return ""
