"""What an exported student says of itself: `student.json`, and what can be wrong with it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.stages.student import Record
from stillroom.storage.errors import GARBLED, FormatError, StillroomError, listed
from stillroom.storage.files import read_json
from stillroom.storage.identity import canonical

DESCRIPTION = "student.json"
WEIGHTS = "weights.safetensors"
VERSION = 1
HEAD, TABLE = "head", "table"
"""Before the name of a kept head's tensor, `head:NAME.weight`, and of a table, `table:NAME`. The
student's own tensors have the names that torch gives them, which hold no colon."""


class ExportError(StillroomError, ValueError):
    """A student cannot be exported, or what was written does not answer as it does."""


def import_path(function: Any) -> dict[str, Any]:
    """Where a function is imported from and what a partial gives it, as plain JSON.

    For people and for looking it up: nothing imports it by this name.

    >>> import_path(partial(int, "ff", base=16))
    {'import': 'builtins:int', 'arguments': ['ff'], 'keywords': {'base': 16}}
    """
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    while isinstance(function, partial):
        arguments = [*function.args, *arguments]
        keywords = {**function.keywords, **keywords}
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return {
        "import": f"{named.__module__}:{named.__qualname__}",
        "arguments": [_plain(value) for value in arguments],
        "keywords": {name: _plain(value) for name, value in keywords.items()},
    }


def _plain(value: Any) -> Any:
    """The value where JSON holds it, else how Python spells it."""
    try:
        canonical(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


def spelled(path: Mapping[str, Any]) -> str:
    """An import path as one would write it, for messages."""
    named = [f"{name}={value!r}" for name, value in path["keywords"].items()]
    given = ", ".join([*map(repr, path["arguments"]), *named])
    return f"{path['import'].replace(':', '.')}({given})"


def provenance(record: Record) -> dict[str, Any]:
    """Of a record, what a reader of the exported student wants to know."""
    wanted = (
        *(
            "digest",
            "snapshot",
            "reads",
            "split",
            "rows",
            "asked_rows",
            "beside",
            "recipe",
            "terms",
        ),
        *("fit", "epochs", "best_epoch", "seconds", "machine"),
    )
    return {name: record.content[name] for name in wanted if name in record.content}


def libraries(*names: str) -> dict[str, str]:
    """The versions of what wrote the files."""
    return {name: importlib.metadata.version(name) for name in names}


def file_said(path: Path) -> dict[str, Any]:
    """A written file by name, bytes and SHA-256."""
    content = path.read_bytes()
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def read_description(folder: Path) -> dict[str, Any]:
    """`student.json` of an exported student, with every file that it names as it was written.

    FormatError for a folder that holds none or another version, and for a file that was changed.
    """
    place = folder / DESCRIPTION
    if not place.is_file():
        raise FormatError(
            f"{folder} holds no exported student: there is no {DESCRIPTION}; make one with "
            "export_student() or `stillroom export`"
        )
    said = read_json(place)
    try:
        version, forms = (
            said["format"],
            {n: (f["file"], f["sha256"]) for n, f in said["forms"].items()},
        )
        for name in ("student", "inputs", "outputs", "layers", "heads", "tables", "answer"):
            _ = said[name]
    except GARBLED as error:
        raise FormatError(f"{place} is no description of a student: {error!r}") from error
    if version != VERSION:
        raise FormatError(
            f"{place} is of format {version}, this stillroom reads format {VERSION}; export it again, or "
            "install the stillroom that wrote it"
        )
    changed = [
        file
        for file, sha in forms.values()
        if not (folder / file).is_file() or file_said(folder / file)["sha256"] != sha
    ]
    if changed:
        raise FormatError(
            f"{folder}: {listed(changed)} is not as it was exported: damaged, replaced or gone; export "
            "the student again"
        )
    return said
