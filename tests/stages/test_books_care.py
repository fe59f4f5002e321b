"""Books under prune, compact, verify, repair and audit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import audit, repair
from stillroom.stages.events import BooksMade, RowsTaught
from stillroom.storage import Cache, CorruptShardError, compact, verify
from stillroom.storage.books import books
from stillroom.storage.care.pruning import prune
from tests.stages.book_builders import book_path, coded, die, flip, headed, killed
from tests.stages.builders import (
    FEATURES,
    Watched,
    answers,
    data,
    taught,
    tree,
)

Change = Callable[[Path], None]


def test_prune_drops_the_books_that_nothing_kept_needs(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    taught(cache, data(), coded())
    (old,) = books(cache)
    taught(cache, data(), coded("product(4,2)", version="2"))
    taught(cache, data(), headed())
    assert prune(Cache(cache)).books == ()
    expected = prune(Cache(cache), keep_last=1, dry_run=True)
    assert expected.books == (old,)
    size = sum(len(content) for content in tree(cache).values())
    assert prune(Cache(cache), keep_last=1) == expected
    assert old not in books(cache)
    assert len(books(cache)) == 2
    assert size - sum(len(content) for content in tree(cache).values()) <= expected.bytes
    assert verify(cache).problems == ()
    assert answers(Cache(cache).snapshot(), data(), "feature").shape == (60, FEATURES)


def test_prune_keeps_the_book_of_a_draft_and_drops_that_of_a_run_killed_before_it(
    tmp_path: Path,
) -> None:
    def after_the_book(event: object) -> None:
        if isinstance(event, BooksMade):
            die()

    killed(lambda: taught(tmp_path / "c", data(), coded(), listen=after_the_book))
    found = verify(tmp_path / "c")
    assert (found.problems, len(found.leftovers)) == ((), 1)
    assert found.leftovers[0].startswith("books/")
    assert len(prune(Cache(tmp_path / "c")).books) == 1
    assert books(tmp_path / "c") == []

    def listen(event: object) -> None:
        if isinstance(event, RowsTaught):
            die()

    killed(lambda: taught(tmp_path / "c", data(), coded(), listen=listen))
    assert prune(Cache(tmp_path / "c")).books == ()
    assert verify(tmp_path / "c").leftovers == ()
    taught(tmp_path / "c", data(), coded())
    assert verify(tmp_path / "c").problems == ()


def test_compact_copies_codes_and_keeps_their_book(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    taught(cache, data(40), coded())
    before = taught(cache, data(60), coded())
    codes = answers(before, data(), "feature")
    assert compact(Cache(cache)).merged
    snapshot = Cache(cache).snapshot()
    assert snapshot.signals == before.signals
    np.testing.assert_array_equal(answers(snapshot, data(), "feature"), codes)
    prune(Cache(cache), keep_last=1)
    assert len(Cache(cache).segments()) == 1
    assert verify(cache).problems == ()
    edited = taught(cache, data(60, edited=[1]), coded())
    assert edited.signals["feature"].book == before.signals["feature"].book


def _remove(cache: Path) -> None:
    book_path(cache).unlink()


def _add(cache: Path) -> None:
    (cache / "books" / "notes.txt").write_text("mine")


def _exchange(cache: Path) -> None:
    """A book that is whole, under the name of another."""
    from stillroom.storage.books import write_book

    other = write_book(cache, {"centroids": np.ones((2, 8, 4), np.float32)})
    path = cache / "books" / f"{other}.arrow"
    first = min(p for p in (cache / "books").iterdir() if p != path)
    path.replace(first)


DAMAGES: Mapping[str, Change] = {
    "a byte": lambda cache: flip(book_path(cache), 400),
    "the last byte": lambda cache: flip(book_path(cache), -1),
    "gone": _remove,
    "another": _exchange,
}


@pytest.mark.parametrize("teacher", [coded(), headed()], ids=["codes", "head"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_book_is_found_refused_and_made_again(
    tmp_path: Path, teacher: Any, damage: str
) -> None:
    cache, name = tmp_path / "c", "logits" if teacher.name == "headed" else "feature"
    exact = answers(taught(cache, data(), teacher), data(), name)
    before = tree(cache)
    DAMAGES[damage](cache)
    with pytest.raises(CorruptShardError, match="books"):
        answers(Cache(cache).snapshot(), data(), name)
    (problem,) = verify(cache).problems
    assert (problem.path, problem.segment) == (next(n for n in before if "books" in n), None)
    done = repair(Cache(cache), data(), teacher, [problem], runner=LocalRunner())
    assert (done.put_back, done.unrepairable) == ((problem.path,), ())
    assert tree(cache) == before
    np.testing.assert_array_equal(answers(Cache(cache).snapshot(), data(), name), exact)


def test_a_head_is_made_again_also_when_its_rows_are_gone(tmp_path: Path) -> None:
    taught(tmp_path / "c", data(), headed())
    before = tree(tmp_path / "c")
    _remove(tmp_path / "c")
    problems = verify(tmp_path / "c").problems
    repair(Cache(tmp_path / "c"), data(20), headed(), problems, runner=LocalRunner())
    assert tree(tmp_path / "c") == before


def test_codes_of_a_lost_book_that_cannot_be_made_again_are_taught_again(tmp_path: Path) -> None:
    cache, edited = tmp_path / "c", data(edited=[5])
    taught(cache, data(), coded())
    taught(cache, edited, coded())
    _remove(cache)
    problems = verify(cache).problems
    done = repair(Cache(cache), edited, coded(), problems, runner=LocalRunner())
    assert len([p for p in done.quarantined if p.startswith("segments/")]) == 2
    assert (done.put_back, done.unrepairable) == ((), ())
    assert verify(cache).problems == ()
    found = answers(Cache(cache).snapshot(), edited, "feature")
    assert np.abs(found - edited.read(np.arange(60), ["image"])["image"] - 1).mean() < 0.7


def test_a_book_of_another_teacher_is_left_to_that_one(tmp_path: Path) -> None:
    taught(tmp_path / "c", data(), coded())
    _remove(tmp_path / "c")
    problems = verify(tmp_path / "c").problems
    done = repair(Cache(tmp_path / "c"), data(), headed(), problems, runner=LocalRunner())
    assert "another teacher needs it" in done.unrepairable[0].what


def test_a_file_that_is_no_book_is_named_and_put_aside(tmp_path: Path) -> None:
    taught(tmp_path / "c", data(), coded())
    before = tree(tmp_path / "c")
    _add(tmp_path / "c")
    (problem,) = verify(tmp_path / "c").problems
    assert (problem.path, problem.what) == ("books/notes.txt", "is named by nothing in the cache")
    repair(Cache(tmp_path / "c"), data(), coded(), [problem], runner=LocalRunner())
    assert {n: c for n, c in tree(tmp_path / "c").items() if "quarantine" not in n} == before


@pytest.mark.parametrize("teacher", [coded(), headed()], ids=["codes", "head"])
def test_repair_computes_a_shard_by_the_same_book(tmp_path: Path, teacher: Any) -> None:
    cache = tmp_path / "c"
    taught(cache, data(), teacher)
    before = tree(cache)
    (segment,) = (cache / "segments").iterdir()
    pattern = "*feature.codes/c/2/*" if teacher.name == "coded" else "logits/c/2/*"
    (path,) = (segment / "signals").glob(pattern)
    flip(path, 5)
    problems = verify(cache).problems
    done = repair(Cache(cache), data(), teacher, problems, runner=LocalRunner())
    assert (done.rows, len(done.put_back)) == (10, 1)
    assert tree(cache) == before
    (segment / "plan.json").unlink()
    repair(Cache(cache), data(), teacher, verify(cache).problems, runner=LocalRunner())
    assert tree(cache) == before


@pytest.mark.parametrize("teacher", [coded(), headed("head(2,float16)")], ids=["codes", "head"])
def test_audit_knows_what_a_book_loses_from_what_is_wrong(tmp_path: Path, teacher: Any) -> None:
    cache = tmp_path / "c"
    name = "logits" if teacher.name == "headed" else "feature"
    taught(cache, data(), teacher)
    report = audit(Cache(cache), data(), teacher, runner=LocalRunner())
    assert report.faithful
    assert report.loss[name]["rms"] > 0
    taught(tmp_path / "lie", data(), Shifted(teacher), batch_size=10)
    found = audit(Cache(tmp_path / "lie"), data(), teacher, runner=LocalRunner(), rows_per_shard=9)
    assert {s.signal for s in found.shards if not s.faithful} >= {name}


class Shifted(Watched):
    """A teacher that answers for the row behind."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner, Path(os.devnull))

    def load(self) -> Any:
        answer = self.inner.load()

        class Moved:
            def constants(self, name: str) -> Any:
                return answer.constants(name)  # type: ignore[attr-defined]

            def __call__(self, batch: Any) -> Any:
                return answer({n: np.roll(c, 1, axis=0) for n, c in batch.items()})

        return Moved()
