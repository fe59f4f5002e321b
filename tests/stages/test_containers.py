"""The same content is the same rows, whatever it lies in: moving a data set teaches nothing again."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle

from stillroom.stages.data.arrow_columns import from_arrow
from stillroom.stages.data.row_hashes import hash_rows, hash_whole
from stillroom.stages.data.rows import ArrayRows, Rows
from stillroom.storage.errors import RowsError
from tests.stages.builders import Watched, answers, data, images, plain, taught
from tests.stages.containers import (
    COLUMNS,
    EVERY,
    contents,
    in_chosen_dataset,
    in_memory,
    in_parquet,
    table,
)

KEYS = [f"r{i}" for i in range(40)]
quick = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(params=EVERY)
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Rows:
    """The contents in each container in turn."""
    return EVERY[request.param](tmp_path / "rows", KEYS, contents(40))


def held(rows: Rows) -> list[str]:
    """Of the contents, the columns that a container holds (no array holds bytes of any length)."""
    columns = [name for name in COLUMNS if name in rows.columns]
    assert set(columns) >= {*COLUMNS} - {"text", "jpeg"}
    return columns


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert found == expected
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_every_container_gives_the_same_rows_and_hashes(rows: Rows) -> None:
    expected = in_memory(KEYS, contents(40))
    assert len(rows) == 40
    assert rows.keys.equals(expected.keys)
    columns = held(rows)
    assert {*rows.columns} - {"id"} == {*columns}
    for name in columns:
        np.testing.assert_array_equal(rows.hashes([name]), expected.hashes([name]))
    np.testing.assert_array_equal(rows.hashes(columns[::-1]), expected.hashes(columns))
    for places in ([3, 39, 0, 3, 21], range(40), range(39, -1, -1), []):
        at = np.array(places, np.int64)
        found, wanted = rows.read(at, columns), expected.read(at, columns)
        for name in columns:
            same(found[name], wanted[name])


def test_a_worker_that_got_it_by_value_reads_the_same(rows: Rows) -> None:
    rows.hashes(["image"])
    # As Ray sends it.
    sent: Rows = cloudpickle.loads(cloudpickle.dumps(rows))  # type: ignore[no-untyped-call]
    assert sent.keys.equals(rows.keys)
    at = np.array([39, 2])
    for name in held(rows):
        same(sent.read(at, [name])[name], rows.read(at, [name])[name])
    assert sent.fingerprint(held(rows)) == rows.fingerprint(held(rows))


def test_some_rows_in_another_order_are_the_same_rows(tmp_path: Path) -> None:
    places = np.array([31, 4, 4 + 8, 0])
    whole, keys = contents(40), [f"r{i}" for i in places]
    some = {
        n: [c[i] for i in places] if isinstance(c, list) else c[places] for n, c in whole.items()
    }
    expected = in_memory(KEYS, whole)
    for name, made in EVERY.items():
        rows = made(tmp_path / name, keys, some)
        found, wanted = rows.hashes(held(rows)), expected.hashes(held(rows))[places]
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def test_keys_of_any_script_are_kept(tmp_path: Path) -> None:
    keys = [f"{word}/{i} ß" for i, word in enumerate(["é", "日本", "🙂", "e\u0301", "a"] * 2)]
    for name, made in EVERY.items():
        assert made(tmp_path / name, keys, contents(10)).keys.to_pylist() == keys, name


def test_threads_read_at_once_what_one_reads(rows: Rows) -> None:
    columns, expected = held(rows), in_memory(KEYS, contents(40))
    draws = [np.random.default_rng(seed).integers(0, 40, 30) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for at, found in zip(
            draws, pool.map(lambda at: rows.read(at, columns), draws), strict=True
        ):
            for name in columns:
                same(found[name], expected.read(at, columns)[name])


def test_a_forked_process_reads_the_same(rows: Rows) -> None:
    columns, context = held(rows), multiprocessing.get_context("fork")
    expected = _read_and_hashed(rows, columns)
    answer = context.SimpleQueue()
    # What was opened before the fork is used after it: no argument is pickled.
    child = context.Process(target=lambda: answer.put(_read_and_hashed(rows, columns)))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answer.get() == expected == [bytes(h) for h in rows.hashes(columns)]


def _read_and_hashed(rows: Rows, columns: list[str]) -> list[bytes]:
    """Hashes of what is read, not of what was hashed before."""
    again = ArrayRows(rows.keys, **rows.read(np.arange(len(rows)), columns))
    return [bytes(h) for h in again.hashes(columns)]


SPAWNED = """
import sys
from ray import cloudpickle
for rows, columns in cloudpickle.load(sys.stdin.buffer):
    print(rows.fingerprint(columns), *map(bytes.hex, map(bytes, rows.hashes(columns))))
"""


@pytest.mark.slow
def test_a_spawned_process_reads_the_same(tmp_path: Path) -> None:
    # The made-up data set of `containers` is a class of these tests, which others cannot import.
    names = [name for name in EVERY if name not in ("dataset", "chosen")]
    every = [EVERY[name](tmp_path / name, KEYS, contents(40)) for name in names]
    given = cloudpickle.dumps([(rows, held(rows)) for rows in every])  # type: ignore[no-untyped-call]
    done = subprocess.run(
        [sys.executable, "-c", SPAWNED], input=given, capture_output=True, check=True
    )
    for rows, line in zip(every, done.stdout.decode().splitlines(), strict=True):
        hashes = [bytes(h).hex() for h in rows.hashes(held(rows))]
        assert line.split() == [rows.fingerprint(held(rows)), *hashes]


def test_what_is_not_there_is_named(rows: Rows) -> None:
    for call in (rows.hashes, rows.fingerprint, lambda names: rows.read(np.array([0]), names)):
        with pytest.raises(RowsError, match="no column 'imag'; did you mean 'image'"):
            call(["imag"])
    with pytest.raises(IndexError):
        rows.read(np.array([40]), ["image"])


def test_another_container_teaches_nothing_again(tmp_path: Path) -> None:
    columns = {"image": images(60)}
    keys = data().keys.to_pylist()
    taught(tmp_path / "c", teacher=plain())
    forbidden = Watched(plain(), tmp_path / "shown", forbidden=True)
    for moved in (
        in_parquet(tmp_path / "p", keys, columns),
        in_chosen_dataset(keys, columns),
    ):
        snapshot = taught(tmp_path / "c", moved, forbidden)
        np.testing.assert_array_equal(answers(snapshot, moved), images(60)[:, :4] * 2)
        again = taught(tmp_path / "c", moved, forbidden)
        assert again.number == snapshot.number


def test_decoded_pieces_stay_within_their_bound(tmp_path: Path) -> None:
    rows = in_parquet(tmp_path / "p", KEYS, contents(40), memory_bytes=400)
    expected = in_memory(KEYS, contents(40))
    for seed in range(5):
        places = np.random.default_rng(seed).integers(0, 40, 30)
        same(rows.read(places, ["image"])["image"], expected.read(places, ["image"])["image"])
        kept = rows._pieces._kept
        assert sum(column.nbytes for column in kept.values()) == rows._pieces._bytes <= 400
    np.testing.assert_array_equal(rows.hashes(COLUMNS), expected.hashes(COLUMNS))


def plainly(columns: dict[str, Any]) -> list[bytes]:
    """The definition: xxh3_128 of a row's bytes, seeded by name, dtype and shape."""
    each = []
    for name in sorted(columns):
        column = columns[name]
        texts = isinstance(column, list)
        kind = "large_string" if texts else f"{column.dtype.str}{column.shape[1:]}"
        seed = xxhash.xxh64_intdigest(f"{name}|{kind}".encode())
        # A slice, not a row: numpy turns a number that it takes out to native byte order.
        places = range(len(column))
        rows = [column[i].encode() if texts else column[i : i + 1].tobytes() for i in places]
        each.append([xxhash.xxh3_128_digest(row, seed) for row in rows])
    if len(each) == 1:
        return each[0]
    seed = xxhash.xxh64_intdigest(f"{'+'.join(sorted(columns))}||u1({len(each)}, 16)".encode())
    return [xxhash.xxh3_128_digest(b"".join(row), seed) for row in zip(*each, strict=True)]


@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 9000])
def test_hashes_are_those_that_older_caches_hold(rows: int) -> None:
    columns = {
        "a": np.random.default_rng(rows).random((rows, 3, 2)),
        "none": np.zeros((rows, 0), "i4"),
        "one": np.arange(rows, dtype=">i2"),
        "sliced": np.arange(rows * 4).reshape(rows, 4)[:, ::2],
        "text": [f"é{i}" * (i % 4) for i in range(rows)],
    }
    made = ArrayRows(range(rows), **columns)
    for name in columns:
        assert [bytes(h) for h in made.hashes([name])] == plainly({name: columns[name]})
    assert [bytes(h) for h in made.hashes(list(columns))] == plainly(columns)


def test_long_rows_hashed_on_threads_keep_their_order() -> None:
    long = np.random.default_rng(0).integers(0, 9, (5000, 1 << 14), dtype=np.uint8)
    assert [bytes(h) for h in hash_rows({"x": long[::-1]})[:3]] == plainly({"x": long[:-4:-1]})
    whole = hash_whole([("x", long)])
    long[4999, -1] += 1
    assert hash_whole([("x", long)]) != whole


@quick
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=8), st.data()
)
def test_a_fingerprint_sees_a_slice_and_nothing_beside_it(texts: list[str], draw: Any) -> None:
    start, stop = sorted(draw.draw(st.tuples(*[st.integers(0, len(texts))] * 2)))
    cut = pa.array(texts, pa.large_string())[start:stop]
    alone = pa.array(texts[start:stop], pa.large_string())
    assert hash_whole([("t", cut)]) == hash_whole([("t", alone)])
    other = draw.draw(st.lists(st.text(max_size=2), max_size=3))
    equal = hash_whole([("t", cut)]) == hash_whole([("t", pa.array(other, pa.large_string()))])
    assert equal == (other == texts[start:stop])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1, None, 3]), "'x' has 1 missing values, the first at 1"),
        (pa.array(["a", None]), "'x' has 1 missing values, the first at 1"),
        (pa.array([[1, 2], [1, None]]), "'x' has 1 missing values"),
        (pa.array([[1, 2], None]), "'x' has 1 missing values"),
        (pa.array([None, None]), "'x' has 2 missing values"),
        (pa.array([[1, 2], [3]]), "lists of different lengths, row 1 the first of another"),
        (pa.array([[[1], [2]], [[3], [4, 5]]]), "lists of different lengths, row 1"),
        (pa.array([["a"], ["b"]]), "'x' is string; a column that is read holds numbers"),
        (pa.array([{"a": 1}]), "is struct<a: int64>"),
        (pa.array([{"bytes": b"a", "path": "a"}, {"bytes": None, "path": "b"}]), "a path alone"),
        (pa.array([0], pa.timestamp("s")), r"is timestamp\[s\]; .* Cast it, or leave it out"),
    ],
    ids=str,
)
def test_columns_that_cannot_be_read_are_named(column: pa.Array, message: str) -> None:
    with pytest.raises(RowsError, match=message):
        from_arrow("x", column)
    with pytest.raises(RowsError, match=message):
        ArrayRows(range(len(column)), x=column)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int16()))[1:], np.array([[3, 4]], "i2")),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2))[1:], np.array([[3, 4]], "i2")),
        (pa.chunked_array([[1], [], [2]]), np.array([1, 2])),
        (pa.array([True, False])[1:], np.array([False])),
        (pa.array([], pa.list_(pa.float32(), 3)), np.zeros((0, 3), "f4")),
        (pa.array([[], []], pa.list_(pa.float32())), np.zeros((2, 0), "f4")),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["a"], pa.string_view()), ["a"]),
        (pa.array([{"bytes": b"a", "path": None}, {"bytes": b"", "path": "p"}])[1:], [b""]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), [b"ab", b"cd"]),
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12).reshape(2, 2, 3)),
            np.arange(12).reshape(2, 2, 3),
        ),
    ],
    ids=str,
)
def test_arrow_columns_of_every_kind_are_read(column: Any, expected: Any) -> None:
    read = ArrayRows(range(len(column)), x=column).read(np.arange(len(column)), ["x"])["x"]
    same(read, expected)


def test_bytes_and_texts_of_the_same_content_are_different_rows() -> None:
    texts, content = ArrayRows([0], x=["a"]), ArrayRows([0], x=[b"a"])
    assert texts.hashes(["x"]) != content.hashes(["x"])
    with pytest.raises(RowsError, match="'x' has 1 missing texts"):
        ArrayRows([0, 1], x=[b"a", None])
    with pytest.raises(RowsError, match="'x'"):
        ArrayRows([0, 1], x=[b"a", "b"])


def test_the_builders_hold_what_they_say() -> None:
    made = table(KEYS, contents(40))
    assert str(made.schema.field("grid").type) == "list<item: list<item: int64>>"
    kinds: Sequence[Any] = [made.schema.field(n).type for n in ("image", "jpeg")]
    assert [str(kind).partition("<")[0] for kind in kinds] == ["fixed_size_list", "binary"]
