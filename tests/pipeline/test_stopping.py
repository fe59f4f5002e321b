"""Stopping: no item is begun once an end was asked for, none that was begun is lost, and it is said."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stillroom.pipeline import LocalRunner, Run, Step, Stop, Stopped, execute, stopping


def stopping_at(item: int, stop: Stop) -> Callable[[], Callable[[int], int]]:
    """Work during whose item somebody asks for an end."""

    def work(given: int) -> int:
        if given == item:
            stop.ask()
        return given

    return lambda: work


def test_the_item_in_hand_is_finished_and_given() -> None:
    stop = Stop()
    results = LocalRunner(stop).map(stopping_at(2, stop), range(5))
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(Stopped):
        next(results)


def test_a_map_that_is_whole_when_it_is_asked_is_no_stopped_one() -> None:
    stop = Stop()
    assert list(LocalRunner(stop).map(stopping_at(4, stop), range(5))) == [0, 1, 2, 3, 4]
    assert list(LocalRunner(stop).map(stopping_at(0, stop), [])) == []
    with pytest.raises(Stopped):
        list(LocalRunner(stop).map(stopping_at(0, stop), [1]))


def first(run: Run, inputs: object) -> dict[str, int]:
    (run.folder / "first").touch(exist_ok=False)
    run.stop.ask()
    return {}


def second(run: Run, inputs: object) -> dict[str, int]:
    (run.folder / "second").touch()
    return {}


def test_no_step_begins_after_it(tmp_path: Path) -> None:
    steps = [Step("two", second, needs=(Step("one", first),))]
    with pytest.raises(Stopped):
        execute(steps, Run(tmp_path))
    assert (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()
    execute(steps, Run(tmp_path))  # what was finished is kept: it would fail to run again
    assert (tmp_path / "second").exists()


def test_a_first_signal_asks_a_second_one_interrupts_and_handlers_come_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopping() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt) as raised:
            os.kill(os.getpid(), signal.SIGINT)
    assert type(raised.value) is KeyboardInterrupt
    assert "finishing what is in hand" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_signals_are_left_alone() -> None:
    found = []

    def run() -> None:
        with stopping() as stop:
            found.append((stop.asked, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_stopped_is_no_exception_that_user_code_swallows() -> None:
    assert issubclass(Stopped, KeyboardInterrupt)
    assert not issubclass(Stopped, Exception)
