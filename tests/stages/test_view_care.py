"""Segments of views are verified, compacted and repaired as all others, and replay as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import Replay, ViewedRows, ViewedTeacher, ViewPlan, repair
from stillroom.storage import Cache, compact, verify
from tests.stages.builders import tree
from tests.stages.view_builders import EVERY, album, looker, viewed

KEYS = [f"p{i}" for i in range(12)]


def _all_views(folder: Path, views: int) -> list[bytes]:
    replay = Replay(album(), Cache(folder).snapshot(), KEYS, views=views, signals=["logits"])
    read: list[Any] = [
        replay.read(np.arange(12), v, ["image", "weight"]) for v in range(1, views + 1)
    ]
    return [batch[name].tobytes() for batch in read for name in ("image", "weight")]


def test_compacted_segments_replay_as_before(tmp_path: Path) -> None:
    plan = ViewPlan(EVERY)
    for views in (1, 2, 3):
        viewed(tmp_path, plan, views=views)
    before = _all_views(tmp_path, 3)
    assert compact(Cache(tmp_path)).merged[0].rows == 48
    assert verify(tmp_path).problems == ()
    assert _all_views(tmp_path, 3) == before
    assert len({name for *_, name, _ in Cache(tmp_path).snapshot().stretches()}) == 1


@pytest.mark.parametrize(
    "damaged", ["rows.arrow", "plan.json", "signals/view.crop/c/1/0", "records/partner/00000.arrow"]
)
def test_what_was_damaged_is_put_back_byte_for_byte(tmp_path: Path, damaged: str) -> None:
    plan = ViewPlan(EVERY)
    viewed(tmp_path, plan)
    before = tree(tmp_path)
    (folder,) = (tmp_path / "segments").iterdir()
    content = bytearray((folder / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / damaged).write_bytes(content)
    problems = verify(tmp_path).problems
    assert problems
    rows, teacher = ViewedRows(album(), plan, views=2), ViewedTeacher(looker(), plan)
    done = repair(Cache(tmp_path), rows, teacher, problems, runner=LocalRunner())
    assert done.unrepairable == ()
    assert tree(tmp_path) == before
    assert _all_views(tmp_path, 2)


def test_a_view_that_was_lost_is_taught_again(tmp_path: Path) -> None:
    """A segment without its seal, its plan and its rows: only its own views are computed again."""
    plan = ViewPlan(EVERY)
    viewed(tmp_path, plan, views=1)
    viewed(tmp_path, plan, views=2)
    before = _all_views(tmp_path, 2)
    second = sorted((tmp_path / "segments").iterdir())[1]
    for name in ("segment.json", "plan.json", "rows.arrow"):
        (second / name).unlink()
    rows, teacher = ViewedRows(album(), plan, views=2), ViewedTeacher(looker(), plan)
    problems = verify(tmp_path).problems
    done = repair(Cache(tmp_path), rows, teacher, problems, runner=LocalRunner())
    assert done.rows == 12
    assert _all_views(tmp_path, 2) == before
