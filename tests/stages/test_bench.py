"""What proofs stand on: shapes in words, and a bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.pipeline import LocalRunner
from stillroom.stages.proving.bench import Bench
from stillroom.stages.shapes import Shape, random_tensors
from stillroom.storage import Cache
from tests.stages.builders import SPLITS, data, network, pupil, student


def test_shapes_say_what_they_are() -> None:
    found = random_tensors(
        {"a": "float n d", "b": "int n below classes", "c": "simplex n t classes", "d": "bool n t",
         "e": "unit n d", "f": "box n m 4", "g": "positive n", "h": "sign n d", "i": "float n d*2"}
    )  # fmt: skip
    assert found["i"].shape == (6, 2 * found["a"].shape[1])
    assert found["b"].max() < found["c"].shape[-1]
    torch.testing.assert_close(found["c"].sum(-1), torch.ones(found["c"].shape[:2]))
    torch.testing.assert_close(found["e"].norm(dim=-1), torch.ones(6))
    assert (found["f"][..., :2] < found["f"][..., 2:]).all()
    assert found["d"].dtype == torch.bool
    for wrong, said in {
        "flaot n": "expected one of float, int",
        "int n": "need 'below SIZE'",
        "float n-1": "neither a name nor a number",
        "int n below": "one size stands after",
    }.items():
        with pytest.raises(ValueError, match=said):
            Shape.of(wrong)


def test_a_runner_and_a_cache_are_all_that_a_bench_needs(tmp_path: Path) -> None:
    bench = Bench(0, tmp_path, LocalRunner(), smoke=True)
    weights = bench.trained("t", pupil, data(), SPLITS["train"], inputs=("image",))
    held: list[bool] = []

    class Spying(LocalRunner):
        def map(self, build: Any, items: Any) -> Any:
            held.append(weights.exists())
            return super().map(build, items)

    snapshot = bench.teach(data(), network(module=pupil, weights=weights))
    bench.runner = Spying()
    bench.train({"an arm, named": student()}, data(), snapshot, splits=SPLITS)
    assert held == [False]
    assert weights.exists()
    assert bench.noted["an arm, named"]["accuracy"] > 0
    assert Cache(tmp_path / "cache.cache").snapshots()
    split = bench.split(data(), a=10, b=0, c=20)
    assert [len(split[n]) for n in "abc"] == [10, 30, 20]
    assert len({k for keys in split.values() for k in keys}) == 60
    bench.close()
    assert not tmp_path.exists()
