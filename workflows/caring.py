"""The commands that care for a cache: verify, audit, repair, prune, compact."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stillroom.pipeline.execute import act
from stillroom.pipeline.runner import LocalRunner, Runner
from stillroom.pipeline.step import Result, Run
from stillroom.stages.care.auditing import audit
from stillroom.stages.care.repairing import repair
from stillroom.stages.data.rows import Rows
from stillroom.stages.deriving.caring import derived_as_taught
from stillroom.stages.deriving.derivation import RowWise
from stillroom.stages.teachers.teacher import Teacher
from stillroom.storage.cache import Cache
from stillroom.storage.care.compacting import compact
from stillroom.storage.care.mending import restore_marker
from stillroom.storage.care.pruning import prune
from stillroom.storage.care.verifying import verify
from stillroom.storage.errors import NotACacheError, UnknownRowError
from stillroom.workflows.flows import open_flow
from stillroom.workflows.running import default_folder
from stillroom.workflows.schedules.commands import state_folder
from stillroom.workflows.spelling import amount
from stillroom.workflows.verified import note_verified


def verify_cache(path: str, as_json: bool) -> bool:
    """Print what verify finds; whether it is damage."""
    found = verify(path)
    note_verified(state_folder(), path, found)
    if as_json:
        _print({"path": str(path), **found.to_json()})
        return bool(found.problems)
    for problem in found.problems:
        print(f"{path}/{problem}")
    if found.leftovers:
        print(
            f"{len(found.leftovers)} leftovers of runs that were cut off (harmless; prune removes them)"
        )
    if not found.problems:
        read = f"{found.files:,} files, {amount(found.bytes)}"
        print(f"{path}: every stored byte is as it was written ({read})")
    return bool(found.problems)


def prune_cache(path: str, policy: Mapping[str, Any], as_json: bool) -> None:
    """Print what prune removed, or would remove."""
    done = prune(Cache(path), **policy)
    if as_json:
        _print({"path": str(path), "dry_run": policy["dry_run"], **done.to_json()})
        return
    for what in ("snapshots", "segments", "drafts", "leftovers", "quarantined", "books"):
        for name in getattr(done, what):
            print(f"{what.removesuffix('s')} {name}")
    print(f"{'would remove' if policy['dry_run'] else 'removed'} {amount(done.bytes)}")


def compact_cache(path: str, dry_run: bool, as_json: bool) -> None:
    """Print what compact joined, or would join."""
    done = compact(Cache(path), dry_run=dry_run)
    if as_json:
        _print({"path": str(path), "dry_run": dry_run, **done.to_json()})
        return
    for merged in done.merged:
        verb = "would join" if dry_run else "joined"
        names = ", ".join(merged.segments)
        print(
            f"{merged.teacher}: {verb} {len(merged.segments)} segments, {merged.rows:,} rows: {names}"
        )
    if not done.merged and done.snapshot is None:
        print("nothing to join: no teacher's rows lie in several segments")
    if done.snapshot is not None:
        print(f"snapshot {done.snapshot} reads from what was joined; prune drops the old segments")


def audit_workflow(flow: str, arguments: list[str], out: Path | None, as_json: bool) -> bool:
    """Print what a workflow's audits find; whether a shard differs from its teacher."""
    done = _act(flow, arguments, out, "audit")
    if as_json:
        _print(done)
    else:
        for step, report in done.items():
            for shard in report["shards"]:
                where = f"{shard['segment']} shard {shard['shard']} {shard['signal']}"
                print(f"{step}: {where}: {shard['verdict']}")
            for name, loss in report["loss"].items():
                figures = ", ".join(f"{key} {value:.2g}" for key, value in loss.items())
                band = f"live answers differ by {report['band'][name]:.2g} among themselves"
                print(f"{step}: {name}: {band}; the encoding loses {figures or 'nothing'}")
    return not all(report["faithful"] for report in done.values())


def repair_workflow(flow: str, arguments: list[str], out: Path | None, as_json: bool) -> bool:
    """Print what a workflow's repairs did; whether something is still wrong.

    What one teacher's repair had to leave, that of another teacher of the same cache may have mended:
    the last word on a cache counts.
    """
    done = _act(flow, arguments, out, "repair")
    last = {report.get("cache", step): report for step, report in done.items()}
    if as_json:
        _print(done)
    else:
        for step, report in done.items():
            for what in ("put_back", "retaught", "quarantined"):
                for name in report[what]:
                    print(f"{step}: {what.replace('_', ' ')}: {name}")
            for problem in report["unrepairable"] if report in last.values() else ():
                print(f"{step}: not repairable: {problem['path']}: {problem['what']}")
            print(f"{step}: {report['rows']:,} rows were computed again")
    return any(report["unrepairable"] for report in last.values())


def mend(path: Path, rows: Rows, teacher: Teacher, runner: Runner) -> Result:
    """Verify and audit a cache, and repair what either finds; Repaired as plain JSON.

    What is damaged is put right before the audit, which could not read it.
    """
    return _mended(path, runner, lambda cache: (rows, teacher))


def mend_derived(
    path: Path, derivation: RowWise, runner: Runner, *, rows: Rows | None = None
) -> Result:
    """The same for signals that were derived row by row; `rows` as of `derive_signals`.

    The steps that teach what it reads come first: they repair what this is computed from.
    """
    return _mended(path, runner, lambda cache: derived_as_taught(cache, derivation, rows))


def _mended(
    path: Path, runner: Runner, given: Callable[[Cache], tuple[Rows, Teacher]]
) -> dict[str, Any]:
    problems = verify(path).problems
    if any(problem.path == "cache.json" for problem in problems):
        restore_marker(path)
    cache = Cache(path)
    first = repair(cache, *given(cache), problems, runner=runner).to_json()
    try:
        wrong = audit(cache, *given(cache), runner=runner).problems()
    except (UnknownRowError, NotACacheError):  # nothing of it is in a snapshot
        wrong = []
    if not wrong:
        return {"cache": str(path), **first}
    second = repair(cache, *given(cache), wrong, runner=runner).to_json()
    lists = ("put_back", "retaught", "quarantined", "unrepairable")
    joined = {key: [*first[key], *second[key]] for key in lists}
    joined["rows"] = first["rows"] + second["rows"]
    joined["snapshot"] = second["snapshot"] or first["snapshot"]
    return {"cache": str(path), **second, **joined}


def _act(flow: str, arguments: list[str], out: Path | None, name: str) -> dict[str, Result]:
    steps = open_flow(flow, arguments)
    return act(steps, Run(out or default_folder(flow), LocalRunner()), name)


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
