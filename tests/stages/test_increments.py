"""Histories of a data set: at each step the teacher is asked for the changed rows, once, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages.data.rows import ArrayRows, Rows
from stillroom.storage import Cache, Snapshot
from tests.stages.builders import Heard, Watched, answers, doubled, images, plain, taught
from tests.stages.containers import in_dataset, in_parquet

FEATURES = images(1).shape[1]
Content = dict[str, int]
"""What a data set holds: a version of each row, by key."""


def rows_of(content: Content, order: list[str] | None = None) -> ArrayRows:
    """A row's image is a function of its key and version."""
    keys = order or list(content)
    return ArrayRows(keys, image=pictures([(key, content[key]) for key in keys]))


def pictures(rows: list[tuple[str, int]]) -> Any:
    image = np.zeros((len(rows), FEATURES), np.float32)
    image[:, 0] = [int(key[1:]) * 100 + version for key, version in rows]
    image[:, 1:] = np.arange(1, FEATURES)
    return image


def expected(rows: Rows) -> Any:
    image = rows.read(np.arange(len(rows)), ["image"])["image"]
    assert isinstance(image, np.ndarray)
    return doubled(image)["logits"]


edits = st.lists(
    st.tuples(st.sampled_from(["add", "edit", "delete", "undo", "reorder"]), st.integers(0, 99)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(edits, min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 7))
def test_a_row_is_asked_for_once_for_each_of_its_contents(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[list[tuple[str, int]]],
    shard_rows: int,
    batch_size: int,
) -> None:
    folder = tmp_path_factory.mktemp("history")
    teacher = Watched(plain(), folder / "shown")
    content: Content = {f"r{i}": 0 for i in range(10)}
    known: set[tuple[str, int]] = set()
    seen: list[tuple[Snapshot, ArrayRows]] = []
    for changes in [[], *history]:
        order = apply(content, changes)
        rows = rows_of(content, order)
        fresh = {(key, content[key]) for key in order} - known
        heard = Heard()
        snapshot = taught(
            folder / "c", rows, teacher, batch_size=batch_size, shard_rows=shard_rows, listen=heard
        )
        assert teacher.shown(rows) == sorted(key for key, _ in fresh)
        assert heard.taught == len(fresh)
        known |= fresh
        seen.append((snapshot, rows))
    for snapshot, rows in seen:  # also what was replaced since is what it was
        again = Snapshot(folder / "c", snapshot.number)
        np.testing.assert_array_equal(answers(again, rows), expected(rows))


def apply(content: Content, changes: list[tuple[str, int]]) -> list[str]:
    """Change the data set in place; the order of its rows. One row always stays."""
    order = list(content)
    for kind, number in changes:
        key = list(content)[number % len(content)]
        if kind == "add":
            content[f"r{10 + number}"] = content.get(f"r{10 + number}", 0)
        elif kind == "edit":
            content[key] += 1
        elif kind == "undo":
            content[key] = 0
        elif kind == "delete" and len(content) > 1:
            del content[key]
        order = [k for k in order if k in content]
        order += [k for k in content if k not in order]
        if kind == "reorder":
            order = order[number % len(order) :] + order[: number % len(order)]
    return order


def as_arrays(folder: Path, rows: ArrayRows) -> Rows:
    return rows


def as_parquet(folder: Path, rows: ArrayRows) -> Rows:
    image = rows.read(np.arange(len(rows)), ["image"])["image"]
    return in_parquet(folder, rows.keys.to_pylist(), {"image": image})


def as_dataset(folder: Path, rows: ArrayRows) -> Rows:
    image = rows.read(np.arange(len(rows)), ["image"])["image"]
    # Nobody says that its fingerprint changed: trust what the rows hold.
    return in_dataset(rows.keys.to_pylist(), {"image": image}, trust="content")


@pytest.mark.parametrize("container", [as_arrays, as_parquet, as_dataset])
def test_one_percent_of_every_change_computes_that_alone(
    tmp_path: Path, container: Callable[[Path, ArrayRows], Rows]
) -> None:
    content = {f"r{i}": 0 for i in range(2000)}
    first = container(tmp_path / "rows", rows_of(content))
    before = taught(tmp_path / "c", first, batch_size=50, shard_rows=100)
    kept = answers(before, first)
    for i in range(0, 2000, 100):  # 1% edited, 1% added, 1% gone, and all in another order
        content[f"r{i}"] += 1
        content[f"r{2000 + i // 100}"] = 0
        del content[f"r{i + 1}"]
    now = container(tmp_path / "rows", rows_of(content, sorted(content)))
    heard, made = Heard(), len(shards(tmp_path / "c"))
    after = taught(tmp_path / "c", now, batch_size=50, shard_rows=100, listen=heard)
    assert heard.taught == 40
    assert len(shards(tmp_path / "c")) == made + 1  # 40 rows fill no shard; one holds them
    np.testing.assert_array_equal(answers(after, now), expected(now))
    older = Snapshot(tmp_path / "c", before.number)
    np.testing.assert_array_equal(answers(older, rows_of({f"r{i}": 0 for i in range(2000)})), kept)


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("segments/*/receipts/*.json"))


def test_a_signal_and_a_teacher_that_are_added_to_edited_rows_compute_only_themselves(
    tmp_path: Path,
) -> None:
    content = {f"r{i}": 0 for i in range(30)}
    both = ("logits", "feature")
    taught(tmp_path / "c", rows_of(content), plain())
    content |= {"r3": 1, "r99": 0}
    rows, heard = rows_of(content), Heard()
    snapshot = taught(tmp_path / "c", rows, plain(signals=both), listen=heard)
    # The feature of every row, and the logits of the two rows that changed: no row is asked twice.
    assert heard.taught == 31
    asked = {tuple(s.signals): s.rows for s in Cache(tmp_path / "c").segments()[1:]}
    assert {frozenset(names): rows for names, rows in asked.items()} == {
        frozenset({"feature"}): 29,
        frozenset(both): 2,
    }
    np.testing.assert_array_equal(answers(snapshot, rows), expected(rows))
    heard = Heard()
    snapshot = taught(tmp_path / "c", rows, plain("other", answer=tripled), listen=heard)
    assert heard.taught == 31
    for name, factor in (("plain/logits", 2), ("other/logits", 3)):
        np.testing.assert_array_equal(answers(snapshot, rows, name), expected(rows) / 2 * factor)
    heard = Heard()  # a name is no part of an identity: what the other one said is said already
    snapshot = taught(tmp_path / "c", rows, plain("third", answer=tripled), listen=heard)
    assert heard.taught == 0
    np.testing.assert_array_equal(answers(snapshot, rows, "third/logits"), expected(rows) * 1.5)


def tripled(image: Any) -> dict[str, Any]:
    return {"logits": image[:, :4] * 3}
