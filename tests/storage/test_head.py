"""head(module): logits from hidden states, as the live head gives them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillroom.storage.books import Book
from stillroom.storage.encodings import head as heads
from stillroom.storage.encodings.encoding import encoding, needs_book
from stillroom.storage.encodings.head import Head
from stillroom.storage.errors import FormatError, SignalError
from stillroom.storage.ragged import Ragged
from stillroom.storage.shards import ShardFormat
from stillroom.storage.signal import Signal, Values
from stillroom.storage.testing import ShardTests
from stillroom.storage.zarr_shards import ZarrShards

WIDTH, CLASSES = 6, 11


def hidden(rows: int, seed: int = 0, dtype: str = "f4") -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(dtype)


def book(dtype: str = "f4", bias: bool = True) -> Book:
    rng = np.random.default_rng(7)
    arrays = {"weight": rng.standard_normal((CLASSES, WIDTH)).astype(dtype)}
    if bias:
        arrays["bias"] = rng.standard_normal(CLASSES).astype(dtype)
    return Book("0" * 64, arrays)


def bound(name: str, known: Book) -> Head:
    coding = encoding(name)
    assert isinstance(coding, Head)
    return coding.bound(known)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("given", "weight"), [("f4", "f4"), ("f2", "f4"), ("f4", "f2")])
def test_decoding_is_the_product_with_the_weight(given: str, weight: str, bias: bool) -> None:
    values, known = hidden(9, dtype=given), book(weight, bias)
    coding = bound("head(lm_head)", known)
    decoded = coding.decode(coding.encode(values), (WIDTH,))
    assert (decoded.shape, decoded.dtype.name) == ((9, CLASSES), "float32")
    wide = {name: array.astype("f8") for name, array in known.arrays.items()}
    expected = values.astype("f8") @ wide["weight"].T + wide.get("bias", 0)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-5)
    assert coding.loss(values) == {"max_abs": 0.0, "rms": 0.0, "kl": 0.0}


def test_in_float64_it_is_exact_to_the_rounding_of_the_result() -> None:
    values, known = hidden(5, dtype="f8"), book("f8")
    coding = bound("head()", known)
    expected = values @ known.arrays["weight"].T + known.arrays["bias"]
    decoded = coding.decode(coding.encode(values), (WIDTH,))
    np.testing.assert_allclose(decoded, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_a_narrower_state_costs_what_its_own_encoding_costs(name: str) -> None:
    values = hidden(200)
    coding = bound(f"head(model.lm_head,{name})", book())
    plain = encoding(name)
    signal = Signal.of("logits", values, f"head(model.lm_head,{name})")
    assert signal.row_bytes == Signal.of("logits", values, name).row_bytes
    np.testing.assert_array_equal(coding.encode(values)[""], plain.encode(values)[""])
    states = plain.decode(plain.encode(values), (WIDTH,))
    decoded = coding.decode(coding.encode(values), (WIDTH,))
    np.testing.assert_array_equal(decoded, coding.logits(states))
    error = coding.error(values, decoded)
    gap = coding.logits(values).astype("f8") - decoded
    assert error["max_abs"] == pytest.approx(np.abs(gap).max(), abs=1e-6)
    assert error["rms"] == pytest.approx(np.sqrt((gap**2).mean()), abs=1e-6)
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (coding.logits(values), decoded))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    assert error["kl"] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), abs=1e-6)
    assert (error["kl"] > 0) == (name != "float32")
    json.dumps(error, allow_nan=False)


def test_a_bfloat16_head_is_kept_as_its_sixteen_bits() -> None:
    exact = encoding("bfloat16").encode(book().arrays["weight"])[""]
    known = Book("0" * 64, {"weight": exact})
    coding = bound("head(h)", known)
    weight = encoding("bfloat16").decode({"": exact}, (WIDTH,))
    np.testing.assert_allclose(coding.logits(hidden(4)), hidden(4) @ weight.T, rtol=1e-5, atol=1e-6)


def test_a_large_narrow_head_is_widened_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bound("head(h)", book("f2")).logits(hidden(5))
    monkeypatch.setattr("stillroom.storage.books._KEPT_BYTES", 0)
    monkeypatch.setattr(heads, "_BLOCK_BYTES", 4 * WIDTH * 4)
    known = book("f2")
    found = bound("head(h)", known).logits(hidden(5))
    assert known.wide("weight").dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4, WIDTH), (0, WIDTH), (2, 0, WIDTH)])
def test_outer_axes_and_no_rows(shape: tuple[int, ...]) -> None:
    coding = bound("head(h)", book())
    values = np.resize(hidden(12), shape)
    decoded = coding.decode(coding.encode(values), shape[1:])
    assert decoded.shape == (*shape[:-1], CLASSES)
    error = coding.error(values, decoded)
    assert max(error.values()) < 1e-6
    assert coding.loss(values)["kl"] == 0.0


def test_the_decoded_shape_follows_from_the_head() -> None:
    signal = Signal.of("logits", hidden(2), "head(h)")
    assert needs_book(signal.encoding)
    with pytest.raises(SignalError, match="decodes with its book"):
        _ = signal.decoded_shape
    assert signal.bound(book()).decoded_shape == (CLASSES,)
    rows = Ragged.of([np.zeros((3, 2, WIDTH), "f4")])
    assert Signal.of("l", rows, "head(h)", book=book()).decoded_shape == (2, CLASSES)
    assert Signal.of("l", hidden(2), "float16").decoded_shape == (WIDTH,)


def test_without_its_head_a_state_is_encoded_but_not_decoded() -> None:
    coding = encoding("head(lm_head)")
    coded = coding.encode(hidden(2))
    with pytest.raises(SignalError, match=r"head\(lm_head\) decodes with its book"):
        coding.decode(coded, (WIDTH,))


def test_a_head_that_does_not_fit_names_the_way_out() -> None:
    values = np.zeros((2, WIDTH + 1), "f4")
    with pytest.raises(SignalError, match=r"7 numbers .* reads 6; .* 'lm_head:input'"):
        Signal.of("logits", values, "head(lm_head)", book=book())
    wrong: list[dict[str, Any]] = [
        {"centroids": np.ones((2, 3, 3), "f4")},
        {"weight": np.ones(WIDTH, "f4")},
        {"weight": np.ones((CLASSES, WIDTH), "i4")},
        {"weight": np.ones((CLASSES, WIDTH), "f4"), "bias": np.ones(CLASSES, "i8")},
    ]
    for arrays in wrong:
        with pytest.raises(SignalError, match="another signal's"):
            Signal.of("logits", hidden(2), "head(h)", book=Book("0" * 64, arrays))
    short = {"weight": np.ones((CLASSES, WIDTH), "f4"), "bias": np.ones(3, "f4")}
    with pytest.raises(SignalError, match="head"):
        Signal.of("logits", hidden(2), "head(h)", book=Book("0" * 64, short))


@pytest.mark.parametrize(("shape", "dtype"), [((), "float32"), ((6,), "int32"), ((), "string")])
def test_what_is_no_hidden_state_is_refused(shape: Any, dtype: str) -> None:
    with pytest.raises(SignalError, match="'s'"):
        Signal("s", shape, dtype, "head(h)")


@pytest.mark.parametrize("name", ["head", "head(a,int8)", "head(a b)", "head((a))", "head(a,b,c)"])
def test_a_misspelt_name_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match=r"known: .*head\(module\)"):
        encoding(name)


class TestHeadShards(ShardTests):
    """Hidden states in Zarr that decode to logits."""

    encoding = "head(lm_head,float16)"

    def format(self) -> ShardFormat:
        return ZarrShards()

    def values(self, rows: int, seed: int) -> Values:
        return hidden(rows, seed)

    def signal(self) -> Signal:
        return Signal.of("said", self.values(3, 0), self.encoding, book=book())

    def decoded(self, values: Values) -> Values:
        assert isinstance(values, np.ndarray)
        coding = bound(self.encoding, book())
        return coding.logits(values.astype(np.float16))

    def assert_right(self, found: Values, positions: Any) -> None:
        """As the others, up to the order in which products of another size are summed."""
        assert isinstance(found, np.ndarray)
        assert found.shape == (len(positions), CLASSES)
        for row, position in zip(found, positions, strict=True):
            expected, place = self.row(position)
            np.testing.assert_allclose(row, np.asarray(expected)[place], rtol=1e-5, atol=1e-5)
