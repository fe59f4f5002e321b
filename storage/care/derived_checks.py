"""Records of what was derived over the whole cache, for verify: each against its own checksum."""

from __future__ import annotations

from collections.abc import Iterable

from stillroom.storage.care.problems import EXTRA, Problem, damage
from stillroom.storage.derived import FOLDER, is_keys, record_of, record_places
from stillroom.storage.errors import StillroomError
from stillroom.storage.files import TEMPORARY, children, size_of
from stillroom.storage.place import Place, relative


class DerivedChecks:
    """The folder `derived` of a cache."""

    def __init__(self, cache: Place) -> None:
        """Nothing is read yet."""
        self._cache = cache
        self.files = self.bytes = 0
        self.books: dict[str, Iterable[str]] = {}
        """The books that each readable record names, by the record's path."""
        self.leftovers: list[str] = []
        """Files of rows that no record names: of a run that was killed."""

    def problems(self) -> list[Problem]:
        """Records and files of rows that are damaged, missing or none."""
        found, named, readable = [], set[str](), True
        records = record_places(self._cache)
        for place in records:
            self._read(place)
            try:
                record = record_of(place, self._cache)
                self.books[relative(place, self._cache)] = [record.book]
                if record.keys_file is not None:
                    named.add(record.keys_file)
                    place = self._cache / FOLDER / record.keys_file
                    self._read(place)
                    record.keys()
            except (StillroomError, OSError) as error:
                readable = readable and place.name in named
                found.append(self._problem(place, damage(error)))
        known = {place.name for place in records}
        for place in sorted(children(self._cache / FOLDER), key=lambda p: p.name):
            if place.name in known or place.name in named:
                continue
            if place.name.startswith(TEMPORARY) or (is_keys(place.name) and readable):
                self.leftovers.append(relative(place, self._cache))
            elif not is_keys(place.name) and place.name != "made":
                found.append(self._problem(place, EXTRA))
        return found

    def _read(self, place: Place) -> None:
        self.files += 1
        self.bytes += size_of(place) or 0

    def _problem(self, place: Place, what: str) -> Problem:
        return Problem(None, None, None, relative(place, self._cache), what)
