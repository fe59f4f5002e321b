"""Rows of a signal whose shards lie in an object store: fetched whole when first read, then mapped."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stillroom.storage.errors import CorruptShardError
from stillroom.storage.gather import Int64s
from stillroom.storage.mirror import Mirror
from stillroom.storage.objects import ObjectPlace
from stillroom.storage.ragged import Ragged
from stillroom.storage.shards import RowSource, Run, ShardFormat, StoredFile
from stillroom.storage.signal import Signal

_FETCHERS = 8
"""Shards fetched at once: one connection seldom fills a network."""


@dataclass(frozen=True)
class _Shard:
    """A shard's runs, and the files that hold them."""

    segment: ObjectPlace
    runs: tuple[Run, ...]

    @property
    def files(self) -> list[StoredFile]:
        return list({file.path: file for file in self.runs[0].files.values()}.values())

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class MirroredRows:
    """A RowSource over shards in an object store.

    Each shard is fetched once, checked and mapped; when all of them are and fit into `room_bytes`,
    reading is as fast as from a folder. Where they do not fit, shards that were not read for longest
    give way, so that any order works, but only an order that stays within few shards is fast.
    """

    def __init__(
        self,
        signal: Signal,
        runs: Sequence[Run],
        form: ShardFormat,
        *,
        check: bool,
        mirror: Mirror,
        room_bytes: int,
    ) -> None:
        """Nothing is fetched yet."""
        self._signal, self._form, self._check = signal, form, check
        self._mirror, self._room = mirror, room_bytes
        grouped: dict[tuple[str, str], list[Run]] = {}
        for run in sorted(runs, key=lambda r: r.start):
            first = next(iter(run.files.values()), None)
            if first is None or not isinstance(run.segment, ObjectPlace):
                raise CorruptShardError(
                    f"a receipt of {run.segment} lists no file of {signal.name!r}"
                )
            grouped.setdefault((str(run.segment), first.path), []).append(run)
        self._shards: list[_Shard] = []
        for each in grouped.values():
            segment = each[0].segment
            assert isinstance(segment, ObjectPlace)
            self._shards.append(_Shard(segment, tuple(each)))
        places = [(r.start, r.rows, i) for i, s in enumerate(self._shards) for r in s.runs]
        ordered = np.array(sorted(places), np.int64).reshape(-1, 3)
        self._start, self._stop = ordered[:, 0], ordered[:, 0] + ordered[:, 1]
        self._shard = ordered[:, 2]
        self._open: OrderedDict[int, RowSource] = OrderedDict()
        self._lock = threading.Lock()
        self._whole: RowSource | None = None

    def _held(self, positions: Int64s) -> tuple[Int64s, Any]:
        if len(self._start) == 0:
            return np.zeros(len(positions), np.int64), np.zeros(len(positions), bool)
        run = np.searchsorted(self._start, positions, side="right") - 1
        return run, (run >= 0) & (positions < self._stop[run])

    def missing(self, positions: Int64s) -> Int64s:
        """Indices into `positions` of those that are not stored."""
        return np.flatnonzero(~self._held(positions)[1])

    def read(self, positions: Int64s, *, decode: bool = True) -> Any:
        """The rows in that order; IndexError for a position that is not stored."""
        run, held = self._held(positions)
        if not np.all(held):
            raise IndexError("a position is in no extent")
        if self._whole is not None:
            return self._whole.read(positions, decode=decode)
        if not self._shards:
            return self._form.open(self._signal, [], check=False).read(positions, decode=decode)
        if len(positions) == 0:
            return self._read(0, positions, decode)
        shards = self._shard[run]
        wanted = np.unique(shards)
        with ThreadPoolExecutor(_FETCHERS) as pool:
            pieces = list(
                pool.map(lambda i: self._read(int(i), positions[shards == i], decode), wanted)
            )
        self._join_shards()
        order = np.argsort(np.argsort(shards, kind="stable"), kind="stable")
        return reordered(pieces, order)

    def _read(self, index: int, positions: Int64s, decode: bool) -> Any:
        """Rows of one shard; a local copy that was damaged is fetched once more."""
        try:
            return self._source(index).read(positions, decode=decode)
        except CorruptShardError:
            with self._lock:
                self._open.pop(index, None)
            shard = self._shards[index]
            for file in shard.files:
                self._mirror.drop(str(shard.segment / file.path), file.crc32c)
            return self._source(index).read(positions, decode=decode)

    def _source(self, index: int) -> RowSource:
        with self._lock:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
        opened = self._form.open(self._signal, self._fetched(index), check=self._check)
        with self._lock:
            self._open[index] = opened
            held = sum(self._shards[i].bytes for i in self._open)
            while held > self._room and len(self._open) > 1:
                held -= self._shards[self._open.popitem(last=False)[0]].bytes
        return opened

    def _fetched(self, index: int) -> list[Run]:
        """The shard's runs over local copies of its files."""
        shard = self._shards[index]
        local = {}
        for file in shard.files:
            place = shard.segment / file.path

            def load(place: ObjectPlace = place, file: StoredFile = file) -> bytes:
                content = _content(place, file)
                if self._check:
                    file.check(np.frombuffer(content, np.uint8), shard.segment)
                return content

            kept = self._mirror.keep(str(place), file.crc32c, load, file.bytes)
            local[file.path] = kept.name
        return [
            replace(
                run,
                segment=self._mirror.folder,
                files={n: replace(f, path=local[f.path]) for n, f in run.files.items()},
            )
            for run in shard.runs
        ]

    def _join_shards(self) -> None:
        """One source over all shards, once every one of them is here and they fit together."""
        if len(self._open) < len(self._shards):
            return
        runs = [run for index in range(len(self._shards)) for run in self._fetched(index)]
        self._whole = self._form.open(self._signal, runs, check=self._check)
        with self._lock:
            self._open.clear()


def _content(place: ObjectPlace, file: StoredFile) -> bytes:
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        raise CorruptShardError(
            f"{place} is missing though its receipt is there; restore the object, or repair the cache"
        ) from None
    if len(content) != file.bytes:
        raise CorruptShardError(
            f"{place} holds {len(content):,} bytes, its receipt says {file.bytes:,}: it was truncated "
            "or replaced; restore the object, or repair the cache"
        )
    return content


def reordered(pieces: Sequence[Any], order: Int64s) -> Any:
    """What several reads gave, one behind the other, and then in `order`: arrays, ragged rows,
    texts, or any of these by part."""
    first = pieces[0]
    if isinstance(first, dict):
        return {name: reordered([piece[name] for piece in pieces], order) for name in first}
    if isinstance(first, list):
        texts = [text for piece in pieces for text in piece]
        return [texts[i] for i in order]
    if not isinstance(first, Ragged):
        return np.concatenate(pieces)[order]
    values = np.concatenate([piece.values for piece in pieces])
    lengths = np.concatenate([piece.lengths for piece in pieces])
    starts = np.cumsum(lengths) - lengths
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    chosen = np.repeat(starts[order] - offsets[:-1], lengths[order]) + np.arange(offsets[-1])
    return Ragged(values[chosen], offsets)
