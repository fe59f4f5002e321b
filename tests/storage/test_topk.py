"""topk(k): exactly the k largest, their probabilities, and everything else in one number."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.errors import CorruptShardError, SignalError
from stillroom.storage.signal import Signal

quick = settings(max_examples=150, deadline=None, derandomize=True)
# Few distinct values, so that ties are the rule; -inf is a class that was masked out.
LOGITS = arrays.arrays(
    st.sampled_from(["f2", "f4", "f8"]),
    st.tuples(st.integers(1, 4), st.integers(3, 12)),
    elements=st.sampled_from([-30.0, -2.5, -1.0, 0.0, 0.0, 0.5, 4.0, 20.0, -np.inf]),
).map(lambda a: np.concatenate([a, np.ones_like(a[:, :1])], axis=1))


def _probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return shares


@quick
@given(LOGITS, st.integers(1, 4))
def test_the_k_largest_are_kept_and_ties_go_to_the_lower_class(
    logits: NDArray[Any], k: int
) -> None:
    coded = encoding(f"topk({k})").encode(logits)
    for row, kept in zip(logits.tolist(), coded["indices"].tolist(), strict=True):
        assert kept == sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]


@quick
@given(LOGITS, st.integers(1, 4))
def test_log_probabilities_log_sum_exp_and_tail_are_right(logits: NDArray[Any], k: int) -> None:
    coded = encoding(f"topk({k})").encode(logits)
    p = _probabilities(logits)
    kept = np.take_along_axis(p, coded["indices"].astype(np.int64), -1)
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(kept), -65504)
    np.testing.assert_allclose(coded["values"], expected, rtol=2**-11, atol=1e-7)
    total = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(coded["logsumexp"], total, rtol=1e-6, atol=1e-6)
    np.put_along_axis(p, coded["indices"].astype(np.int64), 0, -1)
    np.testing.assert_allclose(coded["tail"], p.sum(-1), rtol=1e-6, atol=1e-45)


@quick
@given(LOGITS, st.integers(1, 4))
def test_decoded_logits_are_a_distribution_with_that_log_sum_exp(
    logits: NDArray[Any], k: int
) -> None:
    coding = encoding(f"topk({k})")
    coded = coding.encode(logits)
    decoded = coding.decode(coded, logits.shape[1:])
    assert decoded.dtype == np.float32
    assert decoded.shape == logits.shape
    q = np.exp(decoded.astype(np.float64) - coded["logsumexp"][:, None])
    # A float16 log-probability of size x is off by up to x * 2**-11, and p * x is at most 1/e.
    assert q.sum(-1) == pytest.approx(1, abs=k * 2**-11 / math.e + 1e-5)
    rest = q.copy()
    np.put_along_axis(rest, coded["indices"].astype(np.int64), 0, -1)
    assert rest.sum(-1) == pytest.approx(coded["tail"].astype(np.float64), rel=1e-4, abs=1e-20)


def test_with_every_class_kept_nothing_is_left_for_the_tail() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 10)).astype("f4")
    coded = encoding("topk(10)").encode(logits)
    assert (coded["tail"] == 0).all()
    decoded = encoding("topk(10)").decode(coded, (10,))
    np.testing.assert_allclose(decoded, logits, atol=0.01)


def test_a_tail_far_below_one_is_not_lost() -> None:
    logits = np.array([[0.0, -40.0, -41.0]])
    coded = encoding("topk(1)").encode(logits)
    assert coded["tail"][0] == pytest.approx(np.exp(-40) + np.exp(-41), rel=1e-6)


def test_a_large_vocabulary_and_outer_axes() -> None:
    logits = np.random.default_rng(1).standard_normal((2, 3, 200_000)).astype("f2")
    signal = Signal.of("s", logits, "topk(50)")
    coded = signal.coding.encode(logits)
    assert coded["indices"].dtype == np.uint32
    expected = np.argsort(-logits.astype("f4"), axis=-1, kind="stable")[..., :50]
    np.testing.assert_array_equal(coded["indices"], expected)
    decoded = signal.coding.decode(coded, signal.inner_shape)
    kept = np.take_along_axis(logits, expected, -1)
    np.testing.assert_allclose(np.take_along_axis(decoded, expected, -1), kept, atol=0.01)
    assert signal.row_bytes == 3 * (50 * 4 + 50 * 2 + 4 + 4)


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        *((2, "uint8"), (255, "uint8"), (256, "uint8"), (257, "uint16")),
        *((65535, "uint16"), (65536, "uint16"), (65537, "uint32")),
    ],
)
def test_indices_are_as_narrow_as_the_vocabulary_allows(classes: int, dtype: str) -> None:
    logits = np.zeros((1, classes))
    logits[0, -1] = 1
    coded = encoding("topk(2)").encode(logits)
    assert coded["indices"].dtype == dtype
    assert coded["indices"].tolist() == [[classes - 1, 0]]
    assert Signal.of("s", logits, "topk(2)").parts[0].dtype == dtype


@quick
@given(LOGITS, st.integers(1, 4))
def test_the_measured_error_is_the_divergence_from_the_decoded_distribution(
    logits: NDArray[Any], k: int
) -> None:
    coding = encoding(f"topk({k})")
    decoded = coding.decode(coding.encode(logits), logits.shape[1:])
    p, q = _probabilities(logits), _probabilities(decoded)
    each = [
        sum(a * (np.log(a) - np.log(b)) for a, b in zip(mine, theirs, strict=True) if a > 0)
        for mine, theirs in zip(p, q, strict=True)
    ]
    measured = coding.error(logits, decoded)
    assert measured["kl"] == pytest.approx(max(np.mean(each), 0), abs=1e-9)
    assert measured["l1"] == pytest.approx(np.abs(p - q).sum(-1).mean(), abs=1e-9)
    json.dumps(measured, allow_nan=False)


def test_logits_that_are_no_distribution_are_refused() -> None:
    for wrong in ([np.nan, 1, 2], [np.inf, 1, 2], [-np.inf] * 3, [1e300, 0, 0]):
        with pytest.raises(SignalError, match="softmax"):
            encoding("topk(2)").encode(np.array([[0.0, 1, 2], wrong]))


def test_signals_that_are_no_logits_are_refused() -> None:
    for values, k in (
        (np.zeros((2, 5), "i4"), 2),
        (np.zeros(2), 1),
        (np.zeros((2, 5)), 6),
        (np.zeros((2, 5), "f4,f4"), 2),
    ):
        with pytest.raises(SignalError, match="'s'"):
            Signal.of("s", values, f"topk({k})")


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("values", np.nan),
        ("values", np.inf),
        ("logsumexp", -np.inf),
        ("tail", np.nan),
        ("tail", -1),
    ],
)
def test_a_stored_number_that_cannot_be_is_caught(part: str, wrong: float) -> None:
    coding = encoding("topk(2)")
    coded = coding.encode(np.zeros((2, 5)))
    coded[part][1] = wrong
    with pytest.raises(CorruptShardError, match="cannot be"):
        coding.decode(coded, (5,))


def test_a_stored_class_outside_the_vocabulary_is_caught() -> None:
    coding = encoding("topk(2)")
    coded = coding.encode(np.zeros((1, 5)))
    coded["indices"][0, 1] = 5
    with pytest.raises(CorruptShardError, match="class 5"):
        coding.decode(coded, (5,))
