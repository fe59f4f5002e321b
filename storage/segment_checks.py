"""One segment's folder for verify: its small files at once, its shards as tasks for threads."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from stillroom.storage.draft import seal_of
from stillroom.storage.errors import GARBLED, StillroomError
from stillroom.storage.file_checks import file_problems
from stillroom.storage.files import (
    TEMPORARY,
    crc32c,
    json_bytes,
    pieces_of,
    read_json,
    size_of,
)
from stillroom.storage.folder import Folder
from stillroom.storage.identity import digest
from stillroom.storage.place import Place, files_below, relative
from stillroom.storage.problems import EXTRA, Problem
from stillroom.storage.receipt import receipt_path
from stillroom.storage.segment import Segment
from stillroom.storage.shards import StoredFile
from stillroom.storage.signal import Signal
from stillroom.storage.table import read_table
from stillroom.storage.zarr_shards import array_metadata

_SHARD = re.compile(
    r"(?:signals/[^/]+/c/(\d+)|records/[^/]+/(\d+)\.arrow|receipts/(\d+)\.json)\b.*"
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
        self._known = {"segment.json", "plan.json", "rows.arrow"}

    def small(self) -> list[Problem]:
        """Plan, rows, receipts, seal, Zarr's metadata, and files that nothing names."""
        found = [*self._seal_itself(), *self._plan_and_rows(), *self._all_receipts()]
        if not found and self.sealed:
            found += self._seal_agrees()
        found += self._metadata()
        found += self._strays()
        if self.sealed:
            try:
                self.segment = Segment(self.folder)
            except StillroomError as error:
                if not found:
                    found.append(self._problem("segment.json", str(error)))
        return found

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
            words = file_problems(self.folder, file, signal)
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
            seal = read_json(place)
            self._sums = {str(n): str(crc) for n, crc in seal["files"].items()}
            if json_bytes(seal) != place.read_bytes():
                yield self._problem("segment.json", "is not spelled as it was written")
        except (StillroomError, *GARBLED) as error:
            yield self._problem("segment.json", f"cannot be read: {error}")

    def _changed(self, path: str) -> str:
        """In words what is wrong with a small file; empty when it is there and as the seal says."""
        place = self.folder / path
        if not place.is_file():
            return "is missing"
        self.files += 1
        self.bytes += size_of(place) or 0
        stated = self._sums.get(path)
        found = f"{crc32c(pieces_of(place)):08x}"
        return "" if stated in (None, found) else f"checksum {found}, the seal says {stated}"

    def _plan_and_rows(self) -> Iterator[Problem]:
        self._plan: Folder | None = None
        wrong = {path: self._changed(path) for path in ("plan.json", "rows.arrow")}
        yield from (self._problem(path, what) for path, what in wrong.items() if what)
        if any(wrong.values()):
            return
        try:
            plan = Folder(self.folder)
            if digest(plan.identity) != plan.digest:
                yield self._problem("plan.json", "its digest is not that of its identity")
            ending = f"-{plan.teacher}-{plan.digest[:12]}"
            if not self.folder.name.endswith(ending):
                yield self._problem("plan.json", f"the folder's name does not end in {ending}")
            self._plan = plan
        except (StillroomError, *GARBLED) as error:
            yield self._problem("plan.json", str(error))
            return
        try:
            assert len(plan.keys) == plan.rows  # reading the keys checks schema, nulls and count
            table = pa.Table.from_batches([read_table(self.folder / "rows.arrow", None)])
            pairs = table.group_by(["key", "view"]).aggregate([])
            if len(pairs) < plan.rows:
                yield self._problem(
                    "rows.arrow", f"{plan.rows - len(pairs):,} rows are there twice"
                )
        except (StillroomError, pa.ArrowException, *GARBLED) as error:
            yield self._problem("rows.arrow", str(error))

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
            what = self._changed(path)
            if not what:
                what = self._receipt(index)
            if what:
                self._suspect.add(index)
                yield self._problem(path, what, index)
        if self._plan is not None and not self.sealed:
            self.unfinished = len(self._plan.shards()) - len(self._receipts)

    def _receipt(self, index: int) -> str:
        """Read one receipt; what is wrong with it in words."""
        try:
            receipt = read_json(receipt_path(self.folder, index))
            paths = []
            for name, described in receipt["signals"].items():
                Signal.from_json(name, described)
                paths += [StoredFile.from_json(entry).path for entry in described["files"]]
            if self._plan is not None:
                shard = self._plan.shards()[index]
                if (receipt["shard"], receipt["start"], receipt["stop"]) != (
                    *(index, shard.start, shard.stop),
                ):
                    return f"is not of shard {index} of its plan"
            self._known.update(paths)
            self._receipts[index] = receipt
        except (StillroomError, *GARBLED) as error:
            return f"is no receipt: {error}"
        return ""

    def _seal_agrees(self) -> Iterator[Problem]:
        """The seal follows from the other files, so every byte of it can be compared."""
        assert self._plan is not None
        try:
            expected = json_bytes(seal_of(self._plan, self._receipts))
        except (StillroomError, *GARBLED) as error:
            yield self._problem("segment.json", f"its receipts cannot be sealed: {error}")
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
            expected = self._unclear(path, shard) if self.sealed else path.endswith("zarr.json")
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
