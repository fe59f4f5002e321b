"""Whose a teacher's name in a cache is: two workflows that mean different teachers by it are kept apart."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from stillroom.pipeline.step import WorkflowError
from stillroom.stages.events import CacheChosen
from stillroom.storage.errors import GARBLED, StillroomError
from stillroom.storage.files import read_json, write_json


def require_meaning(folder: Path, flow: str, event: CacheChosen) -> None:
    """Note in the state at `folder` who teaches what, before a row is computed.

    WorkflowError when another workflow, which is still there, wrote last under that teacher's name and
    with another identity. A workflow whose own teacher changed goes on, and so does one that means the
    same teacher. What cannot be read or written is not noted.
    """
    if not folder.is_dir():
        return
    where = event.cache if "://" in event.cache else str(Path(event.cache).resolve())
    named = hashlib.sha256(f"{where}\n{event.teacher}".encode()).hexdigest()[:32]
    place = folder / "writers" / f"{named}.json"
    known: dict[str, str] = {}
    with suppress(OSError, StillroomError, *GARBLED):
        known = {name: str(value) for name, value in read_json(place).items()}
    other = known.get("flow", flow)
    gone = Path(other).is_absolute() and not Path(other).exists()
    if other != flow and not gone and known.get("identity") != event.identity:
        raise WorkflowError(
            f"teacher {event.teacher!r} in {event.cache} is another one to the workflow {other}, which "
            f"taught there last; nothing was computed. Name one of the two teachers otherwise, or give "
            f"this workflow a cache of its own; where {flow} is to replace the other one, remove {place}"
        )
    note = {"flow": flow, "cache": where, "teacher": event.teacher, "identity": event.identity}
    with suppress(OSError, StillroomError):
        place.parent.mkdir(exist_ok=True)
        write_json(place, note)
