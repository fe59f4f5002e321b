"""JsonLines: every event as one JSON object on a line of a file, with its time."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from stillroom.storage.files import store_errors


class JsonLines:
    """Appends each event to a file as it comes: `{"at": unix seconds, "event": its class, fields...}`.

    A line is written whole and at once, so that others may follow the file, and several runs may
    append to one. `pyarrow.json.read_json` reads it: a column has one type, so metrics become columns
    `metrics.NAME`, whatever else is nested is JSON text, and a number that is none is null. The end of
    a line that a killed process began is cut off. Raises StoreFullError and StorePermissionError.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the file, or make it and its folders."""
        self.path, self._clock, self._lock = Path(path), clock, threading.Lock()
        with store_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            _cut_torn_line(self._file)

    def __call__(self, event: Any) -> None:
        """Append one event."""
        line = json.dumps({"at": self._clock(), **plain(event)}, ensure_ascii=False) + "\n"
        with self._lock, store_errors(self.path):
            os.write(self._file, line.encode())

    def close(self) -> None:
        """Close the file; nothing is left to be written."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def plain(event: Any) -> dict[str, Any]:
    """An event (a dataclass) as a flat object.

    >>> from stillroom.stages.events import StudentTrained
    >>> plain(StudentTrained("kd", 0, 1.5, {"accuracy": 0.5, "ece": float("nan")}))
    {'event': 'StudentTrained', 'name': 'kd', 'seed': 0, 'seconds': 1.5, 'metrics.accuracy': 0.5, \
'metrics.ece': None}
    """
    found: dict[str, Any] = {"event": type(event).__name__}
    for each in fields(event):
        value = getattr(event, each.name)
        if isinstance(value, Mapping) and all(isinstance(v, float) for v in value.values()):
            found |= {f"{each.name}.{key}": _flat(v) for key, v in value.items()}
        else:
            found[each.name] = _flat(value)
    return found


def _flat(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        value = {str(key): each for key, each in value.items()}
    return json.dumps(value, default=str, ensure_ascii=False)


def _cut_torn_line(file: int) -> None:
    """A process that was killed may have left a line without its end."""
    size = end = os.fstat(file).st_size
    while end and os.pread(file, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(file, end)
