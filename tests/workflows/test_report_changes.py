"""What changed since the last page: students, metrics, teachers and rows; and files of others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from stillroom.storage.errors import FormatError
from stillroom.workflows.reporting.changes import results_beside
from stillroom.workflows.reporting.writing import write_page
from tests.workflows.report_builders import Page, plainly, realistic, segment, student, undrawn


def changed(before: dict[str, Any], now: dict[str, Any], folder: Path) -> Page:
    for results in (before, now):
        write_page(results, folder / "report.html")
    return Page((folder / "report.html").read_text("utf-8"))


def test_says_what_changed_since_the_last_page(tmp_path: Path) -> None:
    before, now = (undrawn(*realistic()["students"][5:]) for _ in range(2))
    now["students"][1] = student(
        "CNN, soft targets", "cnn-8", "soft targets", True, 0.99, digest="b"
    )
    now["students"][2] |= {"name": "CNN, hints"}
    for results in (before, now):
        results["cache"] = realistic()["cache"] | {"signals": []}
    cache = now["cache"] = copy.deepcopy(now["cache"])
    cache["segments"].append(segment(2, rows=40, why="40 rows edited", seconds=0.2))
    cache["teachers"][0] |= {"digest": "other", "differs": ["weights.conv1: changed"]}
    cache |= {"rows": 4040, "snapshot": 4}
    now["when"] = "2026-11-22 14:00 UTC"
    page = changed(before, now, tmp_path)
    said = plainly(page)
    assert (
        "What changed since 2026-11-21 14:00 UTC New: 'CNN, hints'. Gone: 'CNN, features'." in said
    )
    assert "Trained again or with other seeds: 1; as it was: 1 student." in said
    assert "Teacher 'wide-cnn x5': another identity: weights.conv1: changed." in said
    assert "The cache serves 4,040 rows, 4,000 before." in said
    assert "Taught by 'wide-cnn x5': 40 rows in 200 ms (40 rows edited)." in said
    assert "again: 0, 1, 2, 3, 4 96.5% → 99.0% +2.5 points, better" in said
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["changes"]["since"] == "2026-11-21 14:00 UTC"
    assert "inputs" not in json.dumps(kept["differing"])


def test_a_page_that_is_written_twice_is_the_same(tmp_path: Path) -> None:
    one, two = (undrawn(*realistic()["students"][:count]) for count in (2, 3))
    assert "What changed" not in changed(one, one, tmp_path).text
    changed(one, two, tmp_path)
    files = [tmp_path / "report.html", tmp_path / "results.json"]
    before = [file.read_bytes() for file in files]
    assert b"New:" in before[0]
    write_page(two, files[0])
    assert [file.read_bytes() for file in files] == before


def test_another_file_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "results.json"
    place.write_text('{"mine": 1}')
    with pytest.raises(FormatError, match="is not the results file of a report"):
        write_page(undrawn(student("s", "a", "r", True, 0.9)), tmp_path / "report.html")
    assert place.read_text() == '{"mine": 1}'
    assert not (tmp_path / "report.html").exists()
    assert results_beside(tmp_path / "weekly.html").name == "weekly-results.json"


@pytest.mark.parametrize("damage", [{"students": None}, {"students": [{}]}, {"cache": {"rows": 1}}])
def test_a_results_file_that_somebody_edited_is_not_compared(
    damage: dict[str, Any], tmp_path: Path
) -> None:
    now = undrawn(student("s", "a", "r", True, 0.9)) | {"cache": realistic()["cache"]}
    for signal in now["cache"]["signals"]:
        signal["bytes"] = 0  # no bars
    (tmp_path / "results.json").write_text(json.dumps(now | damage))
    write_page(now, tmp_path / "report.html")
    assert "What changed" not in (tmp_path / "report.html").read_text()
