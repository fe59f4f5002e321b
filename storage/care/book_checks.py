"""Books for verify: each against its own name, and those that segments need against what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from stillroom.storage.books import FOLDER, book_of, book_place, file_digest
from stillroom.storage.care.problems import EXTRA, Problem, damage
from stillroom.storage.errors import StillroomError
from stillroom.storage.files import TEMPORARY, children, size_of
from stillroom.storage.opening import with_book
from stillroom.storage.place import Place, relative
from stillroom.storage.signal import Signal


class BookChecks:
    """The folder `books` of a cache."""

    def __init__(self, cache: Place, needed: Mapping[str, Iterable[str]]) -> None:
        """`needed`: for each segment and draft, by its folder's name, the digests that it names."""
        self._cache = cache
        self._needed: dict[str, str] = {}
        for name, digests in needed.items():
            for digest in digests:
                self._needed.setdefault(digest, name)
        self.files = self.bytes = 0
        self._present: list[str] = []
        self._sound = set[str]()
        self.leftovers: list[str] = []
        """Of a run that was killed before it named its book, or of segments that were pruned."""

    def _problem(self, place: Place, what: str) -> Problem:
        return Problem(None, None, None, relative(place, self._cache), what)

    def small(self) -> list[Problem]:
        """Books that are missing, and files that are none."""
        found, present = [], set[str]()
        for place in sorted(children(self._cache / FOLDER), key=lambda p: p.name):
            digest = book_of(place)
            if digest in self._needed and place.is_file():
                present.add(str(digest))
            elif (digest is not None and place.is_file()) or place.name.startswith(TEMPORARY):
                self.leftovers.append(relative(place, self._cache))
            elif digest not in self._needed:
                found.append(self._problem(place, EXTRA))
        for digest, name in self._needed.items():
            if digest not in present:
                place = book_place(self._cache, digest)
                found.append(self._problem(place, f"is missing, though {name} needs it"))
        self._present = sorted(present)
        return found

    def tasks(self) -> Iterator[Callable[[], list[Problem]]]:
        """One for each book, which reads all of it; after `small`."""
        for digest in self._present:
            self.files += 1
            self.bytes += size_of(book_place(self._cache, digest)) or 0
            yield partial(self._digest, digest)

    def _digest(self, digest: str) -> list[Problem]:
        place = book_place(self._cache, digest)
        try:
            found = file_digest(place)
        except (StillroomError, OSError) as error:
            return [self._problem(place, f"cannot be read: {damage(error)}")]
        if found == digest:
            self._sound.add(digest)
            return []
        return [self._problem(place, f"has SHA-256 {found}: bytes were changed")]

    def fitting(self, signals: Iterable[Signal]) -> list[Problem]:
        """Books that are as they were written, and yet not what these signals can be read with; after
        the tasks."""
        found = []
        for signal in {s.book: s for s in signals if s.book in self._sound}.values():
            try:
                with_book(self._cache, signal, check=False)
            except (StillroomError, OSError) as error:
                place = book_place(self._cache, signal.book)
                found.append(self._problem(place, damage(error)))
        return found
