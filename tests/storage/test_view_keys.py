"""Pairs of a key and a view: found, stored, served and copied as plain keys are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage import CorruptShardError, Reader, UnknownRowError, compact, verify
from stillroom.storage.errors import RowsError
from stillroom.storage.folder import Folder
from stillroom.storage.keys import KeyIndex, as_keys, check_unique
from stillroom.storage.pairs import is_pairs, join_keys, pair_keys, same_keys, spelled
from stillroom.storage.table import read_table, write_table
from stillroom.storage.testing import SmallCache, content_hashes
from tests.ids import without_addresses

quick = settings(max_examples=100, deadline=None, derandomize=True)
KEY = st.integers(-(2**63), 2**63 - 1), st.text("abé", max_size=3)
VIEW = st.integers(0, 3) | st.just(2**31 - 1)


def _lists(key: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.tuples(key, VIEW), unique=True, max_size=20)


PAIRS = _lists(KEY[0]) | _lists(KEY[1])


def test_pairs_of_every_kind_become_a_struct() -> None:
    wanted = [("a", 1), ("b", 0), ("a", 0)]
    struct = pair_keys(pa.array(["a", "b", "a"], pa.large_string()), np.array([1, 0, 0]))
    narrow = pa.array([{"view": v, "key": k} for k, v in wanted])
    for given_keys in (wanted, tuple(wanted), struct, narrow, pa.chunked_array([struct])):
        keys = as_keys(given_keys)
        assert keys.type == pa.struct([("key", pa.large_string()), ("view", pa.int32())])
        assert spelled(keys) == wanted
    assert spelled(as_keys(struct[1:])) == wanted[1:]
    assert spelled(as_keys([(3, np.int8(1))])) == [(3, 1)]


@pytest.mark.parametrize(
    "wrong",
    [
        [("a", 1), "b"],
        ["b", ("a", 1)],
        [("a", 1), ("b",)],
        [("a", -1)],
        [("a", 2**31)],
        [("a", "b")],
        [("a", None)],
        [("a", True)],
        [("a", 1.0)],
        [(None, 1)],
        [("a", 1), (1, 1)],
        [(("a", 1), 1)],
        pa.array([{"key": 1, "view": 1}, None]),
        pa.array([{"key": 1, "view": None}]),
        pa.array([{"key": 1, "views": 1}]),
        pa.array([{"key": 1}]),
        pa.array([{"key": 1, "view": 1, "more": 1}]),
    ],
    ids=without_addresses,
)
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(RowsError, match="key"):
        as_keys(wrong)


@quick
@given(PAIRS, st.data())
def test_pairs_are_found_where_they_are(pairs: list[Any], data: st.DataObject) -> None:
    # Through a slice, whose columns begin in the middle of their buffers.
    index = KeyIndex(as_keys([*pairs[:1], *pairs])[min(len(pairs), 1) :])
    asked = data.draw(st.lists(st.sampled_from(pairs), max_size=30)) if pairs else []
    kind = KEY[isinstance(pairs[0][0], str)] if pairs else KEY[0]
    more = data.draw(st.lists(st.tuples(kind, VIEW), max_size=3))
    if pairs:
        more += [(pairs[0][0], view) for view in range(3)]
    places = {pair: place for place, pair in enumerate(pairs)}
    assert index.find(asked + more).tolist() == [places.get(pair, -1) for pair in asked + more]
    plain = [key for key, _ in asked + more]
    assert index.find(plain).tolist() == [places.get((key, 0), -1) for key in plain]


@quick
@given(st.lists(KEY[1], unique=True, max_size=12), st.lists(st.tuples(KEY[1], VIEW), max_size=12))
def test_plain_keys_are_view_0(keys: list[str], asked: list[Any]) -> None:
    places = {(key, 0): place for place, key in enumerate(keys)}
    found = KeyIndex(as_keys(keys)).find(asked)
    assert found.tolist() == [places.get(pair, -1) for pair in asked]
    lifted = pair_keys(as_keys(keys), 0)
    if keys:
        assert same_keys(lifted, as_keys(keys))
        assert same_keys(as_keys(keys), lifted)
        assert not same_keys(as_keys(keys), pair_keys(as_keys(keys), 1))
        assert spelled(join_keys([as_keys(keys), lifted])) == [(key, 0) for key in keys] * 2


def test_pairs_of_the_other_kind_of_key_are_unknown() -> None:
    assert KeyIndex(as_keys([("1", 1)])).find([(1, 1)]).tolist() == [-1]
    assert KeyIndex(as_keys([(1, 1)])).find([("1", 1)]).tolist() == [-1]


def test_a_pair_for_two_rows_is_refused_by_name() -> None:
    check_unique(as_keys([("a", 1), ("a", 2), ("b", 1)]))
    with pytest.raises(RowsError, match=r"1 keys stand for .*: \('a', 2\);"):
        check_unique(as_keys([("a", 1), ("a", 2), ("b", 1), ("a", 2)]))


def _values(numbers: list[int]) -> dict[str, Any]:
    return {"x": np.array(numbers, np.float32)}


@pytest.mark.parametrize("key", ["a", 7])
def test_views_are_stored_and_served_by_pair(small: SmallCache, key: Any) -> None:
    pairs = [(key, 2), (key, 1), (key, 0)]
    segment = small.teach(pairs, _values([2, 1, 0]), shard_rows=2)
    assert spelled(segment.keys) == pairs
    assert segment.views.tolist() == [2, 1, 0]
    snapshot = small.commit(pairs, [segment])
    read = Reader(snapshot, ["x"])
    assert read.gather([(key, 0), (key, 2), (key, 1)])["x"].tolist() == [0, 2, 1]  # type: ignore[union-attr]
    assert read.gather([key])["x"].tolist() == [0]  # type: ignore[union-attr]
    with pytest.raises(UnknownRowError, match=rf"\({key!r}, 3\)"):
        read.gather([(key, 1), (key, 3)])
    assert verify(small.cache.path).problems == ()


def test_plain_keys_are_written_and_read_as_before(small: SmallCache) -> None:
    plain = small.draft(["a", "b"], {"x": "raw"})
    lifted = small.draft([("a", 0), ("b", 0)], {"x": "raw"}, hashes=content_hashes(["a", "b"]))
    batch = read_table(plain.path / "rows.arrow", None)
    assert not is_pairs(plain.keys)
    assert plain.keys.equals(as_keys(["a", "b"]))
    assert batch.column("view").to_pylist() == [0, 0]
    assert batch.column("key").to_pylist() == ["a", "b"]
    assert lifted.keys.equals(plain.keys)
    files = [(d.path / "rows.arrow").read_bytes() for d in (plain, lifted)]
    assert files[0] == files[1]


def test_sources_with_and_without_views_share_a_snapshot(small: SmallCache) -> None:
    pairs = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    hashes = content_hashes(pairs)
    viewed = small.teach(pairs, _values([0, 1, 2, 3]), hashes=hashes, teacher="one")
    plain = small.teach(["a", "b"], {"y": np.ones(2)}, hashes=hashes[[0, 2]], teacher="two")
    served = [small.serve(pairs, [s], hashes) for s in (viewed, plain)]
    assert served[1].segment.tolist() == [0, -1, 0, -1]
    snapshot = small.cache.commit(lambda: served, "a test")
    assert sorted(spelled(snapshot.keys)) == pairs
    assert Reader(snapshot, ["y"]).gather(["b"])["y"].tolist() == [1]  # type: ignore[union-attr]
    with pytest.raises(UnknownRowError, match=r"never taught for 1 of .* \('b', 1\)"):
        Reader(snapshot, ["y"]).gather([("b", 0), ("b", 1)])
    # The other way round: a plain data set is served the rows as they are of both.
    served = [small.serve(["a", "b"], [s], hashes[[0, 2]]) for s in (plain, viewed)]
    snapshot = small.cache.commit(lambda: served, "a test")
    assert snapshot.rows == 2
    assert Reader(snapshot, ["x"]).gather(["b", "a"])["x"].tolist() == [2, 0]  # type: ignore[union-attr]


def test_segments_of_views_are_compacted(small: SmallCache) -> None:
    first = small.teach([("a", 0), ("b", 0)], _values([0, 1]))
    second = small.teach([("a", 1), ("b", 1)], _values([2, 3]))
    pairs = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    small.commit(pairs, [first, second])
    done = compact(small.cache)
    assert done.merged[0].rows == 4
    snapshot = small.cache.snapshot()
    assert len({name for *_, name, _ in snapshot.stretches()}) == 1
    assert Reader(snapshot, ["x"]).gather(pairs)["x"].tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
    assert verify(small.cache.path).problems == ()


def test_a_view_below_0_is_damage(small: SmallCache) -> None:
    draft = small.draft([("a", 1), ("b", 2)], {"x": "raw"})
    batch = read_table(draft.path / "rows.arrow", None)
    views = pa.array([1, -1], pa.int32())
    write_table(draft.path / "rows.arrow", batch.set_column(2, batch.schema.field("view"), views))
    with pytest.raises(CorruptShardError, match="below 0"):
        Folder(draft.path).keys  # noqa: B018
