"""Keys are all integers or all strings, one for each row, and are found whatever they came in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage.errors import RowsError
from stillroom.storage.keys import KeyIndex, as_keys, check_unique
from tests.ids import without_addresses

quick = settings(max_examples=100, deadline=None, derandomize=True)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
KEYS = st.lists(INT64, unique=True, max_size=20) | st.lists(TEXT, unique=True, max_size=20)


@pytest.mark.parametrize(
    "given_keys",
    [
        [3, 1, 2],
        (3, 1, 2),
        np.array([3, 1, 2], "u1"),
        np.array([3, 1, 2], ">i4"),
        np.array([9, 3, 9, 1, 9, 2])[1::2],
        np.array([3, 1, 2], object),
        pa.array([3, 1, 2], pa.uint16()),
        pa.array([0, 3, 1, 2])[1:],
        pa.chunked_array([[3], [], [1, 2]]),
        [np.int32(3), np.int64(1), np.int8(2)],
    ],
)
def test_integers_of_every_kind_become_int64(given_keys: Any) -> None:
    keys = as_keys(given_keys)
    assert keys.type == pa.int64()
    assert keys.to_pylist() == [3, 1, 2]


@pytest.mark.parametrize(
    "given_keys",
    [
        ["é", "", "a b"],
        np.array(["é", "", "a b"]),
        np.array(["é", "", "a b"], object),
        pa.array(["é", "", "a b"]),
        pa.chunked_array([["é"], ["", "a b"]]),
        [np.str_("é"), "", "a b"],
    ],
)
def test_strings_of_every_kind_become_large_strings(given_keys: Any) -> None:
    keys = as_keys(given_keys)
    assert keys.type == pa.large_string()
    assert keys.to_pylist() == ["é", "", "a b"]


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "one string",
        b"bytes",
        5,
        [1, "a"],
        ["a", 1],
        [1, 2.5],
        [1.0, 2.0],
        [True, False],
        [1, True],
        [b"a"],
        [None, None],
        [1, None],
        ["a", None],
        [(1, 2, 3)],
        ["\ud800"],
        [2**63],
        [-(2**63) - 1],
        [2**70],
        np.array([1.0]),
        np.array([b"a"]),
        np.array([[1, 2]]),
        np.array(3),
        np.array(["2020-01-01"], "M8[D]"),
        pa.array([1, None]),
        pa.array([2**63], pa.uint64()),
        pa.array([[1]]),
    ],
    ids=without_addresses,
)
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(RowsError, match="key"):
        as_keys(wrong)


@quick
@given(KEYS, st.data())
def test_keys_are_found_where_they_are(keys: list[Any], data: st.DataObject) -> None:
    index = KeyIndex(as_keys(keys))
    asked = data.draw(st.lists(st.sampled_from(keys), max_size=30)) if keys else []
    more = data.draw(st.lists(INT64 if keys and isinstance(keys[0], int) else TEXT, max_size=3))
    places = {key: place for place, key in enumerate(keys)}
    expected = [places.get(key, -1) for key in asked + more]
    assert index.find(asked + more).tolist() == expected


def test_keys_of_the_other_kind_are_unknown() -> None:
    assert KeyIndex(as_keys(["1", "2"])).find([1, 2]).tolist() == [-1, -1]
    assert KeyIndex(as_keys([1, 2])).find(["1", "2"]).tolist() == [-1, -1]
    assert KeyIndex(as_keys([])).find([1]).tolist() == [-1]
    assert KeyIndex(as_keys(["a"])).find([]).tolist() == []


def test_a_key_for_two_rows_is_refused_by_name() -> None:
    check_unique(as_keys(["a", "b"]))
    check_unique(as_keys([]))
    with pytest.raises(RowsError, match="1 keys stand for more than one row: b"):
        check_unique(as_keys(["a", "b", "c", "b", "b"]))
    with pytest.raises(RowsError, match="0, 1, 2, 3, 4 and 95 more"):
        check_unique(as_keys([*range(100), *range(100)]))
