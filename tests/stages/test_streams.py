"""Streams of rows: which come in a batch, and with what marks."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages.loading import Loader
from stillroom.stages.streams import Streams
from tests.stages.builders import SPLITS, data


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 3))
def test_every_row_of_a_stream_comes_once_before_any_comes_again(
    batch: int, rows: int, seed: int
) -> None:
    keys = [f"r{i}" for i in range(rows)]
    main = Loader(data(), SPLITS["train"], ("label",), None, batch_size=batch, seed=seed)
    beside = Loader(data(), keys, ("label",), None, batch_size=1, seed=seed)
    drawn: list[int] = []
    for epoch in (1, 2):
        for chosen, tensors in Streams(main, {"few": beside}, seed=seed).epoch(epoch):
            marked = tensors["batch.few"]
            assert torch.equal(tensors["batch.main"], ~marked)
            assert int(marked.sum()) == len(chosen)
            assert tensors["batch.index"][~marked].tolist() == chosen.tolist()
            assert (tensors["batch.index"][marked] == -1).all()
            few = tensors["row.label"][marked]
            drawn += few.tolist()
    labels = sorted(np.asarray(data().read(np.arange(rows), ["label"])["label"]).tolist())
    for start in range(0, len(drawn) - rows + 1, rows):
        assert sorted(drawn[start : start + rows]) == labels


def test_a_stream_is_the_same_wherever_training_is_taken_up_again() -> None:
    main = Loader(data(), SPLITS["train"], ("image",), None, batch_size=7, seed=3)
    few = Loader(data(), SPLITS["train"][:5], ("image",), None, batch_size=1, seed=3)
    whole = [t["row.image"] for e in (1, 2) for _, t in Streams(main, {"f": few}, seed=3).epoch(e)]
    second = [t["row.image"] for _, t in Streams(main, {"f": few}, seed=3).epoch(2)]
    assert all(map(torch.equal, whole[len(main) :], second))
