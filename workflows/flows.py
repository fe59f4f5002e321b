"""Workflows by name or file, and their steps, from the settings of a command line.

A workflow is a function that returns steps; its keyword arguments are its settings.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.pipeline.execute import ordered
from stillroom.pipeline.step import Step, WorkflowError
from stillroom.storage.errors import SettingsError as SettingsError
from stillroom.storage.errors import StillroomError, nearest
from stillroom.workflows.settings import settings_of

Workflow = Callable[..., list[Step]]
BUNDLED = ("digits",)


class FlowError(SettingsError):
    """A workflow's own code failed while it was imported or made its steps; with its traceback."""


def find_workflow(name: str) -> Workflow:
    """A bundled workflow, or the function `workflow` (or of the file's name) in a Python file.

    SettingsError when there is none; FlowError, with the file's traceback, when importing it fails.
    """
    if name in BUNDLED:
        found: Workflow = getattr(importlib.import_module(f"stillroom.workflows.{name}"), name)
        return found
    path = Path(name)
    if path.suffix != ".py":
        raise SettingsError(
            f"no workflow {name!r}: expected a Python file, or one of {', '.join(BUNDLED)}; "
            f"{nearest(name, BUNDLED)}"
        )
    if not path.is_file():
        raise SettingsError(_no_file(path))
    module = _imported(path)
    for candidate in ("workflow", path.stem):
        if inspect.isfunction(getattr(module, candidate, None)):
            chosen: Workflow = getattr(module, candidate)
            return chosen
    raise SettingsError(f"{path} has no function `workflow` or `{path.stem}` that returns steps")


def parse_settings(workflow: Workflow, arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments of a workflow from `--config FILE`, `--set path=value` and `--name value`.

    SettingsError lists every mistake at once: unknown names (with the nearest), wrong types. What a
    user should know besides, such as that an older file was migrated, is said on stderr.
    """
    settings = settings_of(workflow, arguments)
    for notice in settings.notices:
        print(f"stillroom: {notice}", file=sys.stderr)
    return dict(settings.values)


def open_flow(flow: str, arguments: Sequence[str] = ()) -> list[Step]:
    """The steps of a workflow by name or file, with the settings of a command line; nothing runs.

    Raises what `find_workflow`, `parse_settings` and `steps_of` do.
    """
    workflow = find_workflow(flow)
    return steps_of(workflow, parse_settings(workflow, arguments))


def steps_of(workflow: Workflow, settings: Mapping[str, Any]) -> list[Step]:
    """The steps that a workflow returns, and everything they need, each after what it needs.

    FlowError, with the traceback of its own code, when it fails; WorkflowError when it returns no
    steps, steps that need each other in a circle, or two of one name.
    """
    try:
        returned: Any = workflow(**settings)
        found = list(returned) if _is_several(returned) else returned  # a generator runs here
    except (StillroomError, WorkflowError):
        raise
    except Exception as error:
        place = inspect.getsourcefile(workflow) or ""
        raise FlowError(
            f"workflow {workflow.__name__} failed before any step ran:\n{_own(error, place)}"
        ) from error
    if not isinstance(found, list):
        missing = "; is a `return` missing?" if found is None else ""
        hint = "; write [step]" if isinstance(found, Step) else missing
        raise WorkflowError(
            f"workflow {workflow.__name__} should return a list of steps, found "
            f"{type(found).__name__}{hint}"
        )
    if not found:
        raise WorkflowError(f"workflow {workflow.__name__} returned no steps; return the last ones")
    return ordered(found)


def _is_several(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _no_file(path: Path) -> str:
    """That there is no such file, and which one may be meant."""
    if path.is_dir():
        return f"{path} is a folder; expected a Python file with a workflow"
    near = path.parent if path.parent.is_dir() else Path()
    files = [str(file) for file in near.glob("*.py")]
    return f"no file {path} (looked in {Path.cwd()}); {nearest(str(path), files)}"


def _imported(path: Path) -> Any:
    """The file's module, known by its stem: workers must find its functions by name."""
    if _is_taken(path):
        raise SettingsError(
            f"{path}: a module {path.stem!r} is installed, which this file would hide from everything "
            "else; rename the file"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[path.stem]
        if before is not None:
            sys.modules[path.stem] = before
        raise FlowError(f"{path} cannot be imported:\n{_own(error, str(path))}") from error
    return module


def _is_taken(path: Path) -> bool:
    """Whether the file's stem is the name of something installed."""
    if path.stem in (*sys.stdlib_module_names, "stillroom"):
        return True
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):  # such as of a module without a spec
        return False
    origin = Path(spec.origin).resolve() if spec and spec.origin else None
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    return origin is not None and any(origin.is_relative_to(place) for place in installed)


def _own(error: BaseException, file: str) -> str:
    """The traceback from the user's file on, without what led there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(file).resolve()
    first = next(
        (i for i, f in enumerate(frames) if Path(f.filename).resolve() == own), len(frames)
    )
    told = traceback.TracebackException.from_exception(error, limit=first - len(frames) or 1)
    if first == len(frames):
        told.stack.clear()  # a file that cannot be parsed never ran
    return "".join(told.format()).rstrip()
