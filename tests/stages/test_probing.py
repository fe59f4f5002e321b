"""A probe: what it asks of the teacher, what it measures, what it leaves behind (nothing)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import ArrayRows, FunctionTeacher, Probe, probe
from stillroom.storage.errors import RowsError, SignalError
from stillroom.storage.weighing import weigh
from tests.stages.builders import Watched, data, every_kind, network, plain


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def probed(rows: ArrayRows, teacher: Any, **how: Any) -> Probe:
    return probe(rows, teacher, np.arange(len(rows)), teacher.asks(), **{"batch_size": 4, **how})


def long_text(number: Any) -> Mapping[str, Any]:
    """Texts of very different lengths, the same for the same number."""
    lengths = [int(np.random.default_rng(int(n)).gamma(1.0, 40)) for n in number]
    return {"text": ["x" * length for length in lengths]}


def wordy(rows: int) -> tuple[ArrayRows, FunctionTeacher]:
    return (
        ArrayRows(range(rows), number=np.arange(rows)),
        FunctionTeacher("wordy", long_text, ("number",), ("text",)),
    )


def test_at_least_three_batches_are_timed_after_one_to_warm_up() -> None:
    found = probed(data(400), plain(), seconds=0.0)
    batches = [batch for block in found.blocks for batch in block.batches]
    assert len(batches) >= 3
    assert all(batch.rows == 4 and batch.teacher > 0 and batch.reading > 0 for batch in batches)
    assert found.seen == 4 * (1 + len(batches)) < 400
    assert found.load_seconds >= 0
    evidence = found.evidence()
    assert [rows for rows, _ in evidence.teacher] == [4] * len(batches)
    assert evidence.source == f"probe of {found.seen:,} rows"
    assert evidence.shard_seconds > 0
    assert [rows for rows, _ in evidence.rest] == [block.rows for block in found.blocks]


def test_rows_of_a_probe_are_neighbours_in_batches_from_everywhere(tmp_path: Path) -> None:
    watched = Watched(plain(), tmp_path / "shown")
    rows = data(400)
    probed(rows, watched, seconds=0.0)
    shown = sorted({int(key[1:]) for key in watched.shown(rows)})
    assert len(shown) == 16
    starts = shown[::4]
    assert shown == [start + i for start in starts for i in range(4)]
    assert starts[-1] - starts[0] > 200


def test_fewer_rows_than_batches_are_answered_again_and_weighed_once() -> None:
    found = probed(data(6), plain(), seconds=0.0)
    assert len([b for block in found.blocks for b in block.batches]) >= 3
    evidence = found.evidence()
    assert evidence.among
    (weight,) = evidence.weights.values()
    assert weight.row_bytes == 16


def test_a_longer_probe_goes_on_until_bytes_of_uneven_rows_are_known() -> None:
    rows, teacher = wordy(6000)
    short = probed(rows, teacher, seconds=0.0, batch_size=128)
    written = sum(len(text) for text in long_text(np.arange(6000))["text"]) + 8 * 6000
    weight = short.evidence().weights["text"]
    assert 512 < short.seen < 6000
    assert weight.row_bytes * 6000 == pytest.approx(written, rel=0.05)


def test_every_kind_of_signal_is_weighed_as_its_files_are() -> None:
    rows, teacher = every_kind()
    found = probed(rows, teacher, batch_size=50)
    weights = weigh([found.warm_up.receipt])
    for name, weight in weights.items():
        files = found.warm_up.receipt["signals"][name]["files"]
        growing = weight.row_bytes * 23
        assert growing + weight.file_bytes == sum(file["bytes"] for file in files)
    assert weights["wide"].row_bytes == 16
    assert weights["few"].row_bytes == 3 * (1 + 2) + 4 + 4


def test_nothing_is_left_behind(temporary: Path) -> None:
    probed(data(20), plain())

    def wrong(image: Any) -> Mapping[str, Any]:
        return {"logits": np.full((len(image), 2), np.nan)}

    with pytest.raises(SignalError, match="NaN"):
        probed(data(20), FunctionTeacher("wrong", wrong, ("image",), ("logits",)))
    assert list(temporary.iterdir()) == []


def test_without_rows_there_is_nothing_to_probe() -> None:
    with pytest.raises(RowsError, match="nothing to probe"):
        probe(data(), plain(), np.arange(0), plain().asks())


def test_a_runner_gives_its_worker() -> None:
    found = probed(data(40), network(), runner=LocalRunner())
    assert set(found.evidence().weights) == {"logits", "feature"}


@pytest.mark.slow
def test_a_ray_worker_probes(ray_runner: RayRunner) -> None:
    found = probed(data(40), network(), runner=ray_runner)
    assert set(found.evidence().weights) == {"logits", "feature"}
