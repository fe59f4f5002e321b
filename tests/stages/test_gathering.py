"""Batches that are encoded one by one make the same shard as all their rows at once."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.stages.worker.gathering import Gathering
from stillroom.storage import Cache, Ragged, Reader
from stillroom.storage.coded import Coded
from stillroom.storage.errors import SignalError
from stillroom.storage.folder import Ask

ENCODINGS = (
    "raw",
    "float16",
    "int8",
    "topk(3)",
    "sampled(4)",
    "packed(topk(3))",
    "packed(sampled(4))",
)
CLASSES = 50_000


def gathered(values: list[Any], encoding: str) -> Gathering:
    found = Gathering("teacher 't'", "x", Ask(encoding, "head"), None)
    for piece in values:
        found.add(piece)
    return found


def parts_of(values: Any) -> dict[str, NDArray[Any]]:
    """Every array of a shard, offsets too."""
    parts = values.parts if isinstance(values, Coded) else {"": values}
    plain: dict[str, NDArray[Any]] = {}
    for name, part in parts.items():
        if isinstance(part, Ragged):
            plain[f"{name} offsets"] = part.offsets
        plain[name] = part.values if isinstance(part, Ragged) else part
    return plain


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ragged", [False, True])
@settings(max_examples=10, deadline=None)
@given(cuts=st.sets(st.integers(1, 39)), seed=st.integers(0, 99))
def test_where_batches_are_cut_changes_nothing(
    encoding: str, ragged: bool, cuts: set[int], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, 4, 40) if ragged else np.ones(40, int)
    rows = [draw.normal(size=(n, 9)).astype(np.float32) for n in lengths]
    together = Ragged.of(rows) if ragged else np.concatenate(rows)
    ends = [0, *sorted(cuts), 40]
    pieces = [
        Ragged.of(rows[a:b]) if ragged else np.concatenate(rows[a:b]) for a, b in pairwise(ends)
    ]
    one, many = gathered([together], encoding), gathered(pieces, encoding)
    assert len(many.values) == 40
    assert many.error == one.error
    assert bool(one.error) == (encoding != "raw")
    mine, theirs = parts_of(many.values), parts_of(one.values)
    assert list(mine) == list(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(mine[name], array)


@pytest.mark.parametrize("second", [np.zeros((2, 4)), np.zeros((2, 3), np.float32), ["a", "b"]])
@pytest.mark.parametrize("encoding", ["raw", "float16"])
def test_batches_that_disagree_are_refused(second: Any, encoding: str) -> None:
    with pytest.raises(
        SignalError, match=r"teacher 't', signal 'x': .* from one batch to the next"
    ):
        gathered([np.zeros((2, 3)), second], encoding)


def one_hot(number: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Logits of many classes: 200 kB a row."""
    logits = np.zeros((len(number), CLASSES), np.float32)
    logits[np.arange(len(number)), number] = 20
    return {"logits": logits}


def test_dense_logits_of_a_shard_never_lie_in_memory(tmp_path: Path) -> None:
    rows = ArrayRows(np.arange(512), number=np.arange(512))
    encodings = {"logits": "topk(4)"}
    teacher = FunctionTeacher("wide", one_hot, ("number",), ("logits",), encodings)
    tracemalloc.start()
    how = {"runner": LocalRunner(), "batch_size": 8, "band": float("inf")}
    snapshot = teach(Cache.at(tmp_path / "c"), rows, teacher, **how)  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.75 * 512 * CLASSES * 4  # what does not grow with the shard is about half of it
    read = Reader(snapshot, ["logits"]).gather([200, 7])["logits"]
    np.testing.assert_array_equal(np.asarray(read).argmax(-1), [200, 7])
