"""sampled(k): draws of the teacher's distribution, right on average and the same for the same row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.sampled import uniforms
from stillroom.storage.errors import CorruptShardError, SignalError
from stillroom.storage.signal import Signal

quick = settings(max_examples=40, deadline=None, derandomize=True)
LOGITS = arrays.arrays(
    st.sampled_from(["f2", "f4", "f8"]),
    st.tuples(st.integers(0, 4), st.integers(1, 2), st.integers(1, 12)),
    elements=st.sampled_from([-30.0, -2.5, -1.0, 0.0, 0.5, 4.0, 20.0, -np.inf]),
).map(lambda a: np.concatenate([a, np.ones_like(a[..., :1])], axis=-1))


def probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def many(p: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """The same distribution in many rows whose bytes differ: logits may be shifted at will."""
    with np.errstate(divide="ignore"):
        return np.log(p) + np.arange(rows)[:, None] / 256


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize(
    "p",
    [[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01], [0.0, 1.0], [0.2] * 5],
)
def test_the_mean_of_many_draws_is_the_teachers_distribution(k: int, p: list[float]) -> None:
    rows, exact = 10_000, np.array(p)
    coding = encoding(f"sampled({k})")
    logits = many(exact, rows)
    share = probabilities(coding.decode(coding.encode(logits), exact.shape))
    # Of a mean of rows * k independent draws; five deviations are passed once in two million.
    deviation = np.sqrt(exact * (1 - exact) / (rows * k))
    assert (np.abs(share.mean(0) - exact) <= 5 * deviation + 1e-7).all()
    # With replacement and independent: the spread between rows is the binomial's, whose own spread
    # follows from its fourth moment.
    open_ = (exact > 0) & (exact < 1)
    variance = exact[open_] * (1 - exact[open_])
    kurtosis = 3 + (1 / variance - 6) / k
    spread = share.var(0)[open_] * k / variance
    assert (np.abs(spread - 1) <= 5 * np.sqrt((kurtosis - 1) / rows) + 25 / rows).all()


def test_tokens_of_a_long_tail_come_up_as_often_as_they_should() -> None:
    p = 1 / np.arange(1.0, 301)
    p /= p.sum()
    coding = encoding("sampled(50)")
    coded = coding.encode(many(p, 4_000))
    drawn = np.bincount(coded["indices"].reshape(-1), coded["counts"].reshape(-1), 300)
    chi2 = ((drawn - p * drawn.sum()) ** 2 / (p * drawn.sum())).sum()
    assert drawn.sum() == 4_000 * 50
    assert chi2 < 299 + 6 * np.sqrt(2 * 299)


@quick
@given(LOGITS, st.integers(1, 40))
def test_rows_hold_k_draws_of_possible_classes(logits: NDArray[Any], k: int) -> None:
    signal = Signal.of("s", logits, f"sampled({k})")
    coded = signal.coding.encode(logits)
    for part in signal.parts:
        assert coded[part.name].shape == (len(logits), *part.shape)
        assert coded[part.name].dtype == part.dtype
    counts = coded["counts"].astype(int)
    assert (counts.sum(-1) == k).all()
    p = probabilities(logits)
    drawn = np.take_along_axis(p, coded["indices"].astype(int), -1)
    assert (drawn[counts > 0] > 0).all()
    for classes, held in zip(
        coded["indices"].reshape(-1, k).tolist(), counts.reshape(-1, k), strict=True
    ):
        used = int((held > 0).sum())
        assert classes[:used] == sorted(set(classes[:used]))
        assert classes[used:] == [0] * (k - used)
        assert (held[used:] == 0).all()


@quick
@given(LOGITS, st.integers(1, 40))
def test_decoded_logits_are_shares_of_the_draws_with_the_teachers_log_sum_exp(
    logits: NDArray[Any], k: int
) -> None:
    coding = encoding(f"sampled({k})")
    coded = coding.encode(logits)
    decoded = coding.decode(coded, logits.shape[1:])
    assert decoded.dtype == np.float32
    total = np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(coded["logsumexp"][..., None], total, rtol=1e-6, atol=1e-6)
    share = np.exp(decoded - coded["logsumexp"][..., None].astype(np.float64))
    expected = np.full(logits.shape, np.exp(-60.0))
    for at in np.ndindex(coded["counts"].shape):
        if coded["counts"][at]:
            expected[(*at[:-1], coded["indices"][at])] = coded["counts"][at] / k
    np.testing.assert_allclose(share, expected, rtol=1e-4)


@quick
@given(LOGITS, st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_row_is_drawn_the_same_wherever_it_stands(
    logits: NDArray[Any], k: int, random: Any
) -> None:
    coding = encoding(f"sampled({k})")
    coded = coding.encode(logits)
    order = list(range(len(logits)))
    random.shuffle(order)
    others = [
        coding.encode(logits[order]),
        coding.encode(np.asfortranarray(logits)[order]),
        coding.encode(logits.astype(logits.dtype.newbyteorder(">"))[order]),
    ]
    for name, array in coded.items():
        for other in others:
            np.testing.assert_array_equal(other[name], array[order], strict=True)
        for i in range(len(logits)):
            np.testing.assert_array_equal(coding.encode(logits[i : i + 1])[name][0], array[i])


def test_blocks_of_a_large_vocabulary_change_nothing() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (30, 70_000)).astype("f4")
    coding = encoding("sampled(20)")
    coded = coding.encode(logits)
    assert coded["indices"].dtype == np.uint32
    alone = coding.encode(logits[17:18])
    for name, array in alone.items():
        np.testing.assert_array_equal(coded[name][17:18], array)


def test_the_uniform_numbers_are_those_of_the_documented_generator() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype("<f4")
    found = uniforms(rows, 4)
    for row, numbers in zip(rows, found.tolist(), strict=True):
        state = xxhash.xxh3_64_intdigest(row.tobytes())
        for number in numbers:
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
            assert number == ((z ^ (z >> 31)) >> 11) / 2**53


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_class_numbers_are_exact_at_the_borders_of_their_dtypes(classes: int, dtype: str) -> None:
    logits = np.full((1, classes), -200.0)
    logits[0, [0, -1]] = 0
    coding = encoding("sampled(64)")
    coded = coding.encode(logits)
    assert coded["indices"].dtype == dtype
    assert coded["indices"][0, :2].tolist() == [0, classes - 1]
    decoded = coding.decode(coded, (classes,))
    assert set(np.flatnonzero(decoded[0] > -30)) == {0, classes - 1}


def test_what_one_draw_misses_is_measured() -> None:
    p = np.array([0.5, 0.3, 0.2])
    coding = encoding("sampled(1)")
    logits = many(p, 3_000)
    decoded = coding.decode(coding.encode(logits), (3,))
    measured = coding.error(logits, decoded)
    assert measured["missed"] == pytest.approx(1 - (p**2).sum(), abs=0.02)
    assert measured["kl"] == pytest.approx(60 * measured["missed"], rel=0.1)


@pytest.mark.parametrize("wrong", ["class", "count", "order", "sum", "gap"])
def test_stored_numbers_that_no_draw_gives_are_caught(wrong: str) -> None:
    coding = encoding("sampled(4)")
    coded = {
        "indices": np.array([[1, 2, 0, 0]], "u1"),
        "counts": np.array([[1, 3, 0, 0]], "u1"),
        "logsumexp": np.zeros(1, "f4"),
    }
    coding.decode(coded, (5,))
    if wrong == "class":
        coded["indices"][0, 1] = 5
    elif wrong == "count":
        coded["counts"][0, 0] = 2
    elif wrong == "order":
        coded["indices"][0] = [2, 2, 0, 0]
    elif wrong == "sum":
        coded["logsumexp"][0] = np.nan
    else:
        coded["counts"][0] = [1, 0, 3, 0]
    with pytest.raises(CorruptShardError, match="stored"):
        coding.decode(coded, (5,))


def test_what_cannot_be_drawn_from_is_refused() -> None:
    for wrong in ([np.nan, 1, 2], [np.inf, 1, 2], [-np.inf] * 3):
        with pytest.raises(SignalError, match="softmax"):
            encoding("sampled(2)").encode(np.array([[0.0, 1, 2], wrong]))
    with pytest.raises(SignalError, match=r"'s'.*more than 1024 times"):
        Signal("s", (10,), "float32", "sampled(1025)")
    for values in (np.zeros((2, 5), "i4"), np.zeros(2)):
        with pytest.raises(SignalError, match="'s'"):
            Signal.of("s", values, "sampled(2)")
