"""What a teacher says wrongly is refused with names, and costs nothing that is stored."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.stages import ArrayRows
from stillroom.storage import BusyError, Cache, StoreFullError
from stillroom.storage.errors import RowsError, SignalError, UnknownSignalError
from tests.stages.builders import Heard, answers, data, images, network, plain, taught, tree

Answer = Callable[[Any], Any]


def short(image: Any) -> Any:
    return {"logits": image[1:]}


def hole(image: Any) -> Any:
    return {"logits": np.where(image == images(60)[17, 2], np.nan, image)}


def deep_hole(image: Any) -> Any:
    record = np.zeros(len(image), [("box", "f4", (4,)), ("n", "i4")])
    record["box"][:, 3] = np.where(image[:, 0] == images(60)[17, 0], np.inf, 0)
    return {"logits": record}


def ragged_hole(image: Any) -> Any:
    return {"logits": [row[:3] if row[0] != images(60)[17, 0] else row * np.inf for row in image]}


def other_name(image: Any) -> Any:
    return {"logit": image}


def bare(image: Any) -> Any:
    return image


def uneven(image: Any) -> Any:
    return {"logits": image[:, :4] if image[0, 0] != images(60)[4, 0] else image}


def uneven_dtype(image: Any) -> Any:
    return {"logits": image if image[0, 0] != images(60)[4, 0] else image.astype("f8")}


def uneven_shards(image: Any) -> Any:
    later = {float(v) for v in images(60)[20:30, 0]}
    return {"logits": image[:, :4] if float(image[0, 0]) not in later else image}


def boxes(image: Any) -> Any:
    return {"logits": [np.zeros((2, 3 + i % 2)) for i in range(len(image))]}


def numbers(image: Any) -> Any:
    return {"logits": [0.5 for _ in image]}


def objects(image: Any) -> Any:
    return {"logits": np.array([{}] * len(image))}


def nothing(image: Any) -> Any:
    return {"logits": None}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (short, "'plain', signal 'logits': 3 rows came back for 4 rows"),
        (hole, "NaN or infinity for 1 of 4 rows of a batch: 'r17'"),
        (deep_hole, "NaN or infinity for 1 of 4 rows of a batch: 'r17'"),
        (ragged_hole, "NaN or infinity for 1 of 4 rows of a batch: 'r17'"),
        (other_name, "gave no signal 'logits'; did you mean 'logit'"),
        (bare, "'plain' returned a ndarray; expected {signal: rows}"),
        (uneven, r"row shape \(4,\) became \(8,\) from one batch to the next"),
        (uneven_dtype, "dtype 'float32' became 'float64' from one batch to the next"),
        (uneven_shards, r"'logits' changed between shards: row shape \(4,\) became \(8,\)"),
        (boxes, "list whose items cannot lie in one array"),
        (numbers, "list whose items cannot lie in one array"),
        (objects, "dtype 'object' cannot be stored"),
        (nothing, "came back as NoneType"),
    ],
)
def test_an_answer_that_cannot_be_stored_is_refused(
    tmp_path: Path, answer: Answer, message: str
) -> None:
    first = taught(tmp_path / "c", teacher=plain("good"))
    before = tree(tmp_path / "c")
    for _ in range(2):  # a second try says the same
        with pytest.raises(SignalError, match=message):
            taught(tmp_path / "c", teacher=plain(answer=answer))
    assert Cache(tmp_path / "c").snapshot().number == first.number
    assert before.items() <= tree(tmp_path / "c").items()
    np.testing.assert_array_equal(answers(first, data()), images(60)[:, :4] * 2)


def test_shards_that_disagreed_do_not_end_later_runs(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match="changed between shards"):
        taught(tmp_path / "c", teacher=plain(answer=uneven_shards))
    mended = ArrayRows(data().keys, image=images(60, seed=8))
    snapshot = taught(tmp_path / "c", mended, plain(answer=uneven_shards))
    assert snapshot.rows == 60


def test_a_value_too_large_for_float16_names_the_signal_and_the_way_out(tmp_path: Path) -> None:
    def large(image: Any) -> Any:
        return {"logits": image * 1e5}

    with pytest.raises(SignalError, match=r"'logits'.*does not fit float16.*bfloat16 or float32"):
        taught(tmp_path / "c", teacher=plain(answer=large, encodings={"logits": "float16"}))


def test_an_unknown_layer_is_named_with_the_nearest(tmp_path: Path) -> None:
    from torch import nn

    module = nn.Sequential()
    module.add_module("features", nn.Linear(8, 4))
    teacher = network(module=module, layers={"logits": "feature"})
    with pytest.raises(UnknownSignalError, match=r"'net' has no layer 'feature'; did you mean 'fe"):
        taught(tmp_path / "c", teacher=teacher)


def test_an_encoding_of_a_signal_that_is_not_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match="encoding for 'logit', which teacher 'net' does not"):
        taught(tmp_path / "c", teacher=network(encodings={"logit": "float16"}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "b", "a"], "1 keys stand for more than one row: a"),
        (None, "needs stable keys"),
        (["a", "b"], "3 rows, there are 2 keys"),
        ([1.5, 2.5, 3.5], "must all be integers or all be strings"),
    ],
)
def test_a_data_set_without_one_key_for_each_row_is_refused(keys: Any, message: str) -> None:
    with pytest.raises(RowsError, match=message):
        ArrayRows(keys, image=images(3))


def test_a_disk_that_fills_up_keeps_finished_shards_and_a_later_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()

    def full(descriptor: int, part: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def listen(event: Any) -> None:
        heard(event)
        if heard.taught == 30:
            monkeypatch.setattr("stillroom.storage.files.os.write", full)

    with pytest.raises(StoreFullError, match="no room to write"):
        taught(tmp_path / "c", listen=listen)
    monkeypatch.undo()
    assert list(tmp_path.rglob(".tmp-*")) == []
    again = Heard()
    taught(tmp_path / "c", listen=again)
    assert again.taught == 30
    taught(tmp_path / "whole")
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


def _hold(path: Path, held: Any, done: Any, digest: str) -> None:
    with Cache(path).writing(digest):
        held.set()
        done.wait(30)


def test_a_second_teaching_process_is_told_who_is_writing(tmp_path: Path) -> None:
    first = taught(tmp_path / "c", data(20))
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(
        target=_hold, args=(tmp_path / "c", held, done, first.sources[0].digest)
    )
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(BusyError, match=f"process {other.pid} on "):
            taught(tmp_path / "c")
        # Readers, and a run with nothing to do, need no lock.
        assert taught(tmp_path / "c", data(20)).number == first.number
        assert answers(first, data(20)).shape == (20, 4)
    finally:
        done.set()
        other.join()
    assert taught(tmp_path / "c").rows == 60


def test_a_listener_that_fails_leaves_the_cache_free(tmp_path: Path) -> None:
    def listen(event: Any) -> None:
        raise OSError("the screen is gone")

    with pytest.raises(OSError, match="the screen is gone"):
        taught(tmp_path / "c", listen=listen)
    assert taught(tmp_path / "c").rows == 60


def test_an_exception_of_the_teacher_is_raised_as_it_is(tmp_path: Path) -> None:
    def broken(image: Any) -> Any:
        raise ZeroDivisionError(f"pid {os.getpid()} cannot")

    with pytest.raises(ZeroDivisionError, match=f"pid {os.getpid()} cannot"):
        taught(tmp_path / "c", teacher=plain(answer=broken))
