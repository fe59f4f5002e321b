"""What a step is made of, and in words what of it changed since it last ran."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.pipeline.step import Result, Step, WorkflowError
from stillroom.storage.code import code_identity
from stillroom.storage.identity import canonical, differences, digest

_SHOWN = 200
"""Characters up to which a field of an input is kept as it is, so that a change of it can be said."""
_NAMED = 3
"""Changes that are named; of more it is said how many."""


class StepTypeError(WorkflowError, TypeError):
    """A step's function, settings or result is of a kind that cannot be compared or kept."""


def step_identity(step: Step, inputs: Mapping[str, Result]) -> dict[str, Any]:
    """Code, settings, files and inputs of a step as plain JSON; without any path or place.

    Code is that of its function and of all of the user's code that it calls, source by digest.
    Raises StepTypeError for what has no identity, WorkflowError for a file that cannot be read.
    """
    return {
        "code": _without_sources(_code(step)),
        "settings": _settings(step),
        "files": {name: _file_digest(step, file) for name, file in _named_files(step.files)},
        "inputs": {name: _input(result) for name, result in inputs.items()},
    }


def changed(
    known: Mapping[str, Any], now: Mapping[str, Any], step: Step, inputs: Mapping[str, Result]
) -> str:
    """In which parts two identities of a step differ, in words; empty when in none."""
    # Older records have one digest of the code, and one of each input.
    if isinstance(known.get("code"), str) and known["code"] == digest(_code(step)):
        known = {**known, "code": now["code"]}
    same = {
        name: now["inputs"][name] for name, result in inputs.items() if _is(known, name, result)
    }
    if same:
        known = {**known, "inputs": {**known["inputs"], **same}}
    every = list(dict.fromkeys(_changes(known, now)))
    more = len(every) - _NAMED
    return "; ".join(every[:_NAMED]) + (f"; and {more:,} more" if more > 0 else "")


def plain_result(step: Step, result: Any) -> Result:
    """The result as the next run will read it, so that both runs see the same.

    StepTypeError for one that is no dict of plain JSON.
    """
    try:
        plain = json.loads(canonical(result))
    except (TypeError, ValueError) as error:
        raise StepTypeError(
            f"step {step.name!r}: its result must be plain JSON: {error}"
        ) from error
    if not isinstance(plain, dict):
        raise StepTypeError(
            f"step {step.name!r} returned a {type(result).__name__}; expected a dict of plain JSON"
        )
    return plain


def _code(step: Step) -> dict[str, Any]:
    try:
        return code_identity(step.function)
    except TypeError as error:
        raise StepTypeError(f"step {step.name!r}: its function: {error}") from error


def _without_sources(code: dict[str, Any]) -> dict[str, Any]:
    """Sources by digest: a record says whose code changed, not which line."""

    def short(part: Any) -> Any:
        if isinstance(part, dict) and "source" in part:
            return {**part, "source": digest(part["source"])}
        return digest(part) if isinstance(part, str) else part

    return {**code, "code": {name: short(part) for name, part in code["code"].items()}}


def _settings(step: Step) -> dict[str, Any]:
    """The settings as JSON would give them back; refused before the step runs when it cannot."""
    try:
        plain: dict[str, Any] = json.loads(canonical(dict(step.settings)))
    except (TypeError, ValueError) as error:
        raise StepTypeError(f"step {step.name!r}: settings must be plain JSON: {error}") from error
    return plain


def _named_files(files: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Files by name, numbered where two folders have one of the same name; never by path."""
    seen: list[str] = []
    for file in map(Path, files):
        same = seen.count(file.name)
        seen.append(file.name)
        yield f"{file.name}#{same}" if same else file.name, file


def _file_digest(step: Step, file: Path) -> str:
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise WorkflowError(
            f"step {step.name!r} reads the file {file}, which cannot be read: {error.strerror}; put it "
            "there, or let a step make it and need that step"
        ) from error


def _input(result: Result) -> dict[str, Any]:
    """A result, its long fields by digest."""
    return {
        key: value if len(canonical(value)) <= _SHOWN else digest(value)
        for key, value in result.items()
    }


def _is(known: Mapping[str, Any], name: str, result: Result) -> bool:
    """Whether a record names this input by its digest alone, and that is the same."""
    inputs = known.get("inputs")
    return isinstance(inputs, dict) and inputs.get(name) == digest(result)


def _changes(known: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    def field(name: str) -> Any:
        value = known.get(name)
        return value if isinstance(value, dict) else {}

    # Data first: a schedule may wait for it, and of many reasons only the first are said.
    for words in _words(field("files"), now["files"], "contents changed"):
        yield f"file {words}"
    before, after = known.get("code"), now["code"]
    if isinstance(before, dict):
        yield from _words(before, after, "its code changed", "code")
    elif before != after:
        yield "its code changed"
    for words in _words(field("settings"), now["settings"], "values changed"):
        yield f"setting {words}"
    before, after = field("inputs"), now["inputs"]
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield f"it {'now needs' if name in after else 'no longer needs'} {name}"
        elif not isinstance(before[name], dict):
            yield from [f"result of {name} changed"] * (before[name] != after[name])
        else:
            for words in _words(before[name], after[name], "another"):
                yield f"result of {name}: {words}"


def _words(old: Any, new: Any, otherwise: str, where: str = "") -> list[str]:
    """Differences; never none of two that differ, whatever they are called."""
    return [] if canonical(old) == canonical(new) else differences(old, new, where) or [otherwise]
