"""Teaching with books: made once, before the shards; shared by all rows; the same after any kill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import RayRunner
from stillroom.stages import FunctionTeacher
from stillroom.stages.events import BooksMade, CacheChosen, RowsTaught
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.worker.book_work import BookTask, BookWork, spread
from stillroom.storage import Cache, verify
from stillroom.storage.books import books
from stillroom.storage.encodings.product import FITTED_VECTORS
from stillroom.storage.folder import Ask
from tests.stages.book_builders import coded, die, headed, killed
from tests.stages.builders import (
    CLASSES,
    Heard,
    Shuffled,
    Watched,
    answers,
    data,
    plain,
    taught,
    tree,
)


def test_the_order_of_shards_and_the_size_of_batches_do_not_change_a_byte(tmp_path: Path) -> None:
    taught(tmp_path / "here", data(), coded())
    taught(tmp_path / "there", data(), coded(), runner=Shuffled(2), batch_size=7)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


@pytest.mark.slow
def test_workers_in_other_processes_do_not_change_a_byte(
    tmp_path: Path, ray_runner: RayRunner
) -> None:
    for teacher in (coded(), headed()):
        taught(tmp_path / "here", data(), teacher)
        taught(tmp_path / "there", data(), teacher, runner=ray_runner)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


def test_the_teacher_is_loaded_once_in_a_process_and_says_what_it_was_asked(
    tmp_path: Path,
) -> None:
    heard, loads = Heard(), []

    class Counted(FunctionTeacher):
        def load(self) -> Any:
            loads.append(1)
            return super().load()

    teacher = Counted("coded", coded().answer, ("image",), ("feature",), {"feature": "product(2)"})
    taught(tmp_path / "c", data(), teacher, listen=heard)
    (made,) = [e for e in heard.events if isinstance(e, BooksMade)]
    assert (made.teacher, made.signals, made.rows, len(loads)) == ("coded", ("feature",), 60, 1)


def test_rows_that_come_later_are_stored_by_the_same_centroids(tmp_path: Path) -> None:
    first = taught(tmp_path / "c", data(40), coded())
    before, codes = tree(tmp_path / "c"), answers(first, data(40), "feature")
    heard = Heard()
    watched = Watched(coded(), tmp_path / "shown")
    second = taught(tmp_path / "c", data(60, edited=[3]), watched, listen=heard)
    assert watched.shown(data(60, edited=[3])) == sorted(["r3", *(f"r{i}" for i in range(40, 60))])
    assert not [e for e in heard.events if isinstance(e, BooksMade)]
    assert second.signals["feature"].book == first.signals["feature"].book
    assert before.items() <= tree(tmp_path / "c").items()
    kept = [i for i in range(40) if i != 3]
    found = answers(second, data(60), "feature")
    np.testing.assert_array_equal(found[kept], codes[kept])
    again = Cache(tmp_path / "c").snapshot(1)
    np.testing.assert_array_equal(answers(again, data(40), "feature"), codes)
    assert verify(tmp_path / "c").problems == ()


def test_a_signal_that_is_asked_later_gets_its_own_book(tmp_path: Path) -> None:
    taught(tmp_path / "c", data(), coded())
    both = plain(
        "coded",
        ("logits", "feature"),
        encodings={"feature": "product(2,3)", "logits": "product(2)"},
    )
    snapshot = taught(tmp_path / "c", data(), both)
    assert len(books(tmp_path / "c")) == 2
    found = {n: snapshot.signals[n].book for n in ("logits", "feature")}
    assert set(found.values()) == set(books(tmp_path / "c"))
    assert answers(snapshot, data()).shape == (60, CLASSES)


def test_vectors_are_taken_from_rows_all_over_the_data_set(tmp_path: Path) -> None:
    for count in (1, 2, 7, 1000, 65_537):
        order = spread(count, 500)
        assert sorted({*order.tolist()}) == sorted(order.tolist())
        assert len(order) == min(count, 500)
        for taken in (order[: len(order) // 2 + 1], order):
            ends = np.sort(np.concatenate([[-1], taken, [count]]))
            assert np.diff(ends).max() <= 4 * count / len(taken) + 1
    rows = data(3000)
    heard: list[int] = []

    def wide(image: Any) -> dict[str, Any]:
        heard.append(len(image))
        return {"feature": np.repeat(image[:, None], 40, axis=1)}

    teacher = FunctionTeacher("wide", wide, ("image",), ("feature",), version="1")
    work = BookWork(teacher, rows, tmp_path, 100)
    task = BookTask({"feature": Ask("product(2,2)", "")}, np.arange(3000))
    done = work()(task)
    # Sixteen of a row's forty vectors, so that there are a thousand rows among them.
    assert (sum(heard), done.rows) == (1100, 1100)
    assert FITTED_VECTORS == 16 * 1024
    assert BookWork(teacher, rows, tmp_path, 333)()(task).books == done.books


@pytest.mark.parametrize("place", ["no book yet", "book", "draft", "shard", "fourth shard", "seal"])
def test_a_killed_run_goes_on_with_its_book_and_ends_as_one_that_was_not(
    tmp_path: Path, place: str
) -> None:
    def listen(event: object) -> None:
        heard(event)  # type: ignore[arg-type]
        shards = sum(isinstance(e, RowsTaught) for e in heard.events)
        if {"book": 0, "draft": 0, "shard": 1, "fourth shard": 4}.get(place) != shards:
            return
        if isinstance(event, CacheChosen):  # nothing is there yet
            return
        if isinstance(event, BooksMade) is (place == "book"):
            die()

    fatal = {"no book yet": "/books/", "seal": "segment.json"}.get(place)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if fatal and fatal in str(target):
            die()
        real(source, target)

    def teach() -> None:
        vars(os)["replace"] = replace
        taught(tmp_path / "c", data(), coded(), listen=listen)

    heard = Heard()
    killed(teach)
    assert Cache(tmp_path / "c").snapshots() == []
    assert len(books(tmp_path / "c")) == (place != "no book yet")
    assert verify(tmp_path / "c").problems == ()
    again = Heard()
    taught(tmp_path / "c", data(), coded(), listen=again)
    made = any(isinstance(e, BooksMade) for e in again.events)
    assert made == (place in ("no book yet", "book"))
    taught(tmp_path / "whole", data(), coded())
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


def test_a_cut_off_draft_whose_data_changed_hands_on_its_book(tmp_path: Path) -> None:
    def listen(event: object) -> None:
        if isinstance(event, RowsTaught):
            die()

    killed(lambda: taught(tmp_path / "c", data(), coded(), listen=listen))
    (book,) = books(tmp_path / "c")
    snapshot = taught(tmp_path / "c", data(edited=[59]), coded())
    assert books(tmp_path / "c") == [book]
    assert snapshot.signals["feature"].book == book


def test_a_plan_with_a_probe_knows_what_codes_and_states_weigh(tmp_path: Path) -> None:
    for teacher in (coded(), headed()):
        cache = tmp_path / teacher.name
        plan = plan_teach(cache, data(), teacher, probe=True, batch_size=4, shard_rows=10)
        assert plan.to_compute == 60
        assert not (cache / "books").exists()
        taught(cache, data(), teacher)
        assert plan.estimate is not None
