"""int8: no value is off by more than half its row's scale, and rows know nothing of each other."""

from __future__ import annotations

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
from stillroom.storage.testing import bits

quick = settings(max_examples=60, deadline=None, derandomize=True)
INT8 = encoding("int8")
VALUES = arrays.arrays(
    st.sampled_from(["<f2", "<f4", "<f8", "i8"]),
    st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 6)),
    elements=st.integers(-1000, 1000),
)


@quick
@given(VALUES, st.floats(1e-36, 1e30))
def test_no_value_is_off_by_more_than_half_a_scale(values: NDArray[Any], size: float) -> None:
    exact = values.astype(np.float64) * (size if values.dtype == np.float64 else 1)
    given_ = exact if values.dtype == np.float64 else values
    coded = INT8.encode(given_)
    assert coded[""].dtype == np.int8
    assert coded["scale"].dtype == np.float32
    assert coded[""].min(initial=0) >= -127
    largest = np.abs(exact).max(axis=(1, 2))
    np.testing.assert_allclose(coded["scale"], largest / 127, rtol=2**-23)
    decoded = INT8.decode(coded, values.shape[1:])
    assert decoded.shape == values.shape
    assert decoded.dtype == np.float32
    half = coded["scale"].astype(np.float64)[:, None, None] / 2
    assert (np.abs(decoded - exact) <= half * (1 + 2**-14)).all()


@quick
@given(VALUES)
def test_a_row_is_stored_as_it_would_be_alone_and_the_decode_is_one_product(
    values: NDArray[Any],
) -> None:
    coded = INT8.encode(values)
    for i, row in enumerate(values):
        alone = INT8.encode(row[None])
        for name, array in alone.items():
            np.testing.assert_array_equal(bits(array), bits(coded[name][i : i + 1]))
    again = coded[""].astype("f4") * coded["scale"][:, None, None]
    np.testing.assert_array_equal(INT8.decode(coded, values.shape[1:]), again, strict=True)


def test_zero_and_signs_are_kept_and_the_largest_is_127_scales() -> None:
    coded = INT8.encode(np.array([[0, 0, 0], [-254, 0, 2], [127, 63.5, -0.6]]))
    assert coded[""].tolist() == [[0, 0, 0], [-127, 0, 1], [127, 64, -1]]
    assert coded["scale"].tolist() == [0, 2, 1]


@pytest.mark.parametrize("largest", [1e-45, 2.6e-43, 1.7e-43, 5e-40, 1e-60])
def test_the_smallest_numbers_do_not_run_over(largest: float) -> None:
    values = np.array([[largest, -largest / 2]])
    coded = INT8.encode(values)
    decoded = INT8.decode(coded, (2,))
    assert (np.abs(decoded - values) <= coded["scale"] * 0.5001).all()


def test_what_has_no_scale_is_refused() -> None:
    for wrong in (np.nan, np.inf, -np.inf, 1e39):
        with pytest.raises(SignalError, match="int8"):
            INT8.encode(np.array([[1.0, wrong]]))
    for values in (np.zeros(3), np.zeros((3, 2), "?"), np.zeros((3, 2), "f4,f4")):
        with pytest.raises(SignalError, match="'s'"):
            Signal.of("s", values, "int8")


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_stored_scale_that_cannot_be_is_caught(scale: float) -> None:
    coded = INT8.encode(np.ones((2, 3)))
    coded["scale"][1] = scale
    with pytest.raises(CorruptShardError, match="scale"):
        INT8.decode(coded, (3,))
