"""Audit of logits that are stored as some classes, draws or bytes: last bits pass, other rows do not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import FunctionTeacher, audit
from stillroom.stages.care.audit_logits import draws_plausible, judged
from stillroom.storage import Cache
from stillroom.storage.encodings.encoding import encoding
from tests.stages.builders import FEATURES, data, taught

ENCODINGS = {
    "eight": "int8",
    "drawn": "sampled(20)",
    "few": "packed(topk(5))",
    "fewer": "packed(sampled(20))",
    "tokens": "packed(topk(3),200)",
    "spoken": "packed(sampled(20))",
}
FLAT = ("eight", "drawn", "few", "fewer")
WEIGHT = np.random.default_rng(0).normal(0, 4, (FEATURES, 70)).astype("f4")


def said(image: NDArray[np.float32]) -> dict[str, Any]:
    logits = image @ WEIGHT
    lengths = np.abs(image[:, 0] * 7).astype(int) % 4
    ragged = [
        np.stack([v] * n) if n else v[:0, None] * v for v, n in zip(logits, lengths, strict=True)
    ]
    return {**dict.fromkeys(FLAT, logits), "tokens": ragged, "spoken": ragged}


def speaker() -> FunctionTeacher:
    return FunctionTeacher("speaker", said, ("image",), tuple(ENCODINGS), ENCODINGS)


class Other:
    """Says that it is the speaker, and sees every image a little or much differently."""

    name, inputs = "speaker", ("image",)

    def __init__(self, change: Any) -> None:
        self.asks, self.identity = speaker().asks, speaker().identity
        self._change = change

    def load(self) -> Any:
        return partial(lambda batch, change: said(change(batch["image"])), change=self._change)


def nudged(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Other last bits; the first column decides how long rows are and stays."""
    return np.concatenate([image[:, :1], image[:, 1:] * np.float32(1 + 2e-7)], axis=1)


def test_a_sound_cache_passes_and_its_loss_is_told(tmp_path: Path) -> None:
    taught(tmp_path, teacher=speaker())
    report = audit(Cache(tmp_path), data(), speaker(), runner=LocalRunner())
    assert report.faithful, [s.verdict for s in report.shards if not s.faithful]
    assert 0 < report.loss["few"]["kl"] < report.loss["drawn"]["kl"]
    assert report.loss["drawn"]["missed"] > 0


def test_a_teacher_whose_last_bits_moved_passes_though_it_draws_others(tmp_path: Path) -> None:
    taught(tmp_path, teacher=speaker())
    report = audit(Cache(tmp_path), data(), Other(nudged), runner=LocalRunner())
    assert report.faithful, [s.verdict for s in report.shards if not s.faithful]
    assert any(shard.deviation > 0 for shard in report.shards)


@pytest.mark.parametrize(
    "change", [lambda image: image[:, ::-1], lambda image: image * np.float32(1.5)]
)
def test_other_answers_are_found_in_every_signal(tmp_path: Path, change: Any) -> None:
    taught(tmp_path, teacher=speaker())
    report = audit(Cache(tmp_path), data(), Other(change), runner=LocalRunner())
    wrong = {(p.shard, p.signal) for p in report.problems()}
    assert {name for _, name in wrong} == set(ENCODINGS)
    assert {(shard, name) for shard in range(6) for name in FLAT} <= wrong


@pytest.mark.parametrize(
    "name", ["topk(5)", "packed(topk(5))", "packed(topk(5),300)", "sampled(50)"]
)
def test_rows_in_the_places_of_others_are_far_off_and_rounding_is_not(name: str) -> None:
    coding = encoding(name)
    live = np.random.default_rng(1).normal(0, 3, (40, 1, 90)).astype("f4")
    moved = live * np.float32(1 + 1e-6)
    band = float(np.abs(live - moved).max())
    for i, (row, other) in enumerate(zip(live, moved, strict=True)):
        mine = coding.encode(row)
        deviation, rounding, why = judged(coding, mine, other)
        assert deviation <= 4 * band + rounding, why
        deviation, rounding, why = judged(coding, mine, live[i - 1])
        assert deviation > 4 * band + rounding
        assert np.isfinite(deviation) == (why == "")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 300), st.sampled_from([0.3, 3.0, 15.0, 60.0]))
def test_a_distributions_own_draws_are_never_called_implausible(
    seed: int, classes: int, spread: float
) -> None:
    live = np.random.default_rng(seed).normal(0, spread, (30, classes))
    assert draws_plausible(encoding("sampled(50)").encode(live), live)


def test_draws_of_another_distribution_are_called_implausible_both_ways() -> None:
    coding = encoding("sampled(50)")
    even, peaked = np.zeros((1, 60)), np.zeros((1, 60))
    peaked[0, 7] = 12
    assert draws_plausible(coding.encode(even), even)
    assert not draws_plausible(coding.encode(even), peaked)
    assert not draws_plausible(coding.encode(peaked), even)
    one = coding.encode(peaked)
    one["counts"] = one["counts"].copy()
    one["counts"][0, 0] -= 1
    twice = {name: np.concatenate([coding.encode(peaked)[name], one[name]]) for name in one}
    assert not draws_plausible(twice, np.concatenate([peaked, peaked]))


@pytest.mark.parametrize("name", ["topk(2)", "packed(topk(2))", "sampled(5)"])
def test_stored_classes_that_cannot_be_are_named(name: str) -> None:
    coding, live = encoding(name), np.zeros((1, 9), "f4")
    stored = coding.encode(live)
    stored["indices"][0, 0] = 9
    deviation, _, why = judged(coding, stored, live)
    assert deviation == np.inf
    assert "class 9 is none of 9" in why
