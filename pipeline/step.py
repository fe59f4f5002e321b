"""Step: a function with its settings and what it needs; what a workflow is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.pipeline.events import ignore
from stillroom.pipeline.runner import LocalRunner, Runner
from stillroom.pipeline.stopping import Stop

Result = dict[str, Any]
"""What a step returns: plain JSON that says where its outputs are and what they are.

`outputs` lists files below the run's folder: when one is gone the step is stale. `show` names a text
file that is printed at the end of a run, `report` a page that is pointed to.
"""


class WorkflowError(ValueError):
    """A workflow that cannot be run: steps that need each other in a circle, two of one name, a step
    that is none, or one of which a part has no identity."""


@dataclass(frozen=True)
class Run:
    """Where and how a workflow runs now; nothing of it is part of any step's identity."""

    folder: Path
    """Steps keep their outputs and their records under it."""
    runner: Runner = field(default_factory=LocalRunner)
    listen: Callable[[Any], None] = ignore
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the caller wants of previews, by name; each looks for those that it knows."""
    flow: str = ""
    """The workflow's file (absolute) or name; steps note whose they are. Empty: they do not."""
    stop: Stop = field(default_factory=Stop)
    """Once an end was asked for, no further step begins; the runner has the same one."""


@dataclass(frozen=True)
class Preview:
    """What a step would compute now."""

    why: str
    """Why it would run; empty when there is nothing to compute."""
    lines: tuple[str, ...] = ()
    """What a person may want to know besides."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The same as plain JSON."""
    refused: str = ""
    """Why it cannot run; empty when it can."""


@dataclass(frozen=True)
class Step:
    """One step of a workflow."""

    name: str
    """Unique in the workflow; names its record."""
    function: Callable[..., Result]
    """`function(run, inputs, **settings)`; `inputs` holds the results of `needs` by name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON; a change makes the step stale."""
    needs: tuple[Step, ...] = ()
    """Steps that come before; a change of their results makes this one stale."""
    files: tuple[Path, ...] = ()
    """Files outside the run's folder that it reads; a change of their bytes makes it stale."""
    preview: Callable[..., str | Preview] | None = None
    """For a step that finds by itself what is stale (teach, train): it is always called, and
    `preview(run, inputs, **settings)` says what it would compute now, "" for nothing."""
    actions: Mapping[str, Callable[..., Result]] = field(default_factory=dict)
    """What else can be done with the step's outputs, by name (audit, repair): functions with the
    arguments of `function`, called on demand; no part of the step's identity."""

    def __post_init__(self) -> None:
        """Refuse parts of the wrong kind where the step is made, not where it runs."""
        if not callable(self.function):
            raise TypeError(f"step {self.name!r}: its function is a {_kind(self.function)}")
        for what, each in (("needs", Step), ("files", (str, Path))):
            given = getattr(self, what)
            if not isinstance(given, tuple | list) or not all(isinstance(i, each) for i in given):
                found = _kind(given)
                if isinstance(given, tuple | list):
                    found += f" of {', '.join(dict.fromkeys(map(_kind, given)))}"
                expected = "a tuple of steps" if what == "needs" else "a tuple of paths"
                raise TypeError(f"step {self.name!r}: {what} should be {expected}, found {found}")
        if not isinstance(self.settings, Mapping):
            raise TypeError(
                f"step {self.name!r}: settings should be a mapping, found {_kind(self.settings)}"
            )


def _kind(thing: Any) -> str:
    return type(thing).__name__
