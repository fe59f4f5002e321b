"""product(m): the nearest of some centroids, piece by piece; the same from whoever computes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from stillroom.storage.books import Book
from stillroom.storage.encodings import clusters
from stillroom.storage.encodings.clusters import centroids, nearest
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.product import Product
from stillroom.storage.errors import CorruptShardError, FormatError, SignalError
from stillroom.storage.ragged import Ragged
from stillroom.storage.shards import ShardFormat
from stillroom.storage.signal import Signal, Values
from stillroom.storage.testing import ShardTests, bits
from stillroom.storage.zarr_shards import ZarrShards

quick = settings(max_examples=80, deadline=None, derandomize=True)
# Few distinct numbers, so that equal points and equal distances are the rule.
POINTS = arrays.arrays(
    st.sampled_from(["f2", "f4", "i1", "i4", "u1"]),
    st.tuples(st.integers(1, 40), st.sampled_from([4])),
    elements=st.integers(0, 3),
)


def features(rows: int, width: int = 8, seed: int = 0) -> NDArray[np.float32]:
    """Correlated vectors in a few groups."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, 3)) @ rng.standard_normal((3, width))
    return (mixed + 4 * rng.integers(0, 5, (rows, 1))).astype(np.float32)


def fitted(vectors: NDArray[Any], name: str) -> Product:
    """The encoding of that name with a book that these vectors gave."""
    coding = encoding(name)
    assert isinstance(coding, Product)
    return coding.bound(Book("0" * 64, coding.fitted(vectors)))


@quick
@given(POINTS, st.sampled_from([1, 2, 4]))
def test_where_no_more_distinct_vectors_than_centroids_exist_nothing_is_lost(
    points: NDArray[Any], m: int
) -> None:
    coding = fitted(points, f"product({m})")
    decoded = coding.decode(coding.encode(points), points.shape[1:])
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, points.astype(np.float32))
    error = coding.error(points, decoded)
    assert error == {"max_abs": 0.0, "rms": 0.0, "relative": 0.0, "cosine": 1.0}


@quick
@given(POINTS, POINTS)
def test_every_point_gets_the_nearest_centre_and_a_tie_the_lowest(
    points: NDArray[Any], centres: NDArray[Any]
) -> None:
    labels, distances = nearest(points, centres)
    exact = ((points[:, None].astype(float) - centres[None].astype(float)) ** 2).sum(-1)
    assert labels.tolist() == exact.argmin(1).tolist()  # which is the first of equal ones
    np.testing.assert_array_equal(distances, exact.min(1))


def test_far_from_the_origin_the_nearest_is_found_as_well() -> None:
    near = np.nextafter(np.full((40, 2), 1e6, np.float32), np.float32(np.inf))
    for _ in range(3):
        near = np.nextafter(near, np.float32(np.inf))
    centres = np.concatenate([near, near - np.float32(0.0625), np.full((1, 2), 1e6, np.float32)])
    labels, distances = nearest(centres[::-1], centres)
    np.testing.assert_array_equal(centres[labels], centres[::-1])
    assert (distances == 0).all()


@quick
@given(st.integers(0, 2**32), st.integers(2, 9))
def test_the_matrix_product_decides_nothing(seed: int, pairs: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 4, (70, 3)).astype(np.float32)
    expected = centroids(points, 9)
    with pytest.MonkeyPatch.context() as patch:
        # Other blocks meet other kernels, and sum in another order.
        patch.setattr(clusters, "_PAIRS", pairs * 9)
        patch.setattr(clusters, "_TIED", pairs)
        np.testing.assert_array_equal(bits(centroids(points, 9)), bits(expected))


def test_every_centroid_is_the_mean_of_its_own_and_none_is_idle() -> None:
    points = features(600, 4)
    found = centroids(points, 16)
    assert found.shape == (16, 4)
    labels, distances = nearest(points, found)
    assert len(np.unique(labels)) == 16
    means = np.stack([points[labels == i].astype(float).mean(0) for i in range(16)])
    np.testing.assert_allclose(found, means, atol=0.3)  # 25 rounds may stop short of the end
    rng = np.random.default_rng(0)
    drawn = [nearest(points, rng.choice(points, 16, replace=False))[1].sum() for _ in range(50)]
    assert distances.sum() < 0.8 * min(drawn)


def test_points_in_tight_heaps_each_get_a_centroid() -> None:
    heaps = np.repeat(np.array([[0.0], [1.0], [1e3], [1e6]], np.float32), 300, axis=0)
    heaps += np.tile(np.linspace(0, 0.25, 300, dtype=np.float32)[:, None], (4, 1))
    found = centroids(heaps, 8)
    for low in (0.0, 1.0, 1e3, 1e6):
        assert ((found >= low) & (found <= low + 0.5)).any()


def test_more_bytes_lose_less_and_the_error_says_how_much() -> None:
    vectors = features(400, 16)
    before = np.inf
    for name in ("product(1,2)", "product(2,4)", "product(4,6)", "product(16,8)"):
        coding = fitted(vectors, name)
        decoded = coding.decode(coding.encode(vectors), (16,))
        error = coding.error(vectors, decoded)
        gap = vectors.astype(float) - decoded
        assert error["rms"] == pytest.approx(np.sqrt((gap**2).mean()))
        assert error["max_abs"] == np.abs(gap).max()
        assert error["relative"] == pytest.approx(
            np.linalg.norm(gap) / np.linalg.norm(vectors), rel=1e-6
        )
        each = [
            np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
            for a, b in zip(vectors.astype(float), decoded.astype(float), strict=True)
        ]
        assert error["cosine"] == pytest.approx(np.mean(each))
        json.dumps(error, allow_nan=False)
        assert error["rms"] < before
        before = error["rms"]


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [("product(4)", "uint8", 4), ("product(2,3)", "uint8", 2), ("product(4,9)", "uint16", 8)],
)
def test_a_row_costs_its_codes(name: str, dtype: str, size: int) -> None:
    vectors = features(700)
    coding = fitted(vectors, name)
    signal = Signal.of("f", vectors, name)
    assert (signal.row_bytes, signal.parts[0].dtype) == (size, dtype)
    assert coding.encode(vectors)["codes"].dtype == dtype
    assert signal.decoded_shape == (8,)
    known = coding.book
    assert known is not None
    assert known.arrays["centroids"].shape[1] <= 2**coding.bits


@pytest.mark.parametrize("shape", [(3, 0, 8), (0, 8), (2, 3, 8)])
def test_outer_axes_and_no_rows(shape: tuple[int, ...]) -> None:
    coding = fitted(features(50), "product(2)")
    values = features(int(np.prod(shape[:-1]))).reshape(shape)
    coded = coding.encode(values)
    assert coded["codes"].shape == (*shape[:-1], 2)
    decoded = coding.decode(coded, shape[1:])
    assert decoded.shape == shape
    coding.error(values, decoded)
    assert coding.excess(coded, values) == 0.0


def test_how_far_a_wrong_code_is_off_is_measured() -> None:
    vectors = features(50)
    coding = fitted(vectors, "product(2)")
    coded = coding.encode(vectors)
    moved = {"codes": coded["codes"][::-1]}
    gap = (coding.decode(moved, (8,)) - vectors).reshape(50, 2, 4)
    assert coding.excess(moved, vectors) == pytest.approx(np.sqrt((gap**2).mean(-1)).max())


def test_the_last_centroid_is_repeated_where_a_piece_has_fewer() -> None:
    vectors = np.concatenate([np.zeros((9, 1)), np.arange(9)[:, None]], axis=1).astype("f4")
    coding = fitted(vectors, "product(2)")
    known = coding.book
    assert known is not None
    assert known.arrays["centroids"].shape == (2, 9, 1)
    assert coding.encode(vectors)["codes"].tolist() == [[0, i] for i in range(9)]


@pytest.mark.parametrize(
    ("shape", "dtype", "name"),
    [
        ((), "float32", "product(1)"),
        ((10,), "float32", "product(3)"),
        ((10,), "float32", "product(20)"),
        ((10,), "float32", "product(5,17)"),
        ((10,), "float32", "product(5,0)"),
        ((10,), "bool", "product(5)"),
        ((10,), (("x", "float32", ()),), "product(5)"),
        ((), "string", "product(5)"),
    ],
)
def test_what_cannot_be_quantised_is_refused(shape: Any, dtype: Any, name: str) -> None:
    with pytest.raises(SignalError, match="'s'"):
        Signal("s", shape, dtype, name)


@pytest.mark.parametrize("name", ["product", "product()", "product(2,3,4)", "product(-1)"])
def test_a_misspelt_name_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match=r"known: .*product\(m\)"):
        encoding(name)


def test_without_centroids_nothing_is_encoded() -> None:
    vectors = features(5)
    coding = encoding("product(2)")
    assert isinstance(coding, Product)
    with pytest.raises(SignalError, match="needs its book"):
        coding.encode(vectors)
    with pytest.raises(SignalError, match="needs its book"):
        coding.decode({"codes": np.zeros((5, 2), np.uint8)}, (8,))
    with pytest.raises(SignalError, match="there is none"):
        coding.fitted(vectors[:0])
    with pytest.raises(SignalError, match="1e\\+300"):
        coding.fitted(np.full((2, 8), 1e300))


def test_a_book_of_another_signal_does_not_fit() -> None:
    vectors = features(20)
    good = encoding("product(2)")
    assert isinstance(good, Product)
    wrong: list[dict[str, Any]] = [
        {"weight": np.ones((3, 8), np.float32)},
        {"centroids": good.fitted(vectors)["centroids"].astype("f8")},
        {"centroids": np.ones((2, 4), np.float32)},
        {"centroids": np.ones((2, 5, 3), np.float32)},
        {"centroids": np.ones((4, 5, 2), np.float32)},
        {"centroids": np.ones((2, 257, 4), np.float32)},
    ]
    for arrays_ in wrong:
        with pytest.raises(SignalError, match="another signal's"):
            Signal.of("f", vectors, "product(2)", book=Book("0" * 64, arrays_))


def test_a_code_of_no_centroid_is_caught() -> None:
    coding = fitted(features(5), "product(2)")
    with pytest.raises(CorruptShardError, match="code 5 is none of 5"):
        coding.decode({"codes": np.array([[0, 5]], np.uint8)}, (8,))


class TestProductShards(ShardTests):
    """Codes of vectors in Zarr."""

    encoding = "product(2,3)"

    @pytest.fixture(autouse=True)
    def _book(self) -> None:
        self._known = fitted(features(30, 8, seed=5), self.encoding).book

    def format(self) -> ShardFormat:
        return ZarrShards()

    def values(self, rows: int, seed: int) -> Values:
        return features(rows, 8, seed)

    def signal(self) -> Signal:
        return Signal.of("said", self.values(3, 0), self.encoding, book=self._known)


def test_ragged_rows_of_vectors_keep_their_lengths() -> None:
    rows = Ragged.of([features(n, 8, n) for n in (3, 0, 2)])
    book = fitted(np.asarray(rows.values), "product(4)").book
    signal = Signal.of("tokens", rows, "product(4)", book=book)
    assert (signal.kind, signal.inner_shape, signal.row_bytes) == ("ragged", (8,), 4)
    decoded = signal.coding.decode(signal.coding.encode(rows.values), signal.inner_shape)
    np.testing.assert_array_equal(decoded, rows.values)


FITTED = """
import hashlib
import numpy as np
from stillroom.storage.encodings.encoding import encoding

random = np.random.default_rng(0)
ties = random.integers(0, 6, (6000, 32))
mixed = random.standard_normal((6000, 16)) @ random.standard_normal((16, 32))
for points in (ties, mixed, mixed + 1e4):
    fitted = encoding("product(4)").fitted(points.astype(np.float32))["centroids"]
    print(hashlib.sha256(fitted.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_other_processors_and_other_numbers_of_threads_find_the_same_centroids() -> None:
    """OpenBLAS can be told to multiply as on an older processor; where it cannot, nothing is shown."""
    found = set()
    for kernels, threads in (("", "1"), ("", "2"), ("Prescott", "1"), ("Nehalem", "1")):
        given = {**os.environ, "OPENBLAS_CORETYPE": kernels, "OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, "-c", FITTED]
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
