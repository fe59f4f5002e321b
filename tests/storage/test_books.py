"""Books: named by their own bytes, written once, read by anybody, believed only when they are whole."""

from __future__ import annotations

import gc
import hashlib
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from stillroom.storage.books import Book, book_place, books, read_book, widened, write_book
from stillroom.storage.errors import CorruptShardError, FormatError, SignalError
from stillroom.storage.files import write_atomic
from stillroom.storage.signal import Signal
from stillroom.storage.testing import bits

quick = settings(max_examples=40, deadline=None, derandomize=True)
ARRAYS = st.dictionaries(
    st.text("abcxyz_", min_size=1, max_size=5),
    st.sampled_from(["f2", "f4", "f8", "u1", "u2", "i4", "i8", ">f4"]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=3, max_side=5))
    ),
    min_size=1,
    max_size=3,
)


@quick
@given(ARRAYS)
def test_what_is_written_is_read_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, given_arrays: dict[str, NDArray[Any]]
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    digest = write_book(cache, given_arrays)
    path = cache / "books" / f"{digest}.arrow"
    content = path.read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert books(cache) == [digest]
    book = read_book(cache, digest)
    assert set(book.arrays) == set(given_arrays)
    for name, array in given_arrays.items():
        plain = array.astype(array.dtype.newbyteorder("="))
        assert (book.arrays[name].dtype, book.arrays[name].shape) == (plain.dtype, plain.shape)
        np.testing.assert_array_equal(bits(book.arrays[name]), bits(plain))
    # A function of the arrays, not of the order in which they were named.
    assert write_book(cache, dict(reversed(given_arrays.items()))) == digest
    assert books(cache) == [digest]
    assert path.read_bytes() == content


def test_another_library_reads_a_book_without_ours(tmp_path: Path) -> None:
    import polars

    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    digest = write_book(tmp_path, {"weight": weight, "bias": np.arange(3, dtype=np.float16)})
    path = str(book_place(tmp_path, digest))
    with pa.ipc.open_file(path) as file:
        (row,) = file.read_all().to_pylist()
    assert row["weight"] == weight.tolist()
    (found,) = polars.read_ipc(path, columns=["weight"])["weight"].to_list()
    assert found == weight.tolist()


def test_equal_books_are_written_once(tmp_path: Path) -> None:
    digest = write_book(tmp_path, {"a": np.ones(3)})
    path = tmp_path / "books" / f"{digest}.arrow"
    before = path.stat()
    assert write_book(tmp_path, {"a": np.ones(3)}) == digest
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert write_book(tmp_path, {"a": np.ones(3, np.float32)}) != digest
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert write_book(tmp_path, {"a": np.ones(3)}) == digest
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_a_book_is_opened_once_and_let_go_when_nobody_holds_it(tmp_path: Path) -> None:
    digest = write_book(tmp_path, {"a": np.arange(9)})
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_book(tmp_path, digest), range(32)))
    assert len({id(book) for book in found}) == 1
    held = weakref.ref(found[0])
    del found
    gc.collect()
    assert held() is None
    assert read_book(tmp_path, digest).arrays["a"].tolist() == list(range(9))


def test_arrays_of_a_book_cannot_be_written_to(tmp_path: Path) -> None:
    book = read_book(tmp_path, write_book(tmp_path, {"a": np.arange(9)}))
    with pytest.raises(ValueError, match="read-only"):
        book.arrays["a"][0] = 1


@pytest.mark.parametrize("place", [0, 8, 100, -300, -1])
def test_a_flipped_byte_is_caught_also_while_another_reader_has_the_book(
    tmp_path: Path, place: int
) -> None:
    digest = write_book(tmp_path, {"a": np.arange(999)})
    held = read_book(tmp_path, digest)
    path = tmp_path / "books" / f"{digest}.arrow"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    write_atomic(path, [content])
    with pytest.raises(CorruptShardError, match=digest):
        read_book(tmp_path, digest)
    assert held.arrays["a"][-1] == 998


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "a folder"])
def test_a_book_that_is_not_whole_is_named(tmp_path: Path, damage: str) -> None:
    digest = write_book(tmp_path, {"a": np.arange(99)})
    path = tmp_path / "books" / f"{digest}.arrow"
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(content[:-9] if damage == "truncated" else b"")
    for check in (True, False) if damage != "truncated" else (True,):
        with pytest.raises(CorruptShardError, match=digest):
            read_book(tmp_path, digest, check=check)


def _stored(cache: Path, batch: pa.RecordBatch, codec: str | None = None) -> str:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    write_atomic(cache / "books" / f"{digest}.arrow", [content])
    return digest


def test_a_file_of_the_right_name_that_is_no_book_is_refused(tmp_path: Path) -> None:
    pair = pa.list_(pa.float32(), 2)
    wrong: list[tuple[pa.Array, str | None]] = [
        (pa.array([[1, 2], [3, 4]], pair), None),
        (pa.array([], pair), None),
        (pa.array([None], pair), None),
        (pa.array([[1, None]], pair), None),
        (pa.array([1.0]), None),
        (pa.array([["a", "b"]], pa.list_(pa.string(), 2)), None),
        (pa.array([[True, False]], pa.list_(pa.bool_(), 2)), None),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32())), None),
        (pa.array([[0.0] * 9999], pa.list_(pa.float32(), 9999)), "zstd"),
    ]
    for column, codec in wrong:
        digest = _stored(tmp_path, pa.record_batch([column], names=["a"]), codec)
        with pytest.raises(CorruptShardError, match="is no book"):
            read_book(tmp_path, digest)


@pytest.mark.parametrize("name", ["", "x", "../" * 21 + "x", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="names no book"):
        read_book(tmp_path, name)
    if name:
        described = {"shape": [4], "dtype": "float32", "encoding": "product(2)", "source": ""}
        with pytest.raises(FormatError, match="names no book"):
            Signal.from_json("s", {**described, "book": name})


@pytest.mark.parametrize(
    "array", [np.zeros((2, 0)), np.array(1.0), np.array(["a"]), np.array([True]), np.zeros(2, "c8")]
)
def test_what_cannot_be_an_array_of_a_book_is_refused(tmp_path: Path, array: Any) -> None:
    with pytest.raises(SignalError, match="'a' of a book"):
        write_book(tmp_path, {"a": array})
    assert books(tmp_path) == []


def test_narrow_arrays_are_widened_without_a_change_of_value() -> None:
    from stillroom.storage.encodings.encoding import encoding

    half = np.array([1.5, -0.0, 6e-8, 65504], np.float16)
    np.testing.assert_array_equal(widened(half), half.astype(np.float32), strict=True)
    values = np.array([1.0, -2.5, 3e38, 0.0], np.float32)
    stored = encoding("bfloat16").encode(values)
    expected = encoding("bfloat16").decode(stored, ())
    np.testing.assert_array_equal(widened(stored[""]), expected, strict=True)
    double = np.array([0.1])
    assert widened(double) is double
    assert Book("", {"a": stored[""]}).wide("a").dtype == np.float32


def test_a_signal_names_its_book_and_only_then(tmp_path: Path) -> None:
    digest = write_book(tmp_path, {"centroids": np.ones((2, 1, 2), np.float32)})
    plain = Signal("s", (4,), "float32", "product(2)")
    assert "book" not in plain.to_json()
    bound = plain.bound(read_book(tmp_path, digest))
    assert bound.to_json()["book"] == digest
    again = Signal.from_json("s", bound.to_json())
    assert (again, again.opened) == (bound, None)
    assert plain.differs(bound) == f"book '' became {digest!r}"
    with pytest.raises(SignalError, match="float16 needs no book"):
        Signal("s", (4,), "float32", "float16", "", digest)
