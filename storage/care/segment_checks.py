"""One segment's folder for verify: its small files at once, its shards as tasks for threads."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from stillroom.storage.care.file_checks import file_problems
from stillroom.storage.care.problems import EXTRA, Problem, damage
from stillroom.storage.draft import seal_of
from stillroom.storage.errors import GARBLED, CorruptShardError, StillroomError
from stillroom.storage.files import (
    TEMPORARY,
    crc32c,
    fits_checksum,
    json_bytes,
    parse_json,
    pieces_of,
    read_whole,
    size_of,
)
from stillroom.storage.folder import Folder, Shard
from stillroom.storage.identity import digest
from stillroom.storage.keys import check_unique
from stillroom.storage.place import Place, files_below, relative
from stillroom.storage.segment import Segment
from stillroom.storage.shards import StoredFile
from stillroom.storage.signal import Signal
from stillroom.storage.zarr_shards import array_metadata

_SHARD = re.compile(
    r"(?:signals/[^/]+/c/([0-9]{1,9})|records/[^/]+/([0-9]{1,9})\.arrow"
    r"|receipts/([0-9]{1,9})\.json)\b.*"
)


def shard_of(path: str) -> int | None:
    """The shard that a file in a segment belongs to, from its path.

    >>> shard_of("signals/logits/c/3/0")
    3
    """
    match = _SHARD.fullmatch(path)
    return int(match[1] or match[2] or match[3]) if match else None


class SegmentChecks:
    """What one segment's files should be, and whether they are; drafts have no seal to hold to."""

    def __init__(self, cache: Place, folder: Place) -> None:
        """Nothing is read yet."""
        self.folder = folder
        self._cache = cache
        self.sealed = (folder / "segment.json").exists()
        self.segment: Segment | None = None
        """The opened segment, where it is sealed and can be opened."""
        self.leftovers: list[str] = []
        self.unfinished = self.files = self.bytes = 0
        self._sums: Mapping[str, str] = {}
        self._receipts: dict[int, dict[str, Any]] = {}
        self._suspect: set[int] = set()
        """Shards whose receipt is damaged: whose files are whose cannot be said."""
        self._odd: dict[str, str] = {}
        """Small files that fit their own checksum and not the seal's, and how in words."""
        self._plan: Folder | None = None
        self._shards: list[Shard] = []
        self._no_rows = ""
        """What keeps rows.arrow from being opened, in words."""
        self._first_format = False
        """Whether the plan is of format 1, which knew no checksums but those of the seal."""
        self._known = {"segment.json", "plan.json", "rows.arrow"}

    def small(self) -> list[Problem]:
        """Plan, rows, receipts, seal, Zarr's metadata, and files that nothing names."""
        found = [*self._seal_itself(), *self._plan_and_rows(), *self._all_receipts()]
        found += self._seal_or_files(blame_seal=not found)
        if not found and self.sealed and not self._first_format:
            found += self._seal_agrees()
        found += self._metadata()
        found += self._strays()
        if self.sealed:
            try:
                self.segment = Segment(self.folder)
            except (StillroomError, OSError) as error:
                words = damage(error)
                if not found:
                    found.append(self._problem("segment.json", words))
        return found

    def books(self) -> set[str]:
        """The digests of the books that the plan and the receipts name; after `small`."""
        named = {ask.book for ask in self._plan.asked.values()} if self._plan else set()
        for receipt in self._receipts.values():
            named |= {str(s.get("book", "")) for s in receipt["signals"].values()}
        return named - {""}

    def tasks(self) -> Iterator[Callable[[], list[Problem]]]:
        """One task for each file of each finished shard."""
        for index, receipt in self._receipts.items():
            for name, described in receipt["signals"].items():
                for entry in described["files"]:
                    yield self._task(index, name, described, entry)

    def _task(
        self, index: int, name: str, described: Any, entry: Any
    ) -> Callable[[], list[Problem]]:
        file, signal = StoredFile.from_json(entry), Signal.from_json(name, described)

        def task() -> list[Problem]:
            try:
                words = list(file_problems(self.folder, file, signal))
            except (StillroomError, OSError) as error:  # the disk cannot read it, or it just went
                words = [f"cannot be read: {damage(error)}"]
            return [self._problem(file.path, what, index, name) for what in words]

        self.files += 1
        self.bytes += file.bytes
        return task

    def _problem(
        self, path: str, what: str, shard: int | None = None, signal: str | None = None
    ) -> Problem:
        inside = relative((self.folder / path), self._cache)
        return Problem(self.folder.name, shard, signal, inside, what)

    def _seal_itself(self) -> Iterator[Problem]:
        if not self.sealed:
            return
        place = self.folder / "segment.json"
        try:
            content = self._read(read_whole(place))
            seal = parse_json(content, place)
            self._sums = {str(n): str(crc) for n, crc in seal["files"].items()}
            if json_bytes(seal) != content:
                yield self._problem("segment.json", "is not spelled as it was written")
        except (StillroomError, OSError, *GARBLED) as error:
            yield self._problem("segment.json", f"cannot be read: {damage(error)}")

    def _seal_or_files(self, blame_seal: bool) -> Iterator[Problem]:
        """Small files that differ from the seal: one alone that is whole in itself is right, and the
        seal is wrong."""
        if blame_seal and len(self._odd) == 1:
            (path,) = self._odd
            yield self._problem("segment.json", f"states another checksum than that of {path}")
            return
        for path, what in self._odd.items():
            yield self._problem(path, what, shard_of(path))

    def _json(self, path: str) -> tuple[dict[str, Any], str]:
        """A small file, and what is wrong with its bytes in words."""
        place = self.folder / path
        content = self._read(read_whole(place))
        value = parse_json(content, place)
        whole = None
        self._first_format |= path == "plan.json" and value.get("format") == 1
        if not self._first_format or "checksum" in value:
            whole = fits_checksum(value, content)
        return value, self._differs(path, whole, f"{crc32c([content]):08x}")

    def _read(self, content: bytes) -> bytes:
        self.files, self.bytes = self.files + 1, self.bytes + len(content)
        return content

    def _differs(self, path: str, whole: bool | None, found: str) -> str:
        """In words what is wrong with a small file; empty when nothing is, or when the seal may be.

        `whole`: whether it fits the checksum that it or its plan holds; None where there is none.
        """
        if whole is False:
            return "its own checksum does not fit: bytes were changed"
        stated = self._sums.get(path)
        words = "" if stated in (None, found) else f"checksum {found}, the seal says {stated}"
        if words and whole:
            self._odd[path] = words
            return ""
        return words

    def _plan_and_rows(self) -> Iterator[Problem]:
        if what := self._plan_itself():
            yield self._problem("plan.json", what)
        if what := self._rows_as_noted():
            yield self._problem("rows.arrow", what)
        elif self._plan is not None:
            yield from self._rows(self._plan)

    def _rows_as_noted(self) -> str:
        """What is wrong with the bytes of rows.arrow, in words."""
        place = self.folder / "rows.arrow"
        if not place.is_file():
            return "is missing"
        noted = self._plan.rows_checksum if self._plan else None
        self.files, self.bytes = self.files + 1, self.bytes + (size_of(place) or 0)
        try:
            found = f"{crc32c(pieces_of(place)):08x}"
            whole = found == noted if noted else None
            return self._differs("rows.arrow", whole, found) or self._no_rows
        except OSError as error:
            return f"cannot be read: {damage(error)}"

    def _plan_itself(self) -> str:
        """Read the plan; what is wrong with it in words."""
        try:
            _, what = self._json("plan.json")
            if what:
                return what
            plan = self._opened()
            if plan is None:
                return ""
            if digest(plan.identity) != plan.digest:
                return "its digest is not that of its identity"
            ending = f"-{plan.teacher}-{plan.digest[:12]}"
            if not self.folder.name.endswith(ending):
                return f"the folder's name does not end in {ending}"
            self._plan, self._shards = plan, plan.shards()
        except (StillroomError, OSError, *GARBLED) as error:
            return damage(error)
        return ""

    def _opened(self) -> Folder | None:
        """The plan with its rows; None when not the plan is at fault but rows.arrow."""
        try:
            return Folder(self.folder)
        except CorruptShardError as error:
            self._no_rows = str(error)
            return None

    def _rows(self, plan: Folder) -> Iterator[Problem]:
        try:
            check_unique(plan.keys)  # reading them checks schema, nulls and count
        except (StillroomError, pa.ArrowException, OSError, *GARBLED) as error:
            yield self._problem("rows.arrow", damage(error))

    def _numbers(self) -> list[int]:
        """Shards that should have a receipt: those of the seal, or those that have one."""
        named = self._sums or [relative(p, self.folder) for p in files_below(self.folder)]
        return sorted(
            i for n in named if n.startswith("receipts/") and (i := shard_of(n)) is not None
        )

    def _all_receipts(self) -> Iterator[Problem]:
        for index in self._numbers():
            path = f"receipts/{index:05d}.json"
            self._known.add(path)
            if what := self._receipt(index, path):
                self._suspect.add(index)
                yield self._problem(path, what, index)
        if self._plan is not None and not self.sealed:
            self.unfinished = len(self._shards) - len(self._receipts)

    def _receipt(self, index: int, path: str) -> str:
        """Read one receipt; what is wrong with it in words."""
        try:
            receipt, what = self._json(path)
            if what:
                return what
            if self._plan is not None and self._is_of_other_rows(receipt, self._plan):
                if self.sealed:
                    return "was written for other rows than its plan's"
                # By a process that outlived its own draft of this name: it counts for nothing.
                self.leftovers.append(relative(self.folder / path, self._cache))
                return ""
            paths = []
            for name, described in receipt["signals"].items():
                Signal.from_json(name, described)
                paths += [StoredFile.from_json(entry).path for entry in described["files"]]
            if self._plan is not None:
                shard = self._shards[index]
                if (receipt["shard"], receipt["start"], receipt["stop"]) != (
                    *(index, shard.start, shard.stop),
                ):
                    return f"is not of shard {index} of its plan"
            self._known.update(paths)
            self._receipts[index] = receipt
        except (StillroomError, OSError, *GARBLED) as error:
            return f"is no receipt: {damage(error)}"
        return ""

    def _is_of_other_rows(self, receipt: dict[str, Any], plan: Folder) -> bool:
        """Where the seal knows another plan or other rows, those are wrong and not the receipts."""
        foreign = receipt.get("rows_crc32c") != plan.rows_checksum
        return foreign and not {"plan.json", "rows.arrow"} & set(self._odd)

    def _seal_agrees(self) -> Iterator[Problem]:
        """The seal follows from the other files, so every byte of it can be compared."""
        assert self._plan is not None
        try:
            expected = json_bytes(seal_of(self._plan, self._receipts))
        except (StillroomError, OSError, *GARBLED) as error:
            yield self._problem("segment.json", f"its receipts cannot be sealed: {damage(error)}")
            return
        if expected != (self.folder / "segment.json").read_bytes():
            yield self._problem("segment.json", "does not say what plan, rows and receipts say")

    def _metadata(self) -> Iterator[Problem]:
        """zarr.json: what zarr-python makes of the signals."""
        if not (self.sealed and self._receipts and self._plan):
            return
        receipt = next(iter(self._receipts.values()))
        signals = [Signal.from_json(n, d) for n, d in receipt["signals"].items()]
        fixed = [signal for signal in signals if signal.kind == "fixed"]
        if not fixed:
            return
        expected = _metadata_of(tuple(fixed), self._plan.rows, self._plan.shard_rows)
        self._known.update(expected)
        for path, content in expected.items():
            place = self.folder / path
            if not place.is_file():
                yield self._problem(path, "is missing")
                continue
            self.files, self.bytes = self.files + 1, self.bytes + len(content)
            if place.read_bytes() != content:
                yield self._problem(path, "is not what zarr-python writes for these signals")

    def _strays(self) -> Iterator[Problem]:
        """Files that nothing names; those of shards without a receipt were left by a killed run."""
        for place in files_below(self.folder):
            path = relative(place, self.folder)
            if path in self._known or path.startswith("made/"):
                continue
            shard = shard_of(path)
            temporary = any(part.startswith(TEMPORARY) for part in path.split("/"))
            unfinished = shard is not None and shard not in {*self._receipts, *self._suspect}
            unfinished &= self._plan is None or shard in range(len(self._shards))
            unsealed = not self.sealed and path.endswith("zarr.json")
            expected = unsealed or self._unclear(path, shard)
            if temporary or (unfinished and self.sealed):
                self.leftovers.append(relative(place, self._cache))
            elif not unfinished and not expected:
                yield self._problem(path, EXTRA)

    def _unclear(self, path: str, shard: int | None) -> bool:
        """Whether what would name the file is damaged itself."""
        nameless = path.endswith("zarr.json") and not (self._receipts and self._plan)
        return shard in self._suspect or nameless


@functools.lru_cache(maxsize=64)
def _metadata_of(signals: tuple[Signal, ...], rows: int, shard_rows: int) -> dict[str, bytes]:
    """Segments are often alike, and zarr-python takes its time."""
    return array_metadata(signals, rows, shard_rows)
