"""A snapshot says where every row lies, stays readable for ever, and never serves a stale row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillroom.storage.errors import (
    CorruptShardError,
    FormatError,
    NotACacheError,
    UnknownRowError,
    UnknownSignalError,
)
from stillroom.storage.files import write_json
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot
from stillroom.storage.table import read_table
from stillroom.storage.testing import SmallCache, content_hashes, on_disk


def _values(keys: list[int], factor: float = 1) -> dict[str, NDArray[Any]]:
    """Values from which one can tell the row."""
    return {"x": np.array(keys, "f4")[:, None] * np.array([factor, -factor], "f4")}


def _served(snapshot: Snapshot, keys: list[int], name: str = "x") -> list[float]:
    rows: list[float] = np.asarray(Reader(snapshot, [name]).gather(keys)[name])[:, 0].tolist()
    return rows


def test_rows_come_from_several_segments(small: SmallCache) -> None:
    segments = [small.teach(k, _values(k)) for k in ([0, 1, 2, 3, 4], [10, 11], [20])]
    snapshot = small.commit([20, 3, 11, 0], segments)
    assert snapshot.rows == len(snapshot) == 4
    assert sorted(snapshot.keys.to_pylist()) == [0, 3, 11, 20]
    assert _served(snapshot, [11, 0, 20, 3, 0]) == [11, 0, 20, 3, 0]


def test_adding_rows_makes_a_new_snapshot_and_keeps_the_old(small: SmallCache) -> None:
    first = small.teach([1, 2], _values([1, 2]))
    old = small.commit([1, 2], [first])
    second = small.teach([3], _values([3]))
    new = small.commit([1, 2, 3], [first, second])
    assert (old.number, new.number, new.parent) == (1, 2, 1)
    assert small.cache.snapshots() == [1, 2]
    assert _served(small.cache.snapshot(), [3, 1]) == [3, 1]
    again = small.cache.snapshot(1)
    assert _served(again, [2, 1]) == [2, 1]
    with pytest.raises(UnknownRowError, match=r"1 of 2 rows are not in snapshot 1.*: 3\. Teach"):
        Reader(again).gather([1, 3])


def test_a_reordered_data_set_gives_the_same_runs(small: SmallCache) -> None:
    segments = [
        small.teach([1, 2, 3, 4, 5], _values([1, 2, 3, 4, 5])),
        small.teach([9], _values([9])),
    ]
    for order in ([1, 2, 3, 4, 5, 9], [9, 5, 3, 1, 2, 4], [4, 9, 1, 2, 3, 5]):
        small.commit(order, segments)
    folder = on_disk(small.cache.path / "snapshots")
    tables = {p.read_bytes() for p in folder.glob("*.arrow")}
    assert len(tables) == 1
    assert len(read_table(next(folder.glob("000001-*.arrow")), None)) == 2


def test_an_edited_row_is_not_served(small: SmallCache) -> None:
    segment = small.teach([1, 2, 3], _values([1, 2, 3]))
    edited = content_hashes([1, 2, 3]).copy()
    edited[1] = content_hashes([2], version=1)[0]
    served = small.serve([1, 2, 3], [segment], edited)
    assert served.segment.tolist() == [0, -1, 0]
    again = small.teach([2], _values([2], 10), hashes=edited[1:2])
    served = small.serve([1, 2, 3], [segment, again], edited)
    snapshot = small.cache.commit(lambda: [served], "edited")
    assert _served(snapshot, [1, 2, 3]) == [1, 20, 3]


def test_the_newest_of_two_answers_is_served(small: SmallCache) -> None:
    segments = [small.teach([1, 2], _values([1, 2])), small.teach([2], _values([2], 7))]
    assert _served(small.commit([1, 2], segments), [1, 2]) == [1, 14]


def test_segments_of_another_teacher_or_encoding_do_not_answer(small: SmallCache) -> None:
    mine = small.teach([1], _values([1]))
    others = [
        small.teach([2], _values([2]), weights=2),
        small.teach([2], _values([2]), encodings={"x": "float16"}),
        small.teach([2], {"y": np.zeros((1, 2))}),
        small.teach(["2"], {"x": np.zeros((1, 2))}),
    ]
    assert small.serve([1, 2], [mine, *others]).segment.tolist() == [0, -1]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 15), unique=True, min_size=1), min_size=2, max_size=5))
def test_any_coverage_by_two_sources_is_served_like_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, taught: list[list[int]]
) -> None:
    small = SmallCache(tmp_path_factory.mktemp("cache"))
    teachers: list[list[Any]] = [[], []]
    known: list[dict[int, float]] = [{}, {}]
    for i, keys in enumerate(taught):
        segment = small.teach(keys, _values(keys, i + 1), teacher=f"t{i % 2}", shard_rows=3)
        teachers[i % 2].append(segment)
        known[i % 2] |= {key: key * (i + 1.0) for key in keys}
    snapshot = small.commit(list(range(16)), *teachers)
    assert set(snapshot.signals) == {"t0/x", "t1/x"}
    assert sorted(snapshot.keys.to_pylist()) == sorted({*known[0], *known[1]})
    assert snapshot.positions(snapshot.keys).tolist() == list(range(snapshot.rows))
    for teacher, expected in enumerate(known):
        reader = Reader(snapshot, [f"t{teacher}/x"])
        found = np.asarray(reader.gather(list(expected))[f"t{teacher}/x"])[:, 0]
        assert found.tolist() == list(expected.values())
        lacking = sorted({*known[1 - teacher]} - set(expected))
        if lacking:
            with pytest.raises(UnknownRowError, match=f"never taught for {len(lacking)} of") as e:
                reader.gather([*expected, *lacking])
            assert str(lacking[0]) in str(e.value)


def test_a_name_that_two_teachers_use_needs_the_teacher(small: SmallCache) -> None:
    one = small.teach([1], {**_values([1]), "only": np.ones(1)}, teacher="one")
    two = small.teach([1], _values([1], 2), teacher="two")
    snapshot = small.commit([1], [one], [two])
    assert set(snapshot.signals) == {"one/x", "two/x", "only"}
    assert _served(snapshot, [1], "two/x") == [2]
    assert snapshot.find("one/only")[1] == snapshot.find("only")[1]
    for name, words in {
        "x": "one/x",
        "onyl": "did you mean 'only'",
        "three/x": "known: one/x, only, two/x",
        "": "known: one/x, only, two/x",
    }.items():
        with pytest.raises(UnknownSignalError, match=words):
            Reader(snapshot, [name])


def test_a_cache_names_the_snapshots_it_has(small: SmallCache) -> None:
    with pytest.raises(NotACacheError, match="no snapshot yet"):
        small.cache.snapshot()
    segment = small.teach([1], _values([1]))
    small.commit([1], [segment])
    small.commit([1], [segment])
    (on_disk(small.cache.path) / "snapshots" / "notes.json").write_text("{}")
    (on_disk(small.cache.path) / "snapshots" / "000002 (copy).json").write_text("{}")
    with pytest.raises(NotACacheError, match="no snapshot 7; it has 1 to 2"):
        small.cache.snapshot(7)
    assert small.cache.snapshot().number == 2
    assert "1 rows, x" in repr(small.cache.snapshot())


def test_a_snapshot_of_no_rows_reads_no_rows(small: SmallCache) -> None:
    segment = small.teach([1], _values([1]))
    snapshot = small.commit([2], [segment])
    assert len(snapshot) == 0
    assert Reader(snapshot).gather([])["x"].shape == (0, 2)  # type: ignore[union-attr]
    with pytest.raises(UnknownRowError):
        Reader(snapshot).gather([2])


def test_a_segment_that_lost_its_folder_is_named(small: SmallCache) -> None:
    segment = small.teach([1], _values([1]))
    snapshot = small.commit([1], [segment])
    on_disk(segment.path).rename(on_disk(segment.path).parent / "elsewhere")
    with pytest.raises(CorruptShardError, match=segment.path.name):
        Reader(small.cache.snapshot(snapshot.number))


def test_signals_that_are_not_those_of_the_segment_are_refused(small: SmallCache) -> None:
    snapshot = small.commit([1], [small.teach([1], _values([1]))])
    path = small.cache.path / "snapshots" / "000001.json"
    described = json.loads(path.read_bytes())
    for name, change in {"x": {"dtype": "int32"}, "y": {}}.items():
        signal = described["sources"][0]["signals"]["x"]
        changed = {**described["sources"][0], "signals": {name: {**signal, **change}}}
        write_json(path, {**described, "sources": [changed]})
        with pytest.raises(FormatError, match=f"signal '{name}' from 0001-"):
            Reader(small.cache.snapshot(snapshot.number))


@pytest.mark.parametrize(
    "change",
    [
        {"start": 1},
        {"start": -1},
        {"start": 2**62},
        {"rows": 3},
        {"rows": 0},
        {"rows": -1},
        {"rows": 2**63 - 1},
        {"slot": -1},
        {"slot": 1},
        {"slot": 2**63 - 1},
        {"segment": "../../elsewhere"},
        {"segment": "/etc"},
        {"segment": ""},
        {"segment": "0001-no-such"},
        {"segment": "0001-\0"},
        {"segment": None},
        {"start": None},
    ],
    ids=str,
)
def test_runs_that_point_elsewhere_are_refused(small: SmallCache, change: dict[str, Any]) -> None:
    small.commit([1, 2], [small.teach([1, 2], _values([1, 2]))])
    (path,) = on_disk(small.cache.path / "snapshots").glob("*.arrow")
    table = read_table(path, None)
    changed = pa.RecordBatch.from_pylist([{**table.to_pylist()[0], **change}], table.schema)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_batch(changed)
    with pytest.raises(CorruptShardError, match="checksum"):
        Reader(small.cache.snapshot())
    described_at = small.cache.path / "snapshots/000001.json"
    described = json.loads(described_at.read_bytes())
    described["crc32c"] = _checksum(path.read_bytes())
    write_json(described_at, described)
    with pytest.raises((CorruptShardError, FormatError)):
        Reader(small.cache.snapshot()).gather([1])


def _checksum(content: bytes) -> str:
    import google_crc32c

    return f"{google_crc32c.value(content):08x}"
