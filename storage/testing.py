"""What every shard format must do, as tests to inherit, and small caches to test with.

Only tests import this module: it needs pytest, which stillroom does not depend on.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from stillroom.storage.cache import Cache
from stillroom.storage.draft import Draft
from stillroom.storage.errors import CorruptShardError, StoreFullError
from stillroom.storage.files import TEMPORARY
from stillroom.storage.folder import Ask, Hashes
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.place import Place
from stillroom.storage.ragged import Ragged
from stillroom.storage.segment import Segment
from stillroom.storage.served import Served, Source
from stillroom.storage.serving import Content
from stillroom.storage.shards import Run, ShardFormat, StoredFile
from stillroom.storage.signal import Signal, Values
from stillroom.storage.snapshot import Snapshot


def between(values: Values, start: int, stop: int) -> Values:
    """Rows `start` to `stop` of any kind of values."""
    if not isinstance(values, Ragged):
        return values[start:stop]
    offsets = values.offsets[start : stop + 1]
    return Ragged(values.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def assert_rows_equal(found: Values, expected: Values, order: Sequence[int]) -> None:
    """`found` must hold the rows `order` of `expected`: same values, shapes and dtypes."""
    assert len(found) == len(order)
    for mine, place in zip(found, order, strict=True):
        theirs = expected[place]
        if isinstance(theirs, str):
            assert mine == theirs
        else:
            np.testing.assert_array_equal(mine, theirs, strict=True)


class ShardTests:
    """The conformance suite of a ShardFormat: a test class inherits it and says what to store.

    Segment "a" has 11 rows in shards of 4, 4 and 3; segment "b" has 6 rows in shards of 4 and 2.
    Positions 0 to 9 are slots 1 to 10 of a; 10 and 11 are nowhere; 12 to 17 are slots 0 to 5 of b.
    """

    shard_rows = 4
    encoding = "raw"
    held = (*range(10), *range(12, 18))

    def format(self) -> ShardFormat:
        """The format under test."""
        raise NotImplementedError

    def values(self, rows: int, seed: int) -> Values:
        """Rows to store, the same for the same arguments, of one shape and dtype for all."""
        raise NotImplementedError

    def signal(self) -> Signal:
        """The signal that these values are."""
        return Signal.of("said", self.values(3, 0), self.encoding)

    def decoded(self, values: Values) -> Values:
        """What reading must give: the encoding's own decoding of the values."""
        signal = self.signal()
        if isinstance(values, list):
            return values
        flat = values.values if isinstance(values, Ragged) else values
        back = signal.coding.decode(signal.coding.encode(flat), signal.inner_shape)
        return Ragged(back, values.offsets) if isinstance(values, Ragged) else back

    def write(self, segment: Path, rows: int, seed: int) -> list[list[StoredFile]]:
        """Store a segment's shards; the files of each."""
        values, step = self.values(rows, seed), self.shard_rows
        return [
            self.format().write(
                segment, self.signal(), i, step, between(values, s, min(s + step, rows))
            )
            for i, s in enumerate(range(0, rows, step))
        ]

    def runs(
        self, segment: Path, shards: list[list[StoredFile]], start: int, slot: int, rows: int
    ) -> list[Run]:
        """Positions from `start` on slots from `slot`, cut at the borders of shards."""
        cut = []
        while rows:
            shard, within = divmod(slot, self.shard_rows)
            count = min(rows, self.shard_rows - within)
            files = {name: file for file in shards[shard] for name in file.arrays}
            cut.append(Run(start, count, segment, within, files))
            start, slot, rows = start + count, slot + count, rows - count
        return cut

    def stored(self, folder: Path) -> list[Run]:
        """Write both segments and lay out the positions of the class's docstring."""
        a, b = self.write(folder / "a", 11, 1), self.write(folder / "b", 6, 2)
        return self.runs(folder / "b", b, 12, 0, 6) + self.runs(folder / "a", a, 0, 1, 10)

    def row(self, position: int) -> tuple[Values, int]:
        """Where a position's expected row lies."""
        a, b = position < 10, 12 <= position < 18
        assert a or b
        values = self.values(11, 1) if a else self.values(6, 2)
        return self.decoded(values), position + 1 if a else position - 12

    def assert_right(self, found: Values, positions: Sequence[int]) -> None:
        """Compare what was read with what was written, row by row."""
        assert len(found) == len(positions)
        for i, position in enumerate(positions):
            expected, place = self.row(position)
            assert_rows_equal(between(found, i, i + 1), expected, [place])

    def test_rows_come_back_in_any_order_from_all_shards_and_segments(self, tmp_path: Path) -> None:
        rows = self.format().open(self.signal(), self.stored(tmp_path), check=True)
        shuffled = np.random.default_rng(0).choice(self.held, 64).tolist()
        for positions in ([], [17], [3, 3, 3], list(self.held), shuffled):
            self.assert_right(rows.read(np.array(positions, np.int64)), positions)

    def test_stored_parts_decode_to_the_rows(self, tmp_path: Path) -> None:
        signal = self.signal()
        rows = self.format().open(signal, self.stored(tmp_path), check=True)
        parts = rows.read(np.array(self.held), decode=False)
        assert set(parts) == {part.name for part in signal.parts}
        assert all(len(part) == len(self.held) for part in parts.values())

    def test_positions_that_are_not_stored_are_named(self, tmp_path: Path) -> None:
        rows = self.format().open(self.signal(), self.stored(tmp_path), check=True)
        asked = np.array([0, -1, 9, 10, 11, 12, 17, 18, 2**62, -(2**62)])
        assert rows.missing(asked).tolist() == [1, 3, 4, 7, 8, 9]
        assert rows.missing(np.array(self.held)).tolist() == []
        for position in (-1, 10, 18):
            with pytest.raises(IndexError):
                rows.read(np.array([0, position]))

    @pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
    def test_a_flipped_bit_is_caught_when_its_shard_is_first_read(
        self, tmp_path: Path, where: float
    ) -> None:
        runs = self.stored(tmp_path)
        for file in self.write(tmp_path / "a", 11, 1)[1]:
            _flip(tmp_path / "a" / file.path, where)
            rows = self.format().open(self.signal(), runs, check=True)
            # Slots 4 to 7 of a are positions 3 to 6.
            sound = [p for p in self.held if not 3 <= p <= 6]
            self.assert_right(rows.read(np.array(sound)), sound)
            for _ in range(2):
                with pytest.raises(CorruptShardError, match="checksum") as caught:
                    rows.read(np.array([0, 5]))
                assert str(tmp_path / "a" / file.path) in str(caught.value)
            self.write(tmp_path / "a", 11, 1)

    def test_another_shard_in_the_place_of_a_shard_is_caught(self, tmp_path: Path) -> None:
        runs = self.stored(tmp_path)
        first, second, _ = self.write(tmp_path / "a", 11, 1)
        for mine, other in zip(first, second, strict=True):
            content = (tmp_path / "a" / other.path).read_bytes()
            if content != (tmp_path / "a" / mine.path).read_bytes():
                (tmp_path / "a" / mine.path).write_bytes(content)
                with pytest.raises(CorruptShardError):
                    self.format().open(self.signal(), runs, check=True).read(np.array([0]))
            self.write(tmp_path / "a", 11, 1)

    def test_without_checks_stored_bytes_are_trusted(self, tmp_path: Path) -> None:
        runs = self.stored(tmp_path)
        for file in runs[0].files.values():
            _flip(on_disk(runs[0].segment) / file.path, 0.9999999)
        rows = self.format().open(self.signal(), runs, check=False)
        self.assert_right(rows.read(np.array(self.held)), self.held)

    @pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "missing", "a folder"])
    def test_a_file_of_another_size_is_caught_at_opening(self, tmp_path: Path, damage: str) -> None:
        runs = self.stored(tmp_path)
        path = tmp_path / "a" / next(iter(runs[-1].files.values())).path
        content = path.read_bytes()
        if damage in ("missing", "a folder"):
            path.unlink()
        if damage == "a folder":
            path.mkdir()
        elif damage != "missing":
            ending = {"truncated": content[:-1], "longer": content + b"\0", "empty": b""}
            path.write_bytes(ending[damage])
        for check in (True, False):
            with pytest.raises(CorruptShardError) as caught:
                self.format().open(self.signal(), runs, check=check)
            assert str(path) in str(caught.value)

    def test_the_same_rows_become_the_same_bytes(self, tmp_path: Path) -> None:
        first, second = self.write(tmp_path / "x", 11, 1), self.write(tmp_path / "y", 11, 1)
        assert first == second
        assert _contents(tmp_path / "x") == _contents(tmp_path / "y")
        assert self.write(tmp_path / "x", 11, 1) == first
        assert _contents(tmp_path / "x") == _contents(tmp_path / "y")

    def test_what_is_said_of_a_file_is_true(self, tmp_path: Path) -> None:
        for shard in self.write(tmp_path, 11, 1):
            assert {name for file in shard for name in file.arrays} == {
                self.signal().array_name(part) for part in self.signal().parts
            }
            for file in shard:
                assert (tmp_path / file.path).stat().st_size == file.bytes
                file.check(np.fromfile(tmp_path / file.path, np.uint8), tmp_path)
                assert StoredFile.from_json(file.to_json()) == file

    @pytest.mark.parametrize("call", ["write", "fsync", "replace"])
    def test_a_full_disk_leaves_whole_files_or_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        self.write(tmp_path / "whole", 4, 1)
        whole = _contents(tmp_path / "whole")
        for allowed in range(3):
            folder = tmp_path / str(allowed)
            with monkeypatch.context() as patch:
                patch.setattr(os, call, _filling_up(getattr(os, call), allowed))
                try:
                    self.write(folder, 4, 1)
                except StoreFullError as error:
                    assert str(folder) in str(error)  # noqa: PT017
                else:
                    assert allowed > 0
            left = _contents(folder)
            assert left.items() <= whole.items()
            self.write(folder, 4, 1)
            assert _contents(folder) == whole

    def test_threads_may_share_a_reader(self, tmp_path: Path) -> None:
        rows = self.format().open(self.signal(), self.stored(tmp_path), check=True)
        orders = [np.random.default_rng(i).permutation(self.held) for i in range(16)]
        with ThreadPoolExecutor(4) as pool:
            for order, found in zip(orders, pool.map(rows.read, orders), strict=True):
                self.assert_right(found, order.tolist())


def _flip(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(content)


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder; fails when a temporary one is left."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert not [name for name in found if TEMPORARY in name]
    return found


def _filling_up(real: Callable[..., Any], allowed: int) -> Callable[..., Any]:
    """The system call until `allowed` calls were made; then the disk is full."""
    left = [allowed]

    def call(*args: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            return real(*args)
        raise OSError(errno.ENOSPC, "No space left on device")

    return call


def content_hashes(keys: KeyList, version: int = 0) -> Hashes:
    """16 bytes for each key; another version stands for rows with edited content."""
    texts = [f"{key}:{version}" for key in as_keys(keys).to_pylist()]
    digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(digests), "V16")


class SmallCache:
    """A cache in a folder, and short ways to teach into it and to take a snapshot."""

    def __init__(self, path: Path) -> None:
        """Open or make the cache."""
        self.cache = Cache.at(path)

    def draft(
        self,
        keys: KeyList,
        asked: Mapping[str, str],
        *,
        hashes: Hashes | None = None,
        teacher: str = "teacher",
        weights: int = 1,
        shard_rows: int = 4,
    ) -> Draft:
        """An empty segment that asks for signals: {name: encoding}."""
        array: pa.Array = as_keys(keys)
        return self.cache.draft(
            teacher,
            {"weights": weights},
            {name: Ask(encoding, "") for name, encoding in asked.items()},
            array,
            content_hashes(keys) if hashes is None else hashes,
            shard_rows,
        )

    def teach(
        self,
        keys: KeyList,
        values: Mapping[str, Values],
        *,
        encodings: Mapping[str, str] | None = None,
        finish: Sequence[int] | None = None,
        **settings: Any,
    ) -> Segment:
        """A sealed segment with these rows; `finish` names the shards to write (all of them)."""
        asked = {name: (encodings or {}).get(name, "raw") for name in values}
        draft = self.draft(keys, asked, **settings)
        for shard in draft.shards():
            if finish is None or shard.index in finish:
                rows = {n: between(v, shard.start, shard.stop) for n, v in values.items()}
                draft.write(shard, rows, {})
        return draft.seal()

    def serve(
        self, keys: KeyList, segments: Sequence[Segment], hashes: Hashes | None = None
    ) -> Served:
        """Where these segments, of one teacher and with the same signals, hold rows."""
        first = segments[0]
        content = Content(as_keys(keys), content_hashes(keys) if hashes is None else hashes)
        name, signal = next(iter(first.signals.items()))
        ask = Ask(signal.encoding, signal.source)
        slots = content.slots(segments, first.digest, name, ask)
        source = Source(first.teacher, first.digest, first.signals, ("x",), "fingerprint")
        return Served(source, slots.segments, slots.segment, slots.slot)

    def commit(self, keys: KeyList, *sources: Sequence[Segment]) -> Snapshot:
        """A snapshot of these rows, each source given by its segments."""
        return self.cache.commit(lambda: [self.serve(keys, s) for s in sources], "a test")


def on_disk(place: Place) -> Path:
    """The place as a path; for tests that damage files."""
    assert isinstance(place, Path)
    return place


def bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array, for comparisons that tell zeros and NaNs apart."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
