"""Looking whether data or a teacher changed: what `stillroom plan` says of a schedule's workflow."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from stillroom.workflows.schedules.attempt import STILLROOM
from stillroom.workflows.schedules.schedule import Schedule

DATA, TEACHER = "on-data", "on-teacher"
_WEIGHTS = (".safetensors", ".onnx", ".pt", ".pth", ".bin", ".gguf", ".ckpt")
_FILE = re.compile(r"(?:^|; )files?\b[^;]*")
_NAMES = re.compile(r"[\w.#-]+\.\w+")
_TIMEOUT_S = 3600.0
_RUN_ONLY = (
    "--address",
    "--cpus",
    "--gpus",
    "--resource",
    "--worker-wait",
    "--events",
    "--tensorboard",
)
_LAST_LINES = 3


@dataclass(frozen=True)
class Look:
    """What there is to do for a schedule."""

    cause: str
    """Why it should run; empty when nothing of its kind changed."""
    problem: str = ""
    """Why that could not be found out."""


def look(schedule: Schedule) -> Look:
    """Plan the schedule's workflow in a process of its own; nothing is computed or written."""
    command = [*STILLROOM, "plan", schedule.flow, "--json", *plan_arguments(schedule.arguments)]
    try:
        done = subprocess.run(
            command,
            cwd=schedule.folder,
            env=dict(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        steps = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        said = "" if isinstance(error, OSError | subprocess.TimeoutExpired) else done.stderr.strip()
        last = "\n".join((said or str(error)).splitlines()[-_LAST_LINES:])
        return Look("", f"the plan failed: {last}")
    return Look("; ".join(causes(steps, schedule.trigger.kind)))


def plan_arguments(arguments: Iterable[str]) -> list[str]:
    """The arguments of a run without those that a plan does not know: how, and on which workers."""
    left, kept = list(arguments), []
    while left:
        flag = left.pop(0)
        name, joined, value = flag.partition("=")
        if name in _RUN_ONLY or (name == "--workers" and "-" in (value or "".join(left[:1]))):
            if not joined and left:
                left.pop(0)
        elif name != "--json":
            kept.append(flag)
    return kept


def causes(steps: Iterable[Mapping[str, Any]], kind: str) -> list[str]:
    """Of a plan's steps: why each runs whose reason is new data (or a new teacher).

    >>> steps = [{"step": "fit", "why": "file rows.csv: 5a1b became 77c2", "details": {}}]
    >>> causes(steps, "on-data"), causes(steps, "on-teacher")
    (['fit: file rows.csv: 5a1b became 77c2'], [])
    """
    return [f"{s['step']}: {s['why']}" for s in steps if s["why"] and kind in _kinds(s)]


def _kinds(step: Mapping[str, Any]) -> set[str]:
    why, details = str(step["why"]), step.get("details") or {}
    if why == "it never ran here":
        return {DATA, TEACHER}
    if "to_compute" in details and "teacher" in details:  # a teach step, which says more than words
        if not details.get("why"):
            return set()
        changed = bool(details.get("changes"))
        new = "has answered none yet" in str(details["why"])
        return {TEACHER} if changed else {DATA, TEACHER} if new else {DATA}
    if found := _FILE.findall(why):
        names = [name for part in found for name in _NAMES.findall(part)]
        weights = {PurePath(name).suffix in _WEIGHTS for name in names}
        return {TEACHER if each else DATA for each in weights or {False}}
    return set()
