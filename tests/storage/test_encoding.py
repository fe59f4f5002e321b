"""Encodings: rounding is that of numpy and torch, bit for bit, and what is said of them is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.errors import FormatError, SignalError
from stillroom.storage.signal import Signal
from stillroom.storage.testing import bits

FLOATS = {"float32": np.float32, "float16": np.float16}
LARGEST = {
    "float32": float(np.finfo("f4").max),
    "float16": 65504.0,
    "bfloat16": 2.0**127 * (2 - 2**-7),
}
quick = settings(max_examples=150, deadline=None, derandomize=True)


def _float32_bits(patterns: list[int]) -> NDArray[np.float32]:
    return np.array(patterns, np.uint32).view(np.float32)


def _as_torch(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    rounded = torch.from_numpy(values.copy()).to(torch.bfloat16)
    stored: NDArray[np.uint16] = rounded.view(torch.int16).numpy().view(np.uint16)
    return stored


@quick
@given(st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_bfloat16_rounds_as_torch_does(patterns: list[int]) -> None:
    values = _float32_bits(patterns)
    expected = _as_torch(values)
    overflows = np.isfinite(values) & (expected & 0x7FFF == 0x7F80)
    values, expected = values[~overflows], expected[~overflows]
    stored = encoding("bfloat16").encode(values)[""]
    nan = np.isnan(values)
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored[~nan], expected[~nan])
    decoded = encoding("bfloat16").decode({"": stored}, ())
    assert np.isnan(decoded).tolist() == nan.tolist()


def test_bfloat16_rounds_every_upper_half_as_torch_does() -> None:
    upper = np.arange(2**16, dtype=np.uint32) << 16
    upper = upper[upper.view(np.float32) == upper.view(np.float32)]
    # Below, at and above the tie; a carry may go all the way through the mantissa.
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | lower).view(np.float32)
        expected = _as_torch(values)
        fits = ~np.isnan(values) & ~(np.isfinite(values) & (expected & 0x7FFF == 0x7F80))
        stored = encoding("bfloat16").encode(values[fits])[""]
        np.testing.assert_array_equal(stored, expected[fits])


def test_bfloat16_keeps_every_nan_a_nan() -> None:
    values = _float32_bits([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000])
    stored = encoding("bfloat16").encode(values)
    assert np.isnan(encoding("bfloat16").decode(stored, ())).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_finite_value_becomes_infinite(name: str, sign: int) -> None:
    largest = LARGEST[name]
    half_a_step = {"float16": 16.0, "bfloat16": 2.0**119, "float32": 2.0**103}[name]
    fits = [largest, np.nextafter(largest + half_a_step, 0)]
    if name == "bfloat16":  # values pass through float32 on the way
        fits[1] = float(np.nextafter(np.float32(largest + half_a_step), np.float32(0)))
    kept = encoding(name).encode(np.array(fits) * sign)
    assert encoding(name).decode(kept, ()).tolist() == [largest * sign] * 2
    for value in (largest + half_a_step, largest * 1.5, 1e308):
        # A NaN or an infinity next to it must not hide it.
        for beside in (0.0, np.nan, np.inf):
            with pytest.raises(SignalError, match=f"does not fit {name}"):
                encoding(name).encode(np.array([[beside, value * sign]]))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "raw"])
def test_infinities_and_nans_are_kept(name: str) -> None:
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0], np.float32)
    decoded = encoding(name).decode(encoding(name).encode(values), ())
    np.testing.assert_array_equal(decoded, values)
    assert np.signbit(decoded[3:5]).tolist() == [False, True]
    assert encoding(name).error(values, decoded) == {"max_abs": 0.0, "rms": 0.0}


@quick
@given(
    arrays.arrays(
        st.sampled_from(["<f2", "<f4", "<f8", ">f4"]),
        arrays.array_shapes(max_dims=3, max_side=5),
        elements=st.floats(-65504, 65504, width=16),
    ),
    st.sampled_from(["float16", "float32"]),
)
def test_floats_round_as_numpy_does(values: NDArray[Any], name: str) -> None:
    coding = encoding(name)
    coded = coding.encode(values)
    assert bits(coded[""]).tobytes() == bits(values.astype(FLOATS[name])).tobytes()
    decoded = coding.decode(coded, values.shape[1:])
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, values.astype(FLOATS[name]).astype(np.float32))


@quick
@given(
    arrays.arrays(
        st.sampled_from(["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "i4,(2,3)f2,?"]),
        arrays.array_shapes(max_dims=3, max_side=4),
    )
)
def test_raw_gives_back_the_same_bytes(values: NDArray[Any]) -> None:
    signal = Signal.of("s", values)
    coded = signal.coding.encode(values)
    assert set(coded) == {part.name for part in signal.parts}
    decoded = signal.coding.decode(coded, signal.inner_shape)
    assert decoded.dtype == values.dtype
    assert decoded.shape == values.shape
    assert bits(decoded).tobytes() == bits(values).tobytes()


@quick
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(0, 5), st.integers(3, 300)),
        elements=st.floats(-80, 80, width=32),
    ),
    st.sampled_from(
        ["raw", "float32", "float16", "bfloat16", "int8", "topk(1)", "topk(3)", "sampled(5)"]
    ),
)
def test_predicted_parts_and_bytes_are_those_of_the_encoded_arrays(
    values: NDArray[Any], name: str
) -> None:
    signal = Signal.of("s", values, name)
    coded = signal.coding.encode(values)
    assert sum(array.nbytes for array in coded.values()) == signal.row_bytes * len(values)
    for part in signal.parts:
        assert coded[part.name].shape == (len(values), *part.shape)
        assert coded[part.name].dtype == part.dtype


@quick
@given(
    arrays.arrays(np.float64, (3, 4), elements=st.floats(-60000, 60000)),
    st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_the_measured_error_is_the_difference_of_the_values(
    values: NDArray[Any], name: str
) -> None:
    coding = encoding(name)
    decoded = coding.decode(coding.encode(values), (4,))
    gaps = [abs(float(a) - float(b)) for a, b in zip(values.flat, decoded.flat, strict=True)]
    measured = coding.error(values, decoded)
    assert measured["max_abs"] == max(gaps)
    assert measured["rms"] == pytest.approx(np.sqrt(np.mean(np.square(gaps))), abs=1e-300)
    # Half a step of the stored format: 2**-(explicit bits of the mantissa + 1), relatively.
    relative = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[name]
    assert measured["max_abs"] <= np.abs(values).max() * relative + 2.0**-24


def test_integers_can_be_narrowed_to_floats_but_records_and_booleans_cannot() -> None:
    coded = encoding("float16").encode(np.array([[1, -2, 2048]]))
    np.testing.assert_array_equal(coded[""], np.array([[1, -2, 2048]], "f2"))
    with pytest.raises(SignalError, match="value 70000 does not fit float16"):
        encoding("float16").encode(np.array([70000]))
    for dtype in ("?", "f4,f4"):
        with pytest.raises(SignalError, match="use raw"):
            Signal.of("s", np.zeros((2, 3), dtype), "float16")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "float8",
            "topk",
            "topk(0)",
            "topk(-1)",
            "topk(1.5)",
            "topk(3) ",
            "topk(٣)x",
            "topk(1٣)",
        ),
        *(
            "int8(3)",
            "sampled",
            "sampled(0)",
            "packed",
            "packed()",
            "packed(raw)",
            "packed(topk(3)",
        ),
    ],
)
def test_an_unknown_encoding_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(FormatError, match="known: raw, float32, float16, bfloat16, int8, topk"):
        encoding(name)
