"""A signal says what a row is, survives JSON, and refuses what could not be stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage.errors import FormatError, SignalError
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Signal, Values

quick = settings(max_examples=150, deadline=None, derandomize=True)
EXAMPLES = [
    Signal("logits", (10,), "float32", "float16"),
    Signal("scalar", (), "int64"),
    Signal("tokens", (None, 50_000), "float32", "topk(8)", "model.head"),
    Signal("boxes", (None,), (("box", "float32", (4,)), ("label", "uint8", ()))),
    Signal("text", (), "string"),
]


@pytest.mark.parametrize("signal", EXAMPLES, ids=lambda s: s.name)
def test_json_and_back(signal: Signal) -> None:
    assert Signal.from_json(signal.name, json.loads(json.dumps(signal.to_json()))) == signal


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a.b", "-a", "_a", "a b", "é", "a" * 65, "a\n", "a\0", 3]
)
def test_a_name_that_is_no_safe_folder_is_refused(name: Any) -> None:
    with pytest.raises(SignalError, match="name"):
        Signal(name, (), "float32")


@pytest.mark.parametrize("name", ["a", "A-1_b", "0", "a" * 64])
def test_a_plain_name_is_kept(name: str) -> None:
    assert Signal(name, (), "float32").name == name


@pytest.mark.parametrize(
    ("values", "kind", "shape", "dtype"),
    [
        (np.zeros((3, 2, 4), "f2"), "fixed", (2, 4), "float16"),
        (np.zeros(3, ">i8"), "fixed", (), "int64"),
        (Ragged.of([np.zeros((1, 4), "?")]), "ragged", (None, 4), "bool"),
        (Ragged.of([np.zeros(1, "u1")]), "ragged", (None,), "uint8"),
        (["a"], "text", (), "string"),
        ([], "text", (), "string"),
    ],
)
def test_values_say_what_signal_they_are(
    values: Values, kind: str, shape: tuple[int | None, ...], dtype: str
) -> None:
    signal = Signal.of("s", values)
    assert (signal.kind, signal.shape, signal.dtype) == (kind, shape, dtype)


@pytest.mark.parametrize(
    "dtype", ["c8", "M8[D]", "O", "U3", "S3", "g", "V3", [("a", "f4"), ("b", "O")]]
)
def test_values_that_cannot_be_stored_are_refused_by_name(dtype: Any) -> None:
    with pytest.raises(SignalError, match="'odd'"):
        Signal.of("odd", np.zeros(2, dtype))


@pytest.mark.parametrize(
    ("shape", "dtype", "encoding"),
    [
        ((0,), "float32", "raw"),
        ((-1,), "float32", "raw"),
        ((2, None), "float32", "raw"),
        ((None, None), "float32", "raw"),
        ((), (), "raw"),
        ((), (("../up", "float32", ()),), "raw"),
        ((), (("a", "float32", (0,)),), "raw"),
        ((), (("a", "string", ()),), "raw"),
        ((), "string", "float16"),
        ((2,), "string", "raw"),
        ((2**20, 2**20), "float32", "raw"),
        ((None, 2**31), "uint8", "raw"),
    ],
)
def test_what_has_no_place_on_disk_is_refused(
    shape: tuple[int | None, ...], dtype: Any, encoding: str
) -> None:
    with pytest.raises(SignalError, match="signal 's'"):
        Signal("s", shape, dtype, encoding)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@quick
@given(
    st.sampled_from(EXAMPLES),
    st.dictionaries(st.sampled_from(["shape", "dtype", "encoding", "source"]), JSON),
    st.sets(st.sampled_from(["shape", "dtype", "encoding", "source"])),
)
def test_a_garbled_description_is_a_format_error_or_a_signal(
    signal: Signal, changed: dict[str, Any], removed: set[str]
) -> None:
    described = {k: v for k, v in {**signal.to_json(), **changed}.items() if k not in removed}
    said = ""
    try:
        found = Signal.from_json(signal.name, described)
    except FormatError as error:
        said = str(error)
    assert repr(signal.name) in said or (found.row_bytes > 0 and found.parts)


@pytest.mark.parametrize("garbled", [None, 3, "x", [], [1], {}, {"shape": 3}])
def test_what_is_no_description_is_a_format_error(garbled: Any) -> None:
    with pytest.raises(FormatError, match="'s'"):
        Signal.from_json("s", garbled)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Signal("s", (3,), "float32"), ""),
        (Signal("s", (4,), "float32"), "row shape (3,) became (4,)"),
        (Signal("s", (3,), "float64"), "dtype 'float32' became 'float64'"),
        (Signal("s", (3,), "float32", "float16"), "encoding 'raw' became 'float16'"),
        (Signal("s", (3,), "float32", "raw", "x"), "source '' became 'x'"),
    ],
)
def test_a_difference_is_put_into_words(other: Signal, words: str) -> None:
    assert Signal("s", (3,), "float32").differs(other) == words
