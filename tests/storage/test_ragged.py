"""Rows of different lengths behave like the list of arrays they were made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage.ragged import Ragged

quick = settings(max_examples=80, deadline=None, derandomize=True)


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([(), (2,), (2, 3)]))
def test_it_is_the_list_of_its_rows(lengths: list[int], inner: tuple[int, ...]) -> None:
    rows = [np.random.default_rng(n).random((n, *inner)) for n in lengths]
    ragged = Ragged.of(rows)
    assert len(ragged) == len(rows)
    assert ragged.lengths.tolist() == lengths
    for i, (mine, theirs) in enumerate(zip(ragged, rows, strict=True)):
        np.testing.assert_array_equal(mine, theirs, strict=True)
        np.testing.assert_array_equal(ragged[i - len(rows)], theirs, strict=True)
    padded = ragged.padded(-1)
    assert padded.shape == (len(rows), max(lengths), *inner)
    for mine, theirs in zip(padded, rows, strict=True):
        np.testing.assert_array_equal(mine[: len(theirs)], theirs)
        assert (mine[len(theirs) :] == -1).all()


def test_no_rows_are_fine() -> None:
    assert len(Ragged.of([])) == 0
    assert list(Ragged.of([])) == []
    assert Ragged.of([]).padded().shape == (0, 0)


@pytest.mark.parametrize("row", [2, -3])
def test_a_row_beyond_the_end_is_an_index_error(row: int) -> None:
    with pytest.raises(IndexError):
        Ragged.of([np.zeros(1), np.zeros(2)])[row]


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3], [0, -1, 3]])
def test_offsets_that_do_not_describe_the_values_are_refused(offsets: Any) -> None:
    with pytest.raises(ValueError, match="offsets must rise from 0"):
        Ragged(np.zeros(3), np.array(offsets, np.int64))


@pytest.mark.parametrize(
    "rows", [[np.zeros((1, 2)), np.zeros((1, 3))], [np.zeros(1), np.zeros((1, 1))]]
)
def test_rows_of_different_inner_shapes_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"shape|dimension"):
        Ragged.of(rows)
