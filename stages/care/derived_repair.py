"""Damaged derived results: put aside with their arrays, so that deriving computes them again."""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.stages.care.book_repair import holders
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.storage.books import FOLDER as BOOKS
from stillroom.storage.books import book_of
from stillroom.storage.care.problems import Problem
from stillroom.storage.derived import FOLDER, record_of, record_places
from stillroom.storage.errors import StillroomError
from stillroom.storage.place import relative


def parted_derived(
    state: TeachState, problems: Sequence[Problem]
) -> tuple[list[str], list[Problem]]:
    """Paths to put aside, and the problems that are none of derived results'.

    Books that no segment needs are theirs; a record goes when its own file, its rows or its book is
    damaged. Nothing of it can be made again here: what it was computed by is not known.
    """
    root = state.cache.path
    own = {p.path for p in problems if p.path.startswith(f"{FOLDER}/")}
    books = {
        p.path
        for p in problems
        if p.path.startswith(f"{BOOKS}/") and not holders(state, str(book_of(root / p.path)))
    }
    gone = set(own)
    for place in record_places(root):
        try:
            record = record_of(place, root)
        except (StillroomError, OSError):
            continue
        if f"{BOOKS}/{record.book}.arrow" in books or f"{FOLDER}/{record.keys_file}" in own:
            gone.add(relative(place, root))
            gone |= {f"{BOOKS}/{record.book}.arrow"} & books
    rest = [p for p in problems if p.path not in gone]
    # The record first: without it nothing names the others.
    ordered = sorted(gone, key=lambda path: (not path.endswith(".json"), path))
    return [path for path in ordered if (root / path).exists()], rest
