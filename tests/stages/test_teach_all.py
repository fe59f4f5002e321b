"""Several teachers in one run: together as one after another, and no error costs what others did."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner, RayRunner
from stillroom.stages import Assignment, FunctionTeacher, Teacher, teach_all
from stillroom.stages.events import RowsTaught, TeachFinished
from stillroom.storage import Cache, Snapshot
from stillroom.storage.care.verifying import verify
from stillroom.storage.errors import BusyError, SignalError
from tests.stages.builders import (
    Heard,
    Watched,
    answers,
    data,
    doubled,
    images,
    network,
    plain,
    stamps,
    taught,
    tree,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def broken(image: Any) -> dict[str, Any]:
    raise ArithmeticError("this teacher broke")


def tripled(image: Any) -> dict[str, Any]:
    return {"logits": image[:, :3] * 3}


def tripling(name: str = "other") -> FunctionTeacher:
    return FunctionTeacher(name, tripled, ("image",), ("logits",))


@dataclass
class Meeting:
    """A runner that waits after its first item until the others are there: they must run together."""

    barrier: threading.Barrier

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        for number, result in enumerate(LocalRunner().map(build, items)):
            if number == 0:
                self.barrier.wait(timeout=100)
            yield result


def taught_all(path: Path, *given: Assignment | Teacher, **how: Any) -> Snapshot:
    """Teach in small shards, those without a runner in turns in this process."""
    each = [a if isinstance(a, Assignment) else Assignment(a) for a in given]
    each = [replace(a, batch_size=4, shard_rows=10) for a in each]
    return teach_all(Cache.at(path), data(), each, **{"runner": LocalRunner(), **how})


def test_together_is_one_after_another_byte_for_byte(tmp_path: Path) -> None:
    encoded = network("coded", encodings={"feature": "product(4,2)"})  # makes a book first
    snapshot = taught_all(tmp_path / "turns", plain(), encoded, tripling())
    barrier = threading.Barrier(2)
    first, last = (Assignment(t, Meeting(barrier)) for t in (plain(), tripling()))
    taught_all(tmp_path / "threads", first, Assignment(encoded, LocalRunner()), last)
    assert tree(tmp_path / "threads") == tree(tmp_path / "turns")
    assert snapshot.number == 1
    assert verify(tmp_path / "threads").problems == ()
    rows = data()
    np.testing.assert_array_equal(answers(snapshot, rows, "plain/logits"), images(60)[:, :4] * 2)
    np.testing.assert_array_equal(answers(snapshot, rows, "other/logits"), images(60)[:, :3] * 3)


def test_what_each_answers_is_what_it_answers_alone(tmp_path: Path) -> None:
    snapshot = taught_all(tmp_path / "all", plain(), network())
    for name, teacher in (("plain", plain()), ("net", network())):
        alone = taught(tmp_path / name, teacher=teacher)
        np.testing.assert_array_equal(
            answers(snapshot, data(), f"{name}/logits"), answers(alone, data())
        )


@pytest.mark.slow
def test_several_runners_over_one_ray(tmp_path: Path, ray_runner: RayRunner) -> None:
    few = [replace(ray_runner, workers=1), replace(ray_runner, workers=2, num_cpus=0.5)]
    given = [Assignment(network(), few[0]), Assignment(plain(), few[1])]
    taught_all(tmp_path / "ray", *given)
    taught_all(tmp_path / "local", network(), plain())
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_a_rerun_loads_no_teacher_and_writes_nothing(tmp_path: Path) -> None:
    taught_all(tmp_path / "c", plain(), tripling())
    before = stamps(tmp_path)
    silent = [Watched(t, tmp_path / "x", forbidden=True) for t in (plain(), tripling())]
    heard = Heard()
    assert taught_all(tmp_path / "c", *silent, listen=heard).number == 1
    assert stamps(tmp_path) == before
    assert [type(e) for e in heard.events] == [TeachFinished, TeachFinished]
    only_new = taught_all(tmp_path / "c", *silent, network())
    assert {s.teacher for s in only_new.sources} == {"plain", "other", "net"}


@pytest.mark.parametrize("at_once", [False, True])
def test_a_teacher_that_fails_costs_the_others_nothing(tmp_path: Path, at_once: bool) -> None:
    bad = plain("bad", answer=broken)
    given = [Assignment(t, LocalRunner() if at_once else None) for t in (plain(), bad, tripling())]
    with pytest.raises(ArithmeticError, match="this teacher broke"):
        taught_all(tmp_path / "c", *given)
    snapshot = Cache(tmp_path / "c").snapshot()
    assert {s.teacher for s in snapshot.sources} == {"plain", "other"}
    assert snapshot.rows == 60
    silent = [Watched(t, tmp_path / "x", forbidden=True) for t in (plain(), tripling())]
    mended = plain("bad", answer=doubled, version="mended")
    watched = Watched(mended, tmp_path / "shown")
    whole = taught_all(tmp_path / "c", *silent, watched)
    assert len(set(watched.shown(data()))) == 60
    assert {s.teacher for s in whole.sources} == {"plain", "other", "bad"}


def test_errors_of_several_are_raised_together(tmp_path: Path) -> None:
    def nan(image: Any) -> dict[str, Any]:
        return {"logits": image * np.nan}

    bad = [plain("bad", answer=broken), plain("worse", answer=nan)]
    with pytest.raises(ExceptionGroup, match="2 of 3 teachers failed: bad, worse") as raised:
        taught_all(tmp_path / "c", bad[0], plain(), bad[1])
    assert [type(e) for e in raised.value.exceptions] == [ArithmeticError, SignalError]
    assert [s.teacher for s in Cache(tmp_path / "c").snapshot().sources] == ["plain"]


def test_one_that_is_busy_elsewhere_does_not_stop_the_others(tmp_path: Path) -> None:
    from stillroom.storage.identity import digest

    cache = Cache.at(tmp_path / "c")
    with cache.writing(digest(tripling().identity())), pytest.raises(BusyError):
        taught_all(tmp_path / "c", plain(), tripling())
    assert [s.teacher for s in cache.snapshot().sources] == ["plain"]


def test_teachers_that_commit_at_the_same_moment_lose_nothing(tmp_path: Path) -> None:
    """Not one call but many, each with its own teacher, thread and snapshot."""
    names = [f"t{i}" for i in range(6)]
    start, errors = threading.Barrier(len(names)), []

    def run(name: str) -> None:
        try:
            start.wait()
            taught(tmp_path / "c", teacher=plain(name, version=name), shard_rows=60)
        except BaseException as error:
            errors.append(error)

    Cache.at(tmp_path / "c")
    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    cache = Cache(tmp_path / "c")
    assert cache.snapshots() == [1, 2, 3, 4, 5, 6]
    lineage = [cache.snapshot(n) for n in cache.snapshots()]
    assert [s.parent for s in lineage] == [None, 1, 2, 3, 4, 5]
    assert [len(s.sources) for s in lineage] == [1, 2, 3, 4, 5, 6]
    assert {s.teacher for s in lineage[-1].sources} == set(names)
    assert verify(tmp_path / "c").problems == ()


def test_events_come_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def listen(event: object) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.002)
        with lock:
            inside -= 1

    barrier = threading.Barrier(2)
    given = [Assignment(t, Meeting(barrier)) for t in (plain(), tripling())]
    taught_all(tmp_path / "c", *given, listen=listen)
    assert most == 1


def test_two_of_one_name_and_one_without_a_runner_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different names, found plain, plain"):
        taught_all(tmp_path / "c", plain(), plain())
    with pytest.raises(ValueError, match="different names, found none"):
        taught_all(tmp_path / "c")
    with pytest.raises(ValueError, match="same and plain are the same one"):
        taught_all(tmp_path / "c", plain("same"), plain())
    with pytest.raises(ValueError, match="'plain' has no runner"):
        taught_all(tmp_path / "c", plain(), runner=None)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["cache.json"]


def test_a_listener_that_raises_ends_the_run_after_the_shard_in_hand(tmp_path: Path) -> None:
    def listen(event: object) -> None:
        if isinstance(event, RowsTaught):
            raise OSError("the log is full")

    watched = Watched(plain(), tmp_path / "shown")
    with pytest.raises(OSError, match="the log is full"):
        taught(tmp_path / "c", teacher=watched, listen=listen)
    assert len(set(watched.shown(data()))) == 10  # one shard
    (draft,) = Cache(tmp_path / "c").drafts()
    assert list(draft.receipts()) == [0]
    heard = Heard()
    taught(tmp_path / "c", teacher=watched, listen=heard)
    assert heard.taught == 50
    taught(tmp_path / "whole")
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")
