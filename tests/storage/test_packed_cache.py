"""Packed signals in a cache: read by parts, copied as they lie, verified to the last row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from stillroom.storage.care.compacting import compact
from stillroom.storage.care.verifying import verify
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.packed import Packed
from stillroom.storage.errors import CorruptShardError
from stillroom.storage.lazy import dask_array
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot
from stillroom.storage.testing import SmallCache, on_disk

CLASSES = 400
KEYS = [f"k{i}" for i in range(9)]
LENGTHS = np.array([3, 0, 5, 1, 0, 7, 2, 4, 1])
_random = np.random.default_rng(0)
FIXED = _random.normal(0, 4, (9, 6, CLASSES)).astype("f4")
TOKENS = Ragged(
    _random.normal(0, 4, (int(LENGTHS.sum()), CLASSES)).astype("f4"),
    np.concatenate([[0], np.cumsum(LENGTHS)]),
)
VALUES: dict[str, Any] = {
    "fixed": FIXED,
    "drawn": FIXED,
    "tokens": TOKENS,
    "said": TOKENS,
    "plain": FIXED,
    "loose": TOKENS,
    "half": FIXED,
    "few": FIXED,
}
ENCODINGS = {
    "fixed": "packed(topk(5))",
    "drawn": "packed(sampled(30))",
    "tokens": "packed(topk(5),90)",
    "said": "packed(sampled(30))",
    "plain": "topk(5)",
    "loose": "sampled(30)",
    "half": "float16",
    "few": "int8",
}
ORDER = np.array([7, 0, 1, 7, 5, 8])


@pytest.fixture
def snapshot(small: SmallCache) -> Snapshot:
    return small.commit(KEYS, [small.teach(KEYS, VALUES, encodings=ENCODINGS)])


def chosen(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([values[TOKENS.offsets[i] : TOKENS.offsets[i + 1]] for i in ORDER])


def test_parts_are_what_the_encoding_stores_of_the_rows_packed_or_not(snapshot: Snapshot) -> None:
    found = Reader(snapshot).parts(ORDER)
    assert set(found) == set(VALUES)
    for name, parts in found.items():
        coding, values = encoding(ENCODINGS[name]), VALUES[name]
        if isinstance(values, Ragged):
            expected = coding.encode(chosen(values.values))
            for ragged in parts.values():
                assert ragged.lengths.tolist() == LENGTHS[ORDER].tolist()
        else:
            expected = coding.encode(values[ORDER])
        assert [*parts] == [*expected]
        for part, array in expected.items():
            mine = parts[part].values if isinstance(parts[part], Ragged) else parts[part]
            np.testing.assert_array_equal(mine, array, strict=True)
    some = Reader(snapshot, ["fixed"]).parts(np.zeros(0, np.int64))
    assert some["fixed"]["indices"].shape == (0, 6, 5)


def test_decoded_rows_are_dense_whatever_the_encoding(snapshot: Snapshot) -> None:
    found = Reader(snapshot).take(ORDER)
    for name in ("fixed", "drawn", "tokens", "said"):
        coding, values, mine = encoding(ENCODINGS[name]), VALUES[name], found[name]
        dense = values.values if isinstance(values, Ragged) else values
        decoded = coding.decode(coding.encode(dense), dense.shape[1:])
        if isinstance(mine, Ragged):
            np.testing.assert_array_equal(mine.values, chosen(decoded), strict=True)
        else:
            np.testing.assert_array_equal(mine, decoded[ORDER], strict=True)


def test_dask_sees_packed_rows_of_one_shape(snapshot: Snapshot) -> None:
    array = dask_array(snapshot, "fixed")
    assert array.shape == (9, 6, CLASSES)
    found = array.compute(scheduler="synchronous")
    np.testing.assert_array_equal(found, Reader(snapshot).take(np.arange(9))["fixed"])


def test_compacting_copies_every_packed_row_byte_for_byte(small: SmallCache) -> None:
    def some(start: int, stop: int) -> dict[str, Any]:
        rows = slice(start, stop)
        return {"fixed": FIXED[rows], "said": Ragged.of(list(TOKENS)[rows])}

    first = small.teach(KEYS[:4], some(0, 4), encodings=ENCODINGS)
    second = small.teach(KEYS[4:], some(4, 9), encodings=ENCODINGS)
    before = Reader(small.commit(KEYS, [first, second])).stored(np.arange(9))
    assert compact(small.cache).snapshot == 2
    after = small.cache.snapshot()
    assert len({name for *_, name, _ in after.stretches()}) == 1
    stored = Reader(after).stored(after.positions(KEYS))
    for name, parts in before.items():
        assert [bytes(r) for r in stored[name][""]] == [bytes(r) for r in parts[""]]
    assert not verify(small.cache.path).problems


@pytest.mark.parametrize("name", ["fixed", "drawn", "tokens", "said"])
def test_a_packed_row_that_cannot_be_is_found_though_its_checksums_are_right(
    small: SmallCache, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pack = Packed.pack

    def forged(self: Packed, values: NDArray[Any], lengths: NDArray[Any]) -> Ragged:
        rows = [bytearray(row) for row in pack(self, values, lengths)]
        rows[0][0] = 0x7F  # many more positions, or classes, than the row holds
        return Ragged.of([np.frombuffer(row, np.uint8) for row in rows])

    with monkeypatch.context() as patch:
        patch.setattr(Packed, "pack", forged)
        values = {name: VALUES[name]}
        snapshot = small.commit(KEYS, [small.teach(KEYS, values, encodings=ENCODINGS, finish=[0])])
    (problem,) = verify(small.cache.path).problems
    assert (problem.shard, problem.signal) == (0, name)
    assert "a row among 0 to 3 that cannot be unpacked" in problem.what
    reader = Reader(snapshot, [name])
    for read in (reader.take, reader.parts):
        with pytest.raises(CorruptShardError, match="packed row"):
            read(np.arange(3))
    reader.stored(np.arange(3))


def test_arrow_holds_the_rows_that_the_reader_unpacks(snapshot: Snapshot) -> None:
    (segment,) = on_disk(snapshot.cache / "segments").iterdir()
    coding: Any = encoding(ENCODINGS["tokens"])
    rows: list[bytes] = []
    for path in sorted((segment / "records/tokens").iterdir()):
        rows += pa.ipc.open_file(str(path)).read_all()["tokens"].to_pylist()
    blobs = Ragged.of([np.frombuffer(row, np.uint8) for row in rows])
    parts, lengths = coding.unpack(blobs, (CLASSES,))
    assert lengths.tolist() == LENGTHS.tolist()
    np.testing.assert_array_equal(parts["indices"], coding.encode(TOKENS.values)["indices"])
