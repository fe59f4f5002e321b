"""A lost or damaged book made again: the teacher's constants, or centroids of the rows of that time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stillroom.stages.data.rows import Int64s
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.stages.worker.book_work import BookDone, BookTask, BookWork
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.head import Head
from stillroom.storage.errors import GARBLED, StillroomError
from stillroom.storage.files import children, read_json
from stillroom.storage.folder import Folder
from stillroom.storage.keys import KeyIndex


def holders(state: TeachState, digest: str) -> list[Folder]:
    """Segments and drafts, oldest first, whose plan can be read and names the book."""
    found = []
    for place in sorted(children(state.cache.path / "segments"), key=lambda p: p.name):
        try:
            folder = Folder(place)
        except (StillroomError, OSError):
            continue
        if any(ask.book == digest for ask in folder.asked.values()):
            found.append(folder)
    return found


def remade(
    state: TeachState, runner: Mapper, batch_size: int | None, digest: str, folders: list[Folder]
) -> Iterator[BookDone]:
    """What a worker makes for each of these folders of the teacher, until it is that book again.

    Nothing of a folder whose rows have changed since, unless the teacher alone decides the book.
    """
    for folder in folders:
        asked = {name: ask for name, ask in folder.asked.items() if ask.book == digest}
        places = _places(state, folder)
        fixed = all(isinstance(encoding(ask.encoding), Head) for ask in asked.values())
        if places is None and not fixed:
            continue
        size = batch_size or noted_batch_size(folder) or 256
        work = BookWork(state.teacher, state.rows, state.cache.path, size)
        given = np.zeros(0, np.int64) if places is None else places
        for done in runner.map(work, [BookTask(asked, given)]):
            yield done
            if digest in done.books.values():
                return


def _places(state: TeachState, folder: Folder) -> Int64s | None:
    """Where the folder's rows are in the data set; None when one is no more there as it was."""
    try:
        places = KeyIndex(state.rows.keys).find(folder.keys)
        if (places < 0).any() or (state.own.hashes[places] != folder.hashes).any():
            return None
    except StillroomError:
        return None
    return places


def noted_batch_size(folder: Folder) -> int:
    """The batch size that the first shard was made with; 0 where that was not noted."""
    try:
        return int(read_json(folder.path / "made" / "00000.json")["batch_size"])
    except (StillroomError, *GARBLED):
        return 0
