"""Packed rows: classes come back exactly, probabilities within a step, and damage as our error."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from benchmarks.zipf import VOCABULARY, zipf_logits
from stillroom.storage.encodings import packed_ids
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.packed import Numbers, Packed
from stillroom.storage.encodings.packed_bits import Groups, Scanner, Writer
from stillroom.storage.encodings.sampled import Sampled
from stillroom.storage.encodings.topk import TopK
from stillroom.storage.errors import CorruptShardError, FormatError, SignalError
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Signal
from stillroom.storage.testing import bits

HOSTILE = int(os.environ.get("STILLROOM_HOSTILE_EXAMPLES", "150"))
quick = settings(max_examples=40, deadline=None, derandomize=True)
hostile = settings(max_examples=HOSTILE, deadline=None, derandomize=HOSTILE == 150)
NAMES = [
    *("packed(topk(1))", "packed(topk(3))", "packed(topk(3),200)", "packed(topk(2),2)"),
    *("packed(sampled(1))", "packed(sampled(20))"),
]
named = pytest.mark.parametrize("name", NAMES)


def logits(positions: int, classes: int, seed: int, outer: tuple[int, ...] = ()) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    spread = random.choice([0.5, 3.0, 12.0], (positions, *outer, 1))
    values: NDArray[Any] = random.standard_normal((positions, *outer, classes)) * spread
    return values.astype("f4")


def packing(name: str) -> Packed:
    coding = encoding(name)
    assert isinstance(coding, Packed)
    return coding


@quick
@given(
    st.lists(st.integers(0, 5), max_size=6),
    st.sampled_from([4, 20, 256, 257, 3000]),
    st.sampled_from([(), (1,), (3,)]),
    st.sampled_from(NAMES),
    st.integers(0, 99),
)
def test_what_is_unpacked_is_what_encode_gives(
    lengths: list[int], classes: int, outer: tuple[int, ...], name: str, seed: int
) -> None:
    coding, count = packing(name), np.array(lengths, np.int64)
    values = logits(sum(lengths), classes, seed, outer)
    blobs = coding.pack(values, count)
    assert [len(row) > 0 for row in blobs] == [n > 0 for n in lengths]
    parts, found = coding.unpack(blobs, values.shape[1:])
    assert found.tolist() == lengths
    expected = coding.encode(values)
    inner = coding.inner.parts(values.shape[1:], values.dtype)
    assert [*parts] == [*expected] == [part.name for part in inner]
    for part in inner:
        np.testing.assert_array_equal(parts[part.name], expected[part.name], strict=True)
        assert parts[part.name].shape == (len(values), *part.shape)
        if part.name != "values":
            assert parts[part.name].dtype == part.dtype


@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.sampled_from(NAMES), st.data())
def test_a_row_is_packed_and_read_alone_in_any_order(
    lengths: list[int], name: str, data: st.DataObject
) -> None:
    coding = packing(name)
    values = logits(sum(lengths), 50, 1)
    blobs = coding.pack(values, np.array(lengths))
    whole, _ = coding.unpack(blobs, (50,))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = data.draw(st.permutations(range(len(lengths))))
    rows = [bytes(blobs[i]) for i in order]
    for i, row in zip(order, rows, strict=True):
        mine = values[starts[i] : starts[i + 1]]
        assert bytes(coding.pack(mine, np.array([lengths[i]])).values) == row
    shuffled, found = coding.unpack(
        Ragged.of([np.frombuffer(row, np.uint8) for row in rows]), (50,)
    )
    assert found.tolist() == [lengths[i] for i in order]
    chosen = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order]).astype(int)
    for part, array in shuffled.items():
        np.testing.assert_array_equal(bits(array), bits(whole[part][chosen]))


@quick
@given(
    arrays.arrays(
        st.sampled_from(["f2", "f4", "f8"]),
        st.tuples(st.integers(1, 4), st.integers(3, 12)),
        elements=st.sampled_from([-30.0, -2.5, 0.0, 0.0, 4.0, 20.0, -np.inf]),
    ).map(lambda a: np.concatenate([a, np.ones_like(a[:, :1])], axis=1)),
    st.integers(1, 4),
)
def test_packed_topk_keeps_the_classes_of_topk(values: NDArray[Any], k: int) -> None:
    exact = encoding(f"topk({k})").encode(values)
    found = packing(f"packed(topk({k}))").encode(values)
    np.testing.assert_array_equal(found["indices"], np.sort(exact["indices"], -1), strict=True)
    np.testing.assert_array_equal(found["logsumexp"], exact["logsumexp"].astype("f2"))
    assert np.exp(found["values"].astype("f8")).sum(-1) + found["tail"] == pytest.approx(
        1, abs=1e-6
    )


@quick
@given(st.integers(2, 30), st.sampled_from([2, 28, 64, 4096]), st.integers(0, 99))
def test_square_roots_of_probabilities_are_off_by_half_a_step_and_what_sums_to_one_costs(
    classes: int, levels: int, seed: int
) -> None:
    values = logits(5, classes, seed)
    coding = packing(f"packed(topk({classes}),{levels})")
    found = coding.encode(values)
    p = np.exp(values - np.log(np.exp(values.astype("f8")).sum(-1, keepdims=True)))
    q = np.exp(found["values"].astype("f8"))
    # Half a step each in sqrt(p); bringing the sum to one moves no further than that again.
    assert (np.linalg.norm(np.sqrt(p) - np.sqrt(q), axis=-1) <= classes**0.5 / levels + 1e-5).all()
    assert (found["tail"] == 0).all()


def test_finer_levels_cost_less_divergence_in_the_square_and_only_the_levels_differ() -> None:
    values, lost = logits(200, 40, 3), []
    for levels in (16, 64, 256):
        coding = packing(f"packed(topk(40),{levels})")
        lost.append(coding.error(values, coding.decode(coding.encode(values), (40,)))["kl"])
    assert 8 < lost[0] / lost[1] < 24
    assert 8 < lost[1] / lost[2] < 24
    # Forty classes cost 1 / (6 n**2) nats each, and up to 1 / (4 n**2) if they are next to nothing.
    assert lost[1] < 40 / (4 * 64**2)


def test_counts_and_draws_are_those_of_sampled() -> None:
    values = logits(40, 5000, 2)
    exact, found = encoding("sampled(30)").encode(values), packing("packed(sampled(30))")
    parts, _ = found.unpack(found.pack(values, np.full(4, 10)), (5000,))
    for name in ("indices", "counts"):
        np.testing.assert_array_equal(parts[name], exact[name], strict=True)
    np.testing.assert_allclose(parts["logsumexp"], exact["logsumexp"], rtol=2**-11)
    dense = found.decode(parts, (5000,))
    np.testing.assert_allclose(dense, encoding("sampled(30)").decode(exact, (5000,)), atol=0.05)


@pytest.mark.parametrize("classes", [255, 256, 257, 65535, 65536, 65537])
def test_the_last_class_is_exact_at_the_borders_of_dtypes(classes: int) -> None:
    values = np.full((2, classes), -50.0, "f4")
    values[:, [0, -1]] = 3
    values[1, 0] = -60
    for name, kept in (("packed(topk(2))", [0, classes - 1]), ("packed(sampled(200))", None)):
        coding = packing(name)
        parts, _ = coding.unpack(coding.pack(values, np.array([1, 1])), (classes,))
        assert parts["indices"].dtype == np.min_scalar_type(classes - 1)
        if kept:
            assert parts["indices"].tolist()[0] == kept
        drawn = coding.decode(parts, (classes,))
        assert drawn.argmax(-1).tolist()[1] == classes - 1


SETS = st.lists(
    st.sets(
        st.one_of(
            st.integers(0, 2**32 - 2),
            st.integers(0, 40),
            st.integers(0, 32).map(lambda b: 2**b - 1 if b < 32 else 2**32 - 2),
        ),
        min_size=3,
        max_size=3,
    ),
    min_size=1,
    max_size=8,
)


@quick
@given(SETS, st.data())
def test_class_numbers_below_two_to_the_32_are_exact(sets: list[set[int]], data: Any) -> None:
    """Through the whole packing, with numbers in place of logits nobody could hold."""
    cut = data.draw(st.integers(0, len(sets)))
    rows = np.array([cut, len(sets) - cut], np.int64)
    classes = np.array([sorted(s) for s in sets], np.int64).reshape(-1)
    count = len(sets)
    levels = np.arange(3 * count) % 28
    sums, tails = np.linspace(-9, 60000, count).astype("f2"), np.arange(count) % 256
    numbers = Numbers(rows, np.full(count, 3), classes, levels, sums, tails)
    blobs = Packed(TopK(3))._packed(numbers)
    parts, found = Packed(TopK(3)).unpack(blobs, (2**32 - 1,))
    assert found.tolist() == rows.tolist()
    assert parts["indices"].dtype == np.uint32
    assert parts["indices"].reshape(-1).tolist() == classes.tolist()
    assert parts["logsumexp"].tolist() == sums.tolist()


@quick
@given(SETS, st.data())
def test_every_code_gives_back_every_set_of_classes(sets: list[set[int]], data: Any) -> None:
    positions = Groups(np.full(len(sets), 3))
    rows = Groups(np.array([3 * len(sets)]))
    classes = np.array([sorted(s) for s in sets], np.int64).reshape(-1)
    code = data.draw(st.one_of(st.integers(0, 63), st.integers(128, 159)))
    codes = np.array([code], np.uint8)
    split = packed_ids.split(classes, positions, rows, codes)
    best = packed_ids.chosen(classes, positions, rows)

    def size(s: packed_ids.Split) -> int:
        return int((s.quotients + 1 + s.shifts + s.widths).sum())

    assert size(packed_ids.split(classes, positions, rows, best)) <= size(split)
    found = packed_ids.buckets(split.quotients, split.rests, positions, rows, codes)
    np.testing.assert_array_equal(found[1], split.widths)
    joined = packed_ids.joined(*found, split.low, positions, rows, codes)
    np.testing.assert_array_equal(joined, classes)


@quick
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 48)), max_size=4), max_size=4),
    st.integers(0, 2**48 - 1),
)
def test_bit_fields_are_read_as_they_were_written(
    rows: list[list[tuple[int, int]]], value: int
) -> None:
    groups = Groups(np.array([len(row) for row in rows], np.int64))
    zeros = np.array([z for row in rows for z, _ in row], np.int64)
    widths = np.array([w for row in rows for _, w in row], np.int64)
    values = np.full(len(widths), value) & ((1 << widths) - 1)
    writer = Writer(len(rows))
    writer.unary(groups, zeros)
    writer.plain(groups, values, widths)
    heads = Ragged.of([np.full(2, 0xFF, np.uint8) for _ in rows])
    if not rows:
        heads = Ragged(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    found = writer.rows(heads)
    for row, fields in zip(found, rows, strict=True):
        text = "".join("0" * z + "1" for z, _ in fields)
        text += "".join(f"{value & (2**w - 1):0{w}b}"[::-1] if w else "" for _, w in fields)
        text += "0" * (-len(text) % 8)
        assert bytes(row[:2]) == b"\xff\xff"
        assert bytes(row[2:]) == bytes(
            int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)
        )
    scanner = Scanner(found.values.astype(np.uint8), found.offsets[:-1] + 2, found.offsets[1:])
    np.testing.assert_array_equal(scanner.unary(groups), zeros)
    np.testing.assert_array_equal(scanner.plain(groups, widths), values)
    scanner.finish()


def examples() -> list[tuple[Packed, bytes]]:
    """Rows to damage."""
    found = []
    for name in NAMES:
        values = logits(3, 200, 5)
        found.append((packing(name), bytes(packing(name).pack(values, np.array([3])).values)))
    return found


EXAMPLES = examples()


def read(coding: Packed, *rows: bytes) -> None:
    """Unpack, and hold what comes to what the parts promise; anything but our error fails."""
    blobs = Ragged.of([np.frombuffer(row, np.uint8) for row in rows])
    parts, lengths = coding.unpack(blobs, (200,))
    count = int(lengths.sum())
    assert all(len(array) == count for array in parts.values())
    indices = parts["indices"].astype(int)
    assert indices.max(initial=0) < 200
    assert np.isfinite(parts["logsumexp"]).all()
    if isinstance(coding.inner, Sampled):
        coding.inner.require(parts, (200,))
    else:
        assert (np.diff(indices, axis=-1) > 0).all()
        total = np.exp(parts["values"].astype("f8")).sum(-1) + parts["tail"]
        np.testing.assert_allclose(total, 1, atol=1e-5)


@hostile
@given(st.sampled_from(EXAMPLES), st.data())
def test_damaged_rows_give_our_error_or_a_row(
    example: tuple[Packed, bytes], data: st.DataObject
) -> None:
    coding, row = example[0], bytearray(example[1])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(row) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "set", "cut", "insert", "end"]))
        if kind == "flip" and row:
            row[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set" and row:
            row[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del row[at : at + data.draw(st.integers(1, 9))]
        elif kind == "insert":
            row[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            del row[at:]
    try:
        read(coding, example[1], bytes(row), example[1])
    except CorruptShardError as error:
        assert "packed row" in str(error)  # noqa: PT017


@hostile
@given(st.sampled_from(EXAMPLES), st.binary(max_size=60))
def test_any_bytes_give_our_error_or_a_row(example: tuple[Packed, bytes], row: bytes) -> None:
    try:
        read(example[0], row)
    except CorruptShardError as error:
        assert "packed row" in str(error)  # noqa: PT017


@pytest.mark.parametrize(("coding", "row"), EXAMPLES, ids=NAMES)
def test_a_row_that_is_cut_short_or_goes_on_is_caught(coding: Packed, row: bytes) -> None:
    read(coding, row)
    for wrong in [row[:n] for n in range(1, len(row))] + [row + b"\0", row + b"\1"]:
        with pytest.raises(CorruptShardError, match="packed row"):
            read(coding, row, wrong)


@pytest.mark.parametrize(
    "head", [b"\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\xff", b"\x80\x80\x01"]
)
def test_a_claim_of_many_positions_costs_nothing(head: bytes) -> None:
    for name in ("packed(topk(3))", "packed(topk(199999999))", "packed(sampled(1024))"):
        row = np.frombuffer(head + b"\0\0\1" * 50, np.uint8)
        tracemalloc.start()
        with pytest.raises(CorruptShardError, match="packed row"):
            packing(name).unpack(Ragged.of([row]), (2**31,))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


def test_a_class_outside_the_vocabulary_and_another_shape_are_caught() -> None:
    coding = packing("packed(topk(3))")
    blobs = coding.pack(logits(2, 200, 1) + np.arange(200) / 10, np.array([2]))
    with pytest.raises(CorruptShardError, match="class of 100"):
        coding.unpack(blobs, (100,))
    with pytest.raises(CorruptShardError, match="elements of shape"):
        coding.unpack(blobs, (3, 200))
    other = packing("packed(topk(3),10)")
    with pytest.raises(CorruptShardError, match="level"):
        other.unpack(packing("packed(topk(3),4000)").pack(logits(2, 200, 1), np.array([2])), (200,))


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(SignalError, match="log-sum-exp of 70000 is beyond float16"):
        packing("packed(topk(1))").encode(np.array([[70000.0, 0.0]]))
    for name in ("packed(topk(6))", "packed(topk(2),1)", "packed(topk(2),4097)"):
        with pytest.raises(SignalError, match="'s'"):
            Signal("s", (5,), "float32", name)
    for name in ("packed(float16)", "packed(sampled(3),9)", "packed(topk(3),0)", "packed(topk(3)"):
        with pytest.raises(FormatError, match="packed"):
            encoding(name)


@pytest.fixture(scope="module")
def words() -> NDArray[np.float32]:
    return zipf_logits(32)


@pytest.mark.parametrize(
    ("name", "most", "unordered"),
    [("packed(sampled(50))", 24, 31), ("packed(topk(50))", 75, 103)],
)
def test_positions_of_a_large_vocabulary_cost_what_the_format_promises(
    words: NDArray[np.float32], name: str, most: int, unordered: int
) -> None:
    coding = packing(name)
    blobs = coding.pack(words, np.full(2, 16))
    assert len(blobs.values) / 32 <= most
    if isinstance(coding.inner, Sampled):
        assert (coding.encode(words)["counts"] > 0).sum(-1).mean() == pytest.approx(12, abs=2)
    shuffled = words[:, np.random.default_rng(0).permutation(VOCABULARY)]
    assert len(coding.pack(shuffled, np.full(2, 16)).values) / 32 <= unordered


def test_rows_that_fill_several_pieces_are_one_to_the_reader() -> None:
    values = logits(3000, 60, 9)
    coding = packing("packed(topk(30))")
    lengths = np.array([0, 1500, 0, 1, 1400, 99, 0])
    blobs = coding.pack(values, lengths)
    assert len(blobs.values) > 2**16
    parts, found = coding.unpack(blobs, (60,))
    assert found.tolist() == lengths.tolist()
    for name, array in coding.encode(values).items():
        np.testing.assert_array_equal(parts[name], array, strict=True)
