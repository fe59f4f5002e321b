"""A reader gives the rows that were asked for, or says which it cannot give."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 (that readers can be sent to other processes is what is tested)
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from stillroom.storage.errors import CorruptShardError, RowsError, UnknownRowError
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot
from stillroom.storage.testing import SmallCache, assert_rows_equal, on_disk

KEYS = [f"k{i}" for i in range(10)]
VALUES: dict[str, Any] = {
    "logits": np.random.default_rng(0).standard_normal((10, 6)).astype("f4"),
    "tokens": Ragged.of([np.full((i % 3, 2), i, "f4") for i in range(10)]),
    "words": [f"wörd {i}" for i in range(10)],
}


@pytest.fixture
def snapshot(small: SmallCache) -> Snapshot:
    return small.commit(KEYS, [small.teach(KEYS, VALUES)])


def test_rows_of_every_kind_come_back_by_key(snapshot: Snapshot) -> None:
    order = [7, 0, 7, 9, 3]
    for keys in ([f"k{i}" for i in order], np.array([f"k{i}" for i in order])):
        found = Reader(snapshot).gather(keys)
        assert list(found) == ["logits", "tokens", "words"]
        for name, values in found.items():
            assert_rows_equal(values, VALUES[name], order)


def test_only_the_chosen_signals_are_opened(snapshot: Snapshot) -> None:
    (segment,) = on_disk(snapshot.cache / "segments").iterdir()
    (segment / "records/words/00001.arrow").unlink()
    assert list(Reader(snapshot, ["logits"]).gather(["k5"])) == ["logits"]
    assert Reader(snapshot, []).gather(["k5"]) == {}
    with pytest.raises(CorruptShardError, match=r"words/00001\.arrow is missing"):
        Reader(snapshot)


def test_rows_are_copies_that_may_be_changed(snapshot: Snapshot) -> None:
    reader = Reader(snapshot, ["logits"])
    before = np.array(reader.gather(["k1"])["logits"])
    rows: Any = reader.gather(["k1"])["logits"]
    rows += 1
    np.testing.assert_array_equal(reader.gather(["k1"])["logits"], before)


@pytest.mark.parametrize("positions", [[], [0], [3, 1], (2, 2), range(10)])
def test_positions_may_be_any_list_of_whole_numbers(
    snapshot: Snapshot, positions: list[int]
) -> None:
    found = Reader(snapshot).take(positions)  # type: ignore[arg-type]
    assert_rows_equal(found["logits"], VALUES["logits"], list(positions))


@pytest.mark.parametrize("wrong", [[True, False], [0.5], [[0, 1]], 3, ["k1"], None])
def test_a_mask_or_fractions_are_no_positions(snapshot: Snapshot, wrong: object) -> None:
    with pytest.raises(RowsError, match="whole numbers"):
        Reader(snapshot).take(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("outside", [-1, 10, 2**62])
def test_a_position_outside_the_snapshot_is_refused(snapshot: Snapshot, outside: int) -> None:
    reader = Reader(snapshot)
    for read in (reader.take, reader.stored, reader.require):
        with pytest.raises(UnknownRowError, match=str(outside)):
            read(np.array([0, outside]))
    reader.require(np.arange(10))


def test_an_unknown_row_is_named(snapshot: Snapshot) -> None:
    with pytest.raises(UnknownRowError, match=r"2 of 3 rows are not in snapshot 1 .*: k10, x\."):
        Reader(snapshot).gather(["k1", "k10", "x"])
    with pytest.raises(KeyError):
        Reader(snapshot).gather([1])
    with pytest.raises(RowsError):
        Reader(snapshot).gather("k1")


def test_a_row_that_one_signal_lacks_is_named_with_the_signal(small: SmallCache) -> None:
    one = small.teach([1, 2, 3], {"x": np.zeros((3, 1))}, teacher="one")
    two = small.teach([2], {"y": np.zeros((1, 1))}, teacher="two")
    reader = Reader(small.commit([1, 2, 3], [one], [two]))
    assert set(reader.gather([2])) == {"x", "y"}
    with pytest.raises(UnknownRowError, match=r"signal 'y' .* for 2 of the rows asked for: 3, 1\."):
        reader.gather([3, 2, 1])


def test_a_damaged_shard_harms_only_its_own_rows(snapshot: Snapshot) -> None:
    (segment,) = on_disk(snapshot.cache / "segments").iterdir()
    path = segment / "signals/logits/c/1/0"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    reader = Reader(snapshot)
    assert_rows_equal(reader.gather(["k0", "k9"])["logits"], VALUES["logits"], [0, 9])
    with pytest.raises(CorruptShardError, match=str(path)):
        reader.gather(["k0", "k5"])
    unchecked: Any = Reader(snapshot, check=False).gather(["k5"])["logits"]
    assert unchecked.shape == (1, 6)


def test_stored_parts_are_given_as_they_lie_on_disk(small: SmallCache) -> None:
    segment = small.teach(KEYS, VALUES, encodings={"logits": "topk(2)", "tokens": "float16"})
    parts = Reader(small.commit(KEYS, [segment])).stored(np.array([4, 4]))
    assert set(parts["logits"]) == {"indices", "values", "logsumexp", "tail"}
    assert parts["logits"]["indices"].dtype == np.uint8
    assert parts["tokens"][""].values.dtype == np.float16
    assert bytes(parts["words"][""][1]) == "wörd 4".encode()


def test_a_reader_pickles_as_what_it_reads(snapshot: Snapshot) -> None:
    reader = Reader(snapshot, ["words"], check=False)
    content = pickle.dumps(reader)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert again.names == ("words",)
    assert again.gather(["k3"]) == {"words": ["wörd 3"]}
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).gather(['k3'])['words'])"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=content,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert ran.stdout.decode().strip() == "['wörd 3']"


def test_a_snapshot_stays_readable_while_the_cache_grows(
    small: SmallCache, snapshot: Snapshot
) -> None:
    reader = Reader(snapshot)
    with small.cache.writing("0" * 64):
        small.commit(["new"], [small.teach(["new"], {"z": np.ones(1)})])
    assert_rows_equal(reader.gather(KEYS)["logits"], VALUES["logits"], list(range(10)))
    assert small.cache.snapshot().number == snapshot.number + 1
