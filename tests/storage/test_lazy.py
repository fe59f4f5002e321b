"""A signal as a dask array: the same rows as the reader's, in the order of the snapshot's keys."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest

from stillroom.storage import Reader, SignalError
from stillroom.storage.lazy import dask_array
from stillroom.storage.testing import SmallCache

KEYS = [f"k{i}" for i in range(10)]
VALUES: dict[str, Any] = {
    "logits": np.random.default_rng(0).standard_normal((10, 6)).astype("f4"),
    "words": [f"word {i}" for i in range(10)],
}


def test_a_dask_array_holds_every_row_of_every_segment_in_the_order_of_the_keys(
    small: SmallCache,
) -> None:
    more = {"logits": VALUES["logits"][:4] + 1, "words": VALUES["words"][:4]}
    added = [f"n{i}" for i in range(4)]
    first, second = small.teach(KEYS, VALUES), small.teach(added, more)
    snapshot = small.commit([*KEYS, *added], [first, second])
    array = dask_array(snapshot, "logits")
    assert array.shape == (14, 6)
    assert array.npartitions > 2
    assert isinstance(array, dask.array.Array)
    expected: Any = Reader(snapshot, ["logits"]).gather(snapshot.keys)["logits"]
    np.testing.assert_array_equal(array.compute(), expected)
    np.testing.assert_allclose(array.mean(axis=0).compute(), np.mean(expected, axis=0), rtol=1e-6)


def test_a_signal_without_one_row_shape_is_refused(small: SmallCache) -> None:
    snapshot = small.commit(KEYS, [small.teach(KEYS, VALUES)])
    with pytest.raises(SignalError, match="'words' is text"):
        dask_array(snapshot, "words")
