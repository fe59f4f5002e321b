"""Every runner keeps the same promises; Ray's also outlives workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import RayRunner, Runner, RunnerError, WorkerLost, WorkersChanged
from stillroom.stages import ArrayRows, FunctionTeacher, teach
from stillroom.storage import Cache

Work = Callable[[int], int]


@pytest.fixture(scope="module")
def ray_runner() -> Iterator[RayRunner]:
    """One Ray for all tests here: starting it takes seconds."""
    with RayRunner(workers=2) as runner:
        yield runner


def square() -> Work:
    def work(item: int) -> int:
        return item * item

    return work


def by_value(function: Callable[[], Work]) -> Callable[[], Work]:
    """A function of this file that a worker need not import: a closure travels whole."""
    return lambda: function()


def test_every_item_gives_its_result(runner: Runner) -> None:
    build = by_value(square)
    assert sorted(runner.map(build, range(50))) == [n * n for n in range(50)]


def test_work_is_built_at_most_once_in_each_worker(runner: Runner, tmp_path: Path) -> None:
    def build() -> Work:
        (tmp_path / f"{time.time_ns()}-{os.getpid()}").touch()
        return lambda item: os.getpid()

    pids = set(runner.map(build, range(30)))
    built = [path.name.split("-")[1] for path in tmp_path.iterdir()]
    assert len(built) == len(set(built)) <= 2
    assert {int(pid) for pid in built} >= pids


def test_maps_in_one_block_share_worker_processes_and_drop_what_was_built_before(
    ray_runner: RayRunner,
) -> None:
    class Kept:
        """Something that a worker holds on to, such as a loaded teacher."""

    def first() -> Work:
        kept = Kept()
        return lambda item: os.getpid() if kept else 0

    def second() -> Work:
        import gc

        alive = sum(type(thing).__name__ == "Kept" for thing in gc.get_objects())
        return lambda item: -os.getpid() if alive == 0 else 0

    before = set(ray_runner.map(first, range(20)))
    after = {-pid for pid in ray_runner.map(second, range(20))}
    assert 0 not in after
    assert after <= before | set(ray_runner.map(first, range(20)))
    assert after & before


def test_nothing_is_built_for_no_items(runner: Runner) -> None:
    def build() -> Work:
        raise AssertionError("built for nothing")

    assert list(runner.map(build, [])) == []


def test_ray_is_not_even_started_for_no_items() -> None:
    check = (
        "import sys; from stillroom.pipeline import RayRunner\n"
        "assert list(RayRunner(workers=2).map(lambda: str, [])) == []\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_an_exception_of_the_work_is_raised_as_it_is(runner: Runner) -> None:
    def build() -> Work:
        def work(item: int) -> int:
            if item == 3:
                raise LookupError(f"item {item} is not there")
            return item

        return work

    with pytest.raises(LookupError, match=r"^item 3 is not there$") as raised:
        list(runner.map(build, range(10)))
    assert type(raised.value) is LookupError
    assert list(runner.map(by_value(square), [2])) == [4]


def test_an_exception_of_building_is_raised_as_it_is_and_at_once(runner: Runner) -> None:
    def build() -> Work:
        raise FileNotFoundError("no weights at teacher.pt")

    started = time.perf_counter()
    with pytest.raises(FileNotFoundError, match="no weights at teacher"):
        list(runner.map(build, range(10)))
    assert time.perf_counter() - started < 20


def test_items_are_not_drawn_further_ahead_than_is_in_flight(runner: Runner) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for item in range(40):
            drawn += 1
            yield item

    for count, _ in enumerate(runner.map(by_value(square), items()), 1):
        # Two workers with two items each; the one just given back has left its place.
        assert drawn <= count + 3
    assert drawn == 40


def test_a_map_may_be_left_half_done(runner: Runner) -> None:
    results = runner.map(by_value(square), range(100))
    assert next(results) in {0, 1, 4, 9}
    del results
    assert sorted(runner.map(by_value(square), [5])) == [25]


def test_items_of_a_killed_worker_are_done_by_another(
    ray_runner: RayRunner, tmp_path: Path
) -> None:
    marker = tmp_path / "died"

    def build() -> Work:
        def work(item: int) -> int:
            if item == 3 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return item

        return work

    heard: list[object] = []
    runner = replace(ray_runner, listen=heard.append)
    assert sorted(runner.map(build, range(12))) == list(range(12))
    assert marker.exists()
    (lost,) = [event for event in heard if isinstance(event, WorkerLost)]
    # On a busy machine the worker may die before its last answer was fetched: then that is awaited.
    assert lost.item in ("0", "1", "2", "3")
    assert (lost.attempt, lost.attempts) == (1, 3)
    assert any(isinstance(event, WorkersChanged) for event in heard)


def test_an_item_that_always_kills_its_worker_is_named_after_three_attempts(
    ray_runner: RayRunner, tmp_path: Path
) -> None:
    def build() -> Work:
        def work(item: int) -> int:
            if item == 3:
                (tmp_path / f"{time.time_ns()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return item

        return work

    # Items wait behind the killer in its worker's queue: they must not be blamed for it.
    with pytest.raises(RunnerError, match=r"^3 was tried 3 times and its worker died each time"):
        list(ray_runner.map(build, range(8)))
    # An answer on its way when the worker died is lost: the first time its item may be blamed.
    assert len(list(tmp_path.iterdir())) in (3, 4)


def test_results_that_were_finished_before_a_worker_died_are_given(
    ray_runner: RayRunner, tmp_path: Path
) -> None:
    single = RayRunner(workers=1, in_flight=4)

    def build() -> Work:
        def work(item: int) -> int:
            with open(tmp_path / "done", "a") as log:
                log.write(f"{item}\n")
            if item == 2 and len((tmp_path / "done").read_text().splitlines()) == 3:
                time.sleep(0.5)  # what was answered before is on its way
                os.kill(os.getpid(), signal.SIGKILL)
            return item

        return work

    assert sorted(single.map(build, range(4))) == [0, 1, 2, 3]
    done = (tmp_path / "done").read_text().split()
    assert (done.count("0"), done.count("1"), done.count("2")) == (1, 1, 2)


def object_store_bytes() -> int:
    """Bytes of this Ray's object store that were ever written: its memory file is sparse."""
    import ray

    worker: Any = ray._private.worker
    (raylet,) = worker._global_node.all_processes["raylet"]
    found = 0
    for number in Path(f"/proc/{raylet.process.pid}/fd").iterdir():
        if "plasma" in os.readlink(number) and "(deleted)" in os.readlink(number):
            found += 512 * number.stat().st_blocks
    return found


def test_answers_never_travel_through_the_object_store(
    ray_runner: RayRunner, tmp_path: Path
) -> None:
    def wide(number: Any) -> dict[str, Any]:
        return {"wide": np.repeat(number[:, None], 4096, axis=1)}

    rows = ArrayRows(range(2_000), number=np.arange(2_000, dtype="f4"))
    teacher = FunctionTeacher("wide", wide, ("number",), ("wide",))
    list(ray_runner.map(by_value(square), range(4)))
    before = object_store_bytes()
    snapshot = teach(Cache.at(tmp_path / "c"), rows, teacher, runner=ray_runner, shard_rows=100)
    assert snapshot.rows == 2_000
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert stored > 32_000_000
    # The rows, once for this node, and what teaching tells its workers; no answer.
    assert object_store_bytes() - before < 1_000_000
    # What does travel is seen: arrays as results.
    assert [len(given) for given in ray_runner.map(lambda: np.ones, [4_000_000] * 2)]
    assert object_store_bytes() - before > 32_000_000


def test_ray_outlives_the_thread_that_started_it() -> None:
    check = """
import threading
from stillroom.pipeline import RayRunner

with RayRunner(workers=1) as runner:
    first = threading.Thread(target=lambda: print(list(runner.map(lambda: abs, [-1, 2]))))
    first.start()
    first.join()
    print(list(runner.map(lambda: abs, [-3])))
"""
    done = subprocess.run(
        [sys.executable, "-c", check], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:2] == ["[1, 2]", "[3]"]


def test_more_workers_than_there_is_room_for_do_not_wait_for_ever(ray_runner: RayRunner) -> None:
    assert sorted(RayRunner(workers=64).map(by_value(square), range(70)))[-1] == 69 * 69


def test_idle_workers_of_one_runner_make_room_for_those_of_another(ray_runner: RayRunner) -> None:
    def build() -> Work:
        def work(item: int) -> int:
            time.sleep(0.3)
            return os.getpid()

        return work

    assert (
        len(set(ray_runner.map(build, range(6)))) == 2
    )  # both are kept, idle, on all CPUs there are
    other = RayRunner(workers=2, worker_wait_s=30)
    assert len(set(other.map(build, range(6)))) == 2
    assert len(set(ray_runner.map(build, range(6)))) == 2


def test_a_worker_that_can_never_start_is_an_error(ray_runner: RayRunner) -> None:
    with pytest.raises(
        RunnerError,
        match=r"needs 1 CPU, 7 GPU; GPU is missing: Ray has 2 CPU, 0 GPU in all, on 1 node",
    ):
        list(RayRunner(workers=1, num_gpus=7).map(by_value(square), [1]))


def test_work_that_a_worker_cannot_import_is_an_error_that_names_it(
    ray_runner: RayRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def build():\n    return abs\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # after Ray has started: workers do not know it
    import importlib

    module = importlib.import_module("only_here")
    started = time.perf_counter()
    with pytest.raises(RunnerError, match=r"on .* has no module 'only_here'.*runtime_env="):
        list(ray_runner.map(module.build, [1]))
    assert time.perf_counter() - started < 20


def test_an_exception_that_does_not_pickle_still_ends_the_map(ray_runner: RayRunner) -> None:
    def build() -> Work:
        class AwkwardError(Exception):
            def __init__(self, first: str, second: str) -> None:
                super().__init__(f"{first} and {second}")

        def work(item: int) -> int:
            raise AwkwardError("this", "that")

        return work

    with pytest.raises(Exception, match="this and that"):
        list(ray_runner.map(build, [1]))


def test_an_unreachable_cluster_is_an_error() -> None:
    check = (
        "from stillroom.pipeline import RayRunner, RunnerError\n"
        "try:\n    list(RayRunner(address='127.0.0.1:9').map(lambda: str, [1]))\n"
        "except RunnerError as error:\n    assert '127.0.0.1:9' in str(error), error\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    # Ray itself would try again for more than a minute.
    subprocess.run([sys.executable, "-c", check], check=True, timeout=20)


def test_without_ray_the_message_offers_the_local_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunnerError, match=r"ray is not installed.*LocalRunner"):
        list(RayRunner(workers=1).map(by_value(square), [1]))
