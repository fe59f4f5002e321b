"""What detectors are proved with: pulses and their views, average precision, the teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.stages.objectives.boxes import mapped
from stillroom.stages.proving.detection import (
    DETECTION,
    average_precision,
    best_of_each,
    rank_correlation,
)
from stillroom.stages.proving.pulses import viewed
from stillroom.storage import Ragged
from tests.stages.detection_builders import averages, small_rows, untrained


def test_views_of_pulses_move_their_boxes_as_the_map_says() -> None:
    random = np.random.default_rng(0)
    flat = np.zeros((40, 128), np.float32)
    flat[:, 40:60] = 1  # a box from 40 / 128 to 60 / 128
    box = torch.tensor([[40 / 128, 60 / 128]]).expand(40, 1, 2)
    for strong in (False, True):
        seen, view = viewed(flat, random, strong=strong)
        low, high = mapped(box, torch.from_numpy(view))[:, 0].T.numpy()
        places = (np.arange(128) + 0.5) / 128
        inside = (places > low[:, None] + 0.01) & (places < high[:, None] - 0.01)
        outside = (places < low[:, None] - 0.01) | (places > high[:, None] + 0.01)
        loud = np.where(inside, seen, np.nan)
        assert np.nanmedian(loud) > 0.6
        assert abs(np.median(seen[outside])) < 0.1
        if not strong:
            assert np.nanmin(loud) == 1


def test_precision_is_one_for_the_truth_and_falls_with_a_wrong_box() -> None:
    truth = torch.tensor([[[0.1, 0.3], [0.6, 0.8]], [[0.2, 0.4], [0.0, 0.0]]])
    given = {
        "row.boxes": truth,
        "row.classes": torch.tensor([[0, 1], [0, 0]]),
        "row.count": torch.tensor([2, 1]),
    }
    sure = 9 * torch.eye(3)
    scores = torch.stack([sure[[0, 1]], sure[[0, 2]]])  # the second of the second row: background
    found = average_precision({**given, "student.boxes": truth, "student.scores": scores})
    assert found == {"ap50": 1.0, "ap75": 1.0}
    # Of class 0 the surer box is right and the other 60% over the truth: right at .5, not at .75.
    off = truth.clone()
    off[1, 0] = torch.tensor([0.25, 0.45])
    scores[0, 0, 0] = 12
    found = average_precision({**given, "student.boxes": off, "student.scores": scores})
    assert found == {"ap50": 1.0, "ap75": 0.75}


def test_of_boxes_on_one_another_the_surest_stays() -> None:
    boxes = torch.tensor([[[0.0, 1.0], [0.1, 1.0], [2.0, 3.0]]])
    scores = torch.tensor([[[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 5.0]]])
    _, label, stays = best_of_each(scores, boxes, above=0.2)
    assert stays.tolist() == [[False, True, False]]
    assert label[0, 1] == 0
    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 200, 3000])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)


def test_a_teachers_answer_to_a_signal_hangs_on_no_other_and_its_jitter_is_of_its_head(
    tmp_path: Path,
) -> None:
    teacher = averages(1, untrained(tmp_path))[0]
    answer, rows = teacher.load(), small_rows(1)
    whole: Any = answer(rows.read(np.arange(8), ["weak"]))
    alone: Any = answer(rows.read(np.arange(5, 6), ["weak"]))
    np.testing.assert_allclose(alone["background"][0], whole["background"][5], atol=1e-5)
    many, one = whole["boxes"], alone["boxes"]
    assert isinstance(many, Ragged)
    assert isinstance(one, Ragged)
    assert many.values.dtype == DETECTION
    mine: Any = many.values[many.offsets[5] : many.offsets[6]]
    same: Any = one.values
    assert len(mine) == len(same) > 0
    for name in ("box", "score", "jitter"):
        np.testing.assert_allclose(same[name], mine[name], atol=1e-5)
    assert (mine["jitter"] > 0).all()
    assert teacher.identity() == averages(2, untrained(tmp_path))[0].identity()
    assert replace(teacher, spread=0.1).identity() != teacher.identity()


def test_truth_of_unlabelled_signals_is_not_in_the_data(tmp_path: Path) -> None:
    rows = small_rows(1)
    places = [i for i, key in enumerate(rows.keys.to_pylist()) if key.startswith("unlabelled")]
    read = rows.read(np.array(places), ["boxes", "classes", "count"])
    assert not any(np.any(read[name]) for name in read)
