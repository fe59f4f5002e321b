"""When a cache was last verified here, and what came of it: noted beside the schedules, never in it."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillroom.storage.care.problems import Verified
from stillroom.storage.errors import GARBLED, StillroomError
from stillroom.storage.files import read_json, write_json


def note_verified(folder: Path, path: str | Path, found: Verified) -> None:
    """Note it in the state at `folder`, where there is one; one that cannot be written is not noted."""
    if not folder.is_dir():
        return
    note = {
        "path": _whole(path),
        "at": int(time.time()),
        "problems": len(found.problems),
        "bytes": found.bytes,
    }
    with suppress(OSError, StillroomError):
        place = _place(folder, path)
        place.parent.mkdir(exist_ok=True)
        write_json(place, note)


def verified_of(folder: Path, path: str | Path) -> dict[str, Any] | None:
    """`at` in unix seconds, `problems` and `bytes` of the last time; None where there was none."""
    try:
        note = read_json(_place(folder, path))
        return {name: int(note[name]) for name in ("at", "problems", "bytes")}
    except (OSError, StillroomError, *GARBLED):
        return None


def _place(folder: Path, path: str | Path) -> Path:
    return folder / "verified" / f"{hashlib.sha256(_whole(path).encode()).hexdigest()[:32]}.json"


def _whole(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).resolve())
