"""Putting one damaged segment right: what follows from its other files, and what a teacher gave again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.storage.cache import MARKER, Cache
from stillroom.storage.care.copying import copy_rows
from stillroom.storage.care.file_checks import file_problems
from stillroom.storage.draft import Draft, seal_of
from stillroom.storage.errors import CorruptShardError, FormatError
from stillroom.storage.files import (
    crc32c,
    pieces_of,
    read_json,
    write_atomic,
    write_json,
)
from stillroom.storage.folder import FORMAT, Ask, Folder, Hashes, Shard, stored_keys
from stillroom.storage.place import Place
from stillroom.storage.receipt import receipt_path
from stillroom.storage.segment import Segment
from stillroom.storage.shards import StoredFile
from stillroom.storage.signal import Signal
from stillroom.storage.table import read_table
from stillroom.storage.zarr_shards import array_metadata

_SMALL = ("plan.json", "rows.arrow")


def restore_marker(path: Place) -> None:
    """Write cache.json anew when it is damaged; FormatError when it names a newer format."""
    try:
        found = read_json(path / "cache.json").get("format")
    except (FormatError, CorruptShardError):
        found = None
    if isinstance(found, int) and found > FORMAT:
        raise FormatError(f"{path} says that it is of format {found}; upgrade stillroom")
    if (path / "segments").is_dir():
        write_json(path / "cache.json", MARKER)


class Mending:
    """A sealed segment with damaged files, named relative to it."""

    def __init__(self, folder: Place, damaged: set[str]) -> None:
        """Nothing is read yet."""
        self.folder, self._damaged = folder, damaged
        self._seal: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """Of the identity of the segment's teacher."""
        return str(self._seal["digest"])

    def small(self, path: str, prefix: str) -> bool:
        """Whether a path (relative to the cache) is the plan or the rows."""
        return path.removeprefix(prefix) in _SMALL

    def without_teacher(self) -> list[str]:
        """Put back the seal and Zarr's metadata; the paths. CorruptShardError when the seal is lost."""
        done = []
        place = self.folder / "segment.json"
        if "segment.json" in self._damaged:
            sources = {p for p in self._damaged if p != "segment.json" and "zarr.json" not in p}
            if sources & {*_SMALL} or any(p.startswith("receipts/") for p in sources):
                raise CorruptShardError(f"{place} and what it follows from are damaged both")
            write_json(place, self._rebuilt())
            done.append("segment.json")
        self._seal = read_json(place)
        if any(path.endswith("zarr.json") for path in self._damaged):
            signals = self._signals().values()
            fixed = [signal for signal in signals if signal.kind == "fixed"]
            made = array_metadata(fixed, int(self._seal["rows"]), int(self._seal["shard_rows"]))
            for path in sorted(self._damaged & set(made)):
                write_atomic(self.folder / path, [made[path]])
                done.append(path)
        # What is asked of the seal from here on must be there.
        _ = self.digest, self._signals(), *(self._seal["files"][name] for name in _SMALL)
        return done

    def _rebuilt(self) -> dict[str, Any]:
        plan = Folder(self.folder)
        found = {
            p.index: read_json(receipt_path(self.folder, p.index))
            for p in plan.shards()
            if receipt_path(self.folder, p.index).exists()
        }
        if not found:
            raise CorruptShardError(f"{self.folder} has no receipt left")
        return seal_of(plan, found)

    def _signals(self) -> dict[str, Signal]:
        return {n: Signal.from_json(n, s) for n, s in self._seal["signals"].items()}

    def scratch(
        self, parent: Place, identity: Mapping[str, Any], candidates: Iterable[tuple[Any, Hashes]]
    ) -> Draft | None:
        """An empty draft with the plan and rows of this segment; None when its rows are lost.

        The rows are its own, or those candidates (keys, hashes) that give the sealed checksum.
        """
        asked = {n: Ask(s.encoding, s.source, s.book) for n, s in self._signals().items()}
        sums = self._seal["files"]
        for number, (keys, hashes) in enumerate([*self._own_rows(), *candidates], start=1):
            if len(keys) != self._seal["rows"]:
                continue
            draft = Draft.create(
                parent,
                number,
                teacher=str(self._seal["teacher"]),
                identity=identity,
                asked=asked,
                keys=keys,
                hashes=hashes,
                shard_rows=int(self._seal["shard_rows"]),
                why=str(self._seal.get("why", "")),
                after=self._seal.get("after"),
            )
            if all(_crc(draft.path / n) == sums[n] or self._unchanged(draft, n) for n in _SMALL):
                return draft
        return None

    def _unchanged(self, draft: Draft, path: str) -> bool:
        """Whether the file is right and the seal's checksum of it is what was damaged."""
        place = self.folder / path
        return place.is_file() and place.read_bytes() == (draft.path / path).read_bytes()

    def _own_rows(self) -> list[tuple[Any, Hashes]]:
        try:
            batch = read_table(self.folder / "rows.arrow", self._seal["files"]["rows.arrow"])
            column = batch.column("hash")
        except (CorruptShardError, FormatError, KeyError):
            return []
        hashes = np.frombuffer(column.buffers()[1], "V16", len(batch), column.offset * 16)
        return [(stored_keys(batch), hashes)]

    def put_back_small(self, draft: Draft) -> list[str]:
        """Plan and rows as they were sealed; the paths that were put back."""
        return [n for n in _SMALL if n in self._damaged and self._put_back(draft, n)]

    def _put_back(self, draft: Draft, path: str) -> bool:
        if self._unchanged(draft, path):
            write_json(self.folder / "segment.json", self._rebuilt())
        else:
            write_atomic(self.folder / path, pieces_of(draft.path / path))
        return True

    def put_back_shard(self, draft: Draft, shard: int) -> list[str] | None:
        """The files of a shard that were put back; None when it came out otherwise than sealed."""
        place = receipt_path(draft.path, shard)
        path = f"receipts/{shard:05d}.json"
        seal_is_wrong = path in self._damaged and self._unchanged(draft, path)
        if _crc(place) != self._seal["files"][path] and not seal_is_wrong:
            return None
        done = []
        receipt = read_json(place)
        for name, described in receipt["signals"].items():
            signal = Signal.from_json(name, described)
            for file in map(StoredFile.from_json, described["files"]):
                if any(file_problems(self.folder, file, signal)):
                    write_atomic(self.folder / file.path, pieces_of(draft.path / file.path))
                    done.append(file.path)
        if path in self._damaged:
            self._put_back(draft, path)
            done.append("segment.json" if seal_is_wrong else path)
        return done

    def retaught(
        self, cache: Cache, draft: Draft, shards: Sequence[Shard], shard_rows: int
    ) -> Segment:
        """The draft's shards as a new segment, which is newer and so serves their rows."""
        computed = draft.seal()
        slots = np.concatenate([np.arange(s.start, s.stop) for s in shards])
        names = tuple(computed.signals)
        return copy_rows(cache, [computed], np.zeros_like(slots), slots, names, shard_rows)


def _crc(place: Place) -> str:
    return f"{crc32c(pieces_of(place)):08x}"
