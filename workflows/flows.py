"""Workflows by name or file, and their settings from the command line.

A workflow is a function that returns steps; its keyword arguments are its settings.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stillroom.pipeline.step import Step
from stillroom.storage.errors import StillroomError, nearest

Workflow = Callable[..., list[Step]]
BUNDLED = ("digits",)


class SettingsError(StillroomError, ValueError):
    """A workflow cannot be found, or its settings are wrong."""


def find_workflow(name: str) -> Workflow:
    """A bundled workflow, or the function `workflow` (or of the file's name) in a Python file.

    SettingsError when there is none; an exception of the file itself is raised as it is.
    """
    if name in BUNDLED:
        found: Workflow = getattr(importlib.import_module(f"stillroom.workflows.{name}"), name)
        return found
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise SettingsError(
            f"no workflow {name!r}: expected a Python file, or one of {', '.join(BUNDLED)}; "
            f"{nearest(name, BUNDLED)}"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # its functions must be found again by name
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    for candidate in ("workflow", path.stem):
        if inspect.isfunction(getattr(module, candidate, None)):
            chosen: Workflow = getattr(module, candidate)
            return chosen
    raise SettingsError(f"{path} has no function `workflow` or `{path.stem}` that returns steps")


def parse_settings(workflow: Workflow, arguments: Sequence[str]) -> dict[str, Any]:
    """Settings of a workflow from `--name value` pairs; a tuple takes its flag several times.

    SettingsError lists every mistake at once: unknown names (with the nearest), wrong types.
    """
    from pydantic import ValidationError, create_model

    parameters = inspect.signature(workflow, eval_str=True).parameters
    fields: dict[str, Any] = {
        name: (p.annotation, ... if p.default is p.empty else p.default)
        for name, p in parameters.items()
    }
    given, mistakes = _pairs(arguments, fields)
    model = create_model("Settings", __config__={"extra": "forbid"}, **fields)
    try:
        known = {name: value for name, value in given.items() if name in fields}
        settings = model(**known)
    except ValidationError as error:
        mistakes += [
            f"--{'.'.join(map(str, e['loc'])).replace('_', '-')}: {e['msg']}"
            for e in error.errors(include_url=False)
        ]
    if mistakes:
        raise SettingsError(f"settings of {workflow.__name__}:\n  " + "\n  ".join(mistakes))
    return {name: getattr(settings, name) for name in fields}


def _pairs(arguments: Sequence[str], fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    given: dict[str, Any] = {}
    mistakes: list[str] = []
    left = list(arguments)
    while left:
        flag, joined, value = left.pop(0).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in fields:
            flags = [f"--{field.replace('_', '-')}" for field in fields]
            mistakes.append(f"{flag}: unknown; {nearest(flag, flags)}")
            if not joined and left and not left[0].startswith("--"):
                left.pop(0)
            continue
        kind = fields[name][0]
        if kind is bool and not joined:
            value = "true"
        elif not joined:
            if not left:
                mistakes.append(f"{flag}: a value is missing")
                continue
            value = left.pop(0)
        if getattr(kind, "__origin__", None) in (tuple, list):
            given.setdefault(name, []).append(value)
        else:
            given[name] = value
    return given, mistakes
