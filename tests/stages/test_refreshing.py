"""Teaching again computes exactly what changed, and nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.stages import ArrayRows, FunctionTeacher, plan_teach
from stillroom.storage import Cache, Reader, Snapshot, UnknownSignalError
from stillroom.storage.errors import SignalError
from tests.stages.builders import (
    Heard,
    Watched,
    answers,
    chosen,
    data,
    doubled,
    images,
    network,
    plain,
    stamps,
    taught,
)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """The plain teacher, with what it was shown; the cache at `c` is taught."""
    teacher = Watched(plain(), tmp_path / "shown")
    taught(tmp_path / "c", teacher=teacher)
    assert len(teacher.shown(data())) == 60
    return teacher


def test_with_nothing_changed_no_teacher_is_loaded_and_nothing_is_written(
    tmp_path: Path, watched: Watched
) -> None:
    before, heard = stamps(tmp_path / "c"), Heard()
    forbidden = Watched(plain(), tmp_path / "shown", forbidden=True)
    again = taught(tmp_path / "c", teacher=forbidden, listen=heard)
    assert again.number == 1
    assert heard.taught == 0
    assert stamps(tmp_path / "c") == before


def test_one_percent_edited_is_one_percent_computed(tmp_path: Path) -> None:
    teacher, heard = Watched(plain(), tmp_path / "shown"), Heard()
    taught(tmp_path / "c", data(1000), teacher, shard_rows=100)
    edited = data(1000, edited=range(7, 1000, 100))
    teacher.shown(data(1000))
    snapshot = taught(tmp_path / "c", edited, teacher, listen=heard)
    assert teacher.shown(edited) == sorted(f"r{i}" for i in range(7, 1000, 100))
    assert heard.taught == 10
    expected = doubled(edited.read(np.arange(1000), ["image"])["image"])["logits"]  # type: ignore[arg-type]
    np.testing.assert_array_equal(answers(snapshot, edited), expected)


def test_added_rows_are_computed_alone(tmp_path: Path, watched: Watched) -> None:
    snapshot = taught(tmp_path / "c", grown(), watched)
    assert watched.shown(grown()) == ["r60", "r61", "r62"]
    assert snapshot.rows == 63
    assert "new, changed or lack logits" in snapshot.why


def grown() -> ArrayRows:
    """Three rows more than `data()`."""
    more = np.concatenate([images(60), images(3, seed=5)])
    return ArrayRows([f"r{i}" for i in range(63)], image=more)


@pytest.mark.parametrize("places", [range(50), range(59, -1, -1), [3, 1, 59]])
def test_removed_and_moved_rows_need_no_teacher(
    tmp_path: Path, watched: Watched, places: list[int]
) -> None:
    rows = chosen(data(), list(places))
    forbidden = Watched(plain(), tmp_path / "shown", forbidden=True)
    snapshot = taught(tmp_path / "c", rows, forbidden)
    assert (snapshot.number, snapshot.rows) == (2, len(rows))
    np.testing.assert_array_equal(answers(snapshot, rows), images(60)[list(places)][:, :4] * 2)
    assert taught(tmp_path / "c", rows, forbidden).number == 2


def test_a_renamed_row_is_another_row(tmp_path: Path, watched: Watched) -> None:
    renamed = ArrayRows([f"r{i}" for i in range(59)] + ["other"], image=images(60))
    taught(tmp_path / "c", renamed, watched)
    assert watched.shown(renamed) == ["other"]


def test_columns_that_the_teacher_does_not_read_may_change(
    tmp_path: Path, watched: Watched
) -> None:
    forbidden = Watched(plain(), tmp_path / "shown", forbidden=True)
    relabelled = data(label=np.zeros(60, np.int64))
    assert taught(tmp_path / "c", relabelled, forbidden).number == 1


def test_another_signal_is_computed_alone(tmp_path: Path, watched: Watched) -> None:
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c" / "segments").rglob("*.json")}
    both = Watched(plain(signals=("logits", "feature")), watched.log)
    snapshot = taught(tmp_path / "c", teacher=both)
    assert len(both.shown(data())) == 60
    (_, second) = Cache(tmp_path / "c").segments()
    assert set(second.signals) == {"feature"}
    assert {p: p.stat().st_mtime_ns for p in before} == before
    np.testing.assert_array_equal(answers(snapshot, data(), "feature"), images(60) + 1)
    np.testing.assert_array_equal(answers(snapshot, data()), images(60)[:, :4] * 2)


def test_another_encoding_of_a_signal_is_computed_anew(tmp_path: Path, watched: Watched) -> None:
    half = plain(encodings={"logits": "float16"})
    plan = plan_teach(Cache(tmp_path / "c"), data(), half)
    assert plan.to_compute == 60
    snapshot = taught(tmp_path / "c", teacher=half)
    assert snapshot.signals["logits"].encoding == "float16"


def tripled(image: Any) -> dict[str, Any]:
    """Another teacher."""
    return {"logits": image[:, :4] * 3}


def test_two_teachers_share_a_cache_and_old_snapshots_stay_readable(
    tmp_path: Path, watched: Watched
) -> None:
    second = taught(tmp_path / "c", teacher=plain("other", answer=tripled))
    assert list(second.signals) == ["other/logits", "plain/logits"]
    np.testing.assert_array_equal(answers(second, data(), "plain/logits"), images(60)[:, :4] * 2)
    np.testing.assert_array_equal(answers(second, data(), "other/logits"), images(60)[:, :4] * 3)
    with pytest.raises(UnknownSignalError, match=r"did you mean '(other|plain)/logits'"):
        second.find("logits")
    first = Snapshot(tmp_path / "c", 1)
    np.testing.assert_array_equal(answers(first, data()), images(60)[:, :4] * 2)
    forbidden = Watched(plain(), tmp_path / "shown", forbidden=True)
    assert taught(tmp_path / "c", teacher=forbidden).number == 2


def test_a_teacher_that_lacks_rows_another_has_is_not_taken_for_fresh(
    tmp_path: Path, watched: Watched
) -> None:
    # The other teacher's snapshot serves all 63 rows; this teacher answers for 60 of them.
    taught(tmp_path / "c", grown(), plain("other", answer=tripled))
    plan = plan_teach(Cache(tmp_path / "c"), grown(), watched)
    assert plan.to_compute == 3
    snapshot = taught(tmp_path / "c", grown(), watched)
    assert watched.shown(grown()) == ["r60", "r61", "r62"]
    assert len(answers(snapshot, grown(), "plain/logits")) == 63


def test_a_changed_teacher_answers_all_rows_anew_and_replaces_the_old(
    tmp_path: Path, watched: Watched
) -> None:
    snapshot = taught(tmp_path / "c", teacher=plain(answer=tripled))
    assert "60 rows: the teacher changed (code: doubled became tripled)" in snapshot.why
    assert list(snapshot.signals) == ["logits"]
    np.testing.assert_array_equal(answers(snapshot, data()), images(60)[:, :4] * 3)
    back = taught(tmp_path / "c", teacher=Watched(plain(), tmp_path / "x", forbidden=True))
    np.testing.assert_array_equal(answers(back, data()), images(60)[:, :4] * 2)


def test_settings_of_a_run_are_no_part_of_a_teacher(tmp_path: Path) -> None:
    taught(tmp_path / "c", teacher=network(device="cpu"))
    again = taught(tmp_path / "c", teacher=network(), batch_size=13, shard_rows=7)
    assert again.number == 1


def clipped(image: Any, limit: float) -> dict[str, Any]:
    """As many answers a row as the largest row of the batch asks for."""
    return {"logits": image[:, : 3 if image.max() > limit else 4]}


def test_a_shape_that_differs_from_earlier_segments_harms_nothing(tmp_path: Path) -> None:
    teacher = FunctionTeacher("t", partial(clipped, limit=50.0), ("image",), ("logits",))
    taught(tmp_path / "c", teacher=teacher)
    wild = images(60)
    wild[5] = 99
    rows = ArrayRows(data().keys, image=wild)
    for _ in range(2):
        with pytest.raises(SignalError, match=r"row shape \(4,\) became \(3,\) since 0001-t-"):
            taught(tmp_path / "c", rows, teacher)
    newest = Cache(tmp_path / "c").snapshot()
    assert Reader(newest).gather(["r5"])["logits"].shape == (1, 4)  # type: ignore[union-attr]
    mended = data(edited=[5])
    assert taught(tmp_path / "c", mended, teacher).number == 2
