"""Audit: sound caches pass, and wrong values with right checksums do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import FunctionTeacher, audit
from stillroom.stages.care.auditing import AuditReport
from stillroom.stages.plans.teach_plan import TeachState
from stillroom.storage import Cache, Ragged
from stillroom.storage.testing import between
from tests.stages.builders import data, network, plain, taught

ENCODINGS = {"half": "float16", "brain": "bfloat16", "top": "topk(2)", "tokens": "topk(2)"}


def spoken(image: NDArray[np.float32]) -> dict[str, Any]:
    """Every kind of signal."""
    lengths = 1 + (np.abs(image[:, 0]) * 7).astype(int) % 4
    said = image[:, :4] * 3
    return {
        "raw": said,
        "half": said,
        "brain": said,
        "top": said,
        "tokens": [
            np.stack([v * (i + 1) for i in range(n)]) for v, n in zip(said, lengths, strict=True)
        ],
        "text": [f"{v[0]:.4f}" for v in image],
        "best": said.argmax(1),
    }


def speaker() -> FunctionTeacher:
    """A teacher of every kind of signal."""
    signals = ("raw", "half", "brain", "top", "tokens", "text", "best")
    return FunctionTeacher("speaker", spoken, ("image",), signals, ENCODINGS)


def audited(folder: Path, teacher: Any = None, **how: Any) -> AuditReport:
    """Audit what `data` was taught."""
    return audit(Cache(folder), data(), teacher or speaker(), runner=LocalRunner(), **how)


def test_a_sound_cache_passes_for_every_kind_of_signal(tmp_path: Path) -> None:
    taught(tmp_path, teacher=speaker())
    report = audited(tmp_path)
    assert report.faithful, [s.verdict for s in report.shards if not s.faithful]
    assert len(report.shards) == 6 * 7
    assert report.rows == 6 * 4
    assert report.problems() == []
    assert report.loss["half"]["max_abs"] > 0
    assert report.band["raw"] == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_whose_last_bits_hang_on_the_batch_passes(tmp_path: Path, precision: Any) -> None:
    teacher = network(encodings={"logits": "float16"}, precision=precision)
    taught(tmp_path, teacher=teacher, batch_size=7)
    report = audited(tmp_path, teacher)
    assert report.faithful, [s.verdict for s in report.shards if not s.faithful]


def test_the_ends_of_each_shard_are_always_compared_and_the_others_drawn(tmp_path: Path) -> None:
    taught(tmp_path, teacher=speaker())
    assert audited(tmp_path, rows_per_shard=1).rows == 6 * 2
    assert audited(tmp_path, rows_per_shard=100).rows == 60
    assert audited(tmp_path, seed=1) == audited(tmp_path, seed=1)


Change = Callable[[Any], Any]


def _shifted(values: Any) -> Any:
    order = [*range(1, len(values)), 0]
    return _ordered(values, order)


def _swapped(values: Any) -> Any:
    return _ordered(values, [len(values) - 1, *range(1, len(values) - 1), 0])


def _ordered(values: Any, order: list[int]) -> Any:
    if isinstance(values, list):
        return [values[i] for i in order]
    if isinstance(values, Ragged):
        return Ragged.of([values[i] for i in order])
    return values[order]


def plant(folder: Path, name: str, change: Change, image: Change | None = None) -> None:
    """Store wrong values of one signal of the third shard with right checksums."""
    rows, teacher = data(), speaker()
    cache = Cache.at(folder)
    state = TeachState(cache, rows, teacher)
    with cache.writing(state.digest):
        draft = cache.draft(
            *(teacher.name, state.identity, state.asked, rows.keys, state.own.hashes), 10
        )
        seen = rows.read(np.arange(60), ["image"])["image"]
        right = spoken(np.asarray(seen))
        wrong = spoken(image(np.asarray(seen))) if image else right
        for shard in draft.shards():
            bad = shard.index == 2
            values = {}
            for signal, answer in (wrong if bad else right).items():
                given = Ragged.of(answer) if signal == "tokens" else answer
                piece = between(given, shard.start, shard.stop)
                values[signal] = change(piece) if bad and signal == name else piece
            draft.write(shard, values, {})
        draft.seal()
        cache.commit(lambda: state.served(cache.segments()), "planted")


KINDS = ("raw", "half", "brain", "top", "tokens", "text")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("change", [_shifted, _swapped])
def test_rows_in_the_places_of_others_are_found(tmp_path: Path, name: str, change: Change) -> None:
    plant(tmp_path, name, change)
    report = audited(tmp_path)
    assert {(p.shard, p.signal) for p in report.problems()} == {(2, name)}


def test_mirrored_inputs_are_found(tmp_path: Path) -> None:
    plant(tmp_path, "", lambda v: v, image=lambda v: v[:, ::-1])
    assert {(p.shard, p.signal) for p in audited(tmp_path).problems()} >= {(2, n) for n in KINDS}


def _cut(values: Ragged) -> Ragged:
    rows = list(values)
    return Ragged.of(
        [rows[0], *rows[1:-1], np.concatenate([rows[-1], rows[-1]])[: len(rows[-1]) + 1]]
    )


def test_a_sequence_of_another_length_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "tokens", _cut)
    (problem,) = audited(tmp_path).problems()
    assert (problem.shard, problem.signal) == (2, "tokens")
    assert "elements" in problem.what


@pytest.mark.parametrize("name", ["raw", "half", "brain"])
def test_nan_is_found(tmp_path: Path, name: str) -> None:
    def spoilt(values: Any) -> Any:
        values = values.copy()
        values[-1, 1] = np.nan
        return values

    plant(tmp_path, name, spoilt)
    (problem,) = audited(tmp_path).problems()
    assert (problem.shard, problem.signal) == (2, name)


def scaled(image: NDArray[np.float32], by: list[float]) -> dict[str, Any]:
    """An answer that hangs on something outside the teacher's identity."""
    return {"logits": image[:, :4] * by[0]}


def test_a_teacher_that_changed_without_its_identity_is_found(tmp_path: Path) -> None:
    class Drifting:
        """Says that it is the plain teacher, and answers a little differently."""

        name, inputs = "plain", ("image",)
        asks, identity = plain().asks, plain().identity

        def load(self) -> Any:
            return partial(lambda batch, by: scaled(batch["image"], by), by=[2.001])

    taught(tmp_path)
    assert audited(tmp_path, plain()).faithful
    report = audited(tmp_path, Drifting())
    assert len(report.problems()) == 6


def test_another_teacher_is_told_that_nothing_of_it_is_there(tmp_path: Path) -> None:
    from stillroom.storage import UnknownRowError

    taught(tmp_path)
    with pytest.raises(UnknownRowError, match="teach first"):
        audited(tmp_path, plain(version="2"))


def test_rows_that_the_data_set_edited_are_left_out(tmp_path: Path) -> None:
    taught(tmp_path)
    report = audit(Cache(tmp_path), data(edited=[3, 4]), plain(), runner=LocalRunner())
    assert report.faithful
    assert report.skipped == 2
