"""A cache is opened or made at a path; anything else there is refused and left alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stillroom.storage.cache import Cache
from stillroom.storage.errors import FormatError, NotACacheError, StillroomError
from stillroom.storage.files import TEMPORARY
from stillroom.storage.signal import Values
from stillroom.storage.testing import SmallCache, on_disk


def test_a_cache_is_made_where_nothing_is_and_opened_where_one_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "deep" / "er", tmp_path / "empty"):
        made = Cache.at(path)
        content = (path / "cache.json").read_bytes()
        assert Cache.at(str(path)).path == Cache(path).path == made.path == path
        assert (path / "cache.json").read_bytes() == content
        assert (made.segments(), made.drafts(), made.snapshots()) == ([], [], [])
        assert repr(made) == f"<Cache {path}: 0 snapshots>"


def test_opening_a_cache_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotACacheError, match="no such folder"):
        Cache(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        Cache(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for opened in (Cache, Cache.at):
        with pytest.raises(NotACacheError, match=r"no cache\.json"):
            opened(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for path in (file, file / "below", file / "far" / "below"):
        with pytest.raises(NotACacheError):
            Cache.at(path)
    assert file.read_text() == "precious"


def test_a_cache_cut_off_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}0123-cache.json").write_text("{")
    assert Cache.at(tmp_path).segments() == []


def test_a_newer_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    Cache.at(tmp_path)
    (tmp_path / "cache.json").write_text('{"format": 99}')
    with pytest.raises(
        FormatError, match=r"format 99; this stillroom reads formats up to 2\. Upgr"
    ):
        Cache.at(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b"{}", b"1" * 5000, b"[" * 100_000),
        *(b'{"format": "1"}', b'{"format": 0}', b'{"format": null}', b'{"format": 1.0}'),
    ],
    ids=lambda c: c[:16],
)
def test_a_marker_that_says_nothing_is_a_format_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"cache\.json"):
        Cache.at(tmp_path)


def test_a_marker_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache.json").mkdir()
    with pytest.raises(StillroomError, match=r"cache\.json"):
        Cache.at(tmp_path)


def test_everything_written_is_json_zarr_or_arrow(small: SmallCache) -> None:
    keys = ["a", "b"]
    values: dict[str, Values] = {"x": np.zeros((2, 2), "f4"), "t": ["one", "two"]}
    with small.cache.writing("0" * 64):
        small.commit(keys, [small.teach(keys, values)])
    kinds = set()
    for path in on_disk(small.cache.path).rglob("*"):
        if path.is_file() and "/c/" not in str(path):
            kinds.add(path.suffix)
            if path.suffix == ".json":
                assert isinstance(json.loads(path.read_bytes()), dict)
    assert kinds == {".json", ".arrow", ""}  # leases/lock is empty
