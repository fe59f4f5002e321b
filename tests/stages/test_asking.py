"""Batches that do not fit into memory: halved, remembered, noted; an error where one row is too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import probe, repair
from stillroom.stages.data.rows import Batch
from stillroom.stages.events import BooksMade, RowsTaught
from stillroom.stages.teachers.teacher import Answer
from stillroom.stages.worker.asking import Asking, out_of_memory
from stillroom.storage import Cache, verify
from stillroom.storage.errors import OutOfMemoryError, SignalError
from tests.stages.builders import Heard, Watched, answers, data, images, plain, taught, tree
from tests.storage.caches import flip

INFINITE = float("inf")


def torchs_own(rows: int) -> None:
    """torch's CPU allocator, which cannot have so much (2**60 bytes)."""
    import torch

    torch.empty(2**60, dtype=torch.uint8)


def numpys_own(rows: int) -> None:
    np.empty(2**60, np.uint8)


def cudas_words(rows: int) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def onnx_words(rows: int) -> None:
    raise Exception("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer")


def limited(most: int, fail: Callable[[int], None] = numpys_own) -> Any:
    """A teacher with room for so many rows; the batches that it was given are kept in `.seen`."""

    def answer(image: Any) -> Any:
        answer.seen.append(len(image))  # type: ignore[attr-defined]
        if len(image) > most:
            fail(len(image))
        return {"logits": image[:, :4] * 2}

    answer.seen = []  # type: ignore[attr-defined]
    return answer


@pytest.mark.parametrize("fail", [torchs_own, numpys_own, cudas_words, onnx_words])
def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_remembered(
    tmp_path: Path, fail: Any
) -> None:
    answer, heard = limited(3, fail), Heard()
    how: dict[str, Any] = {"batch_size": 16, "shard_rows": 30, "band": INFINITE, "listen": heard}
    snapshot = taught(tmp_path / "c", teacher=plain(answer=answer), **how)
    np.testing.assert_array_equal(answers(snapshot, data()), images(60)[:, :4] * 2)
    assert answer.seen[:4] == [16, 8, 4, 2]
    assert set(answer.seen[3:]) == {2}
    events = [event for event in heard.events if isinstance(event, RowsTaught)]
    assert [(event.rows, event.halved) for event in events] == [(30, 3), (30, 0)]


@pytest.mark.parametrize("fail", [numpys_own, onnx_words])
def test_a_book_is_made_in_batches_that_fit_and_is_the_same_one(tmp_path: Path, fail: Any) -> None:
    """Its vectors are a function of the rows, so halving changes no byte of what they are stored by."""
    answer = limited(3, fail)
    coded: dict[str, Any] = {"signals": ("logits",), "encodings": {"logits": "product(2,3)"}}
    how: dict[str, Any] = {"batch_size": 16, "shard_rows": 30, "band": INFINITE}
    heard = Heard()
    halved = taught(tmp_path / "c", teacher=plain(answer=answer, **coded), listen=heard, **how)
    assert answer.seen[:5] == [16, 8, 4, 2, 2]  # of the book
    (made,) = [event for event in heard.events if isinstance(event, BooksMade)]
    assert made.rows == 60
    whole = taught(tmp_path / "whole", teacher=plain(answer=limited(99), **coded), **how)
    books = [
        {p.name: p.read_bytes() for p in (tmp_path / c / "books").iterdir()} for c in ("c", "whole")
    ]
    assert books[0] == books[1]
    np.testing.assert_array_equal(answers(halved, data()), answers(whole, data()))


def test_a_row_that_is_too_much_for_a_book_is_named(tmp_path: Path) -> None:
    teacher = plain(answer=limited(0), encodings={"logits": "product(2,3)"})
    with pytest.raises(OutOfMemoryError, match="for row 'r0' alone, a batch of 1"):
        taught(tmp_path / "c", teacher=teacher, batch_size=4)


class Cramped(Watched):
    """The same teacher on a machine where three rows fit."""

    def load(self) -> Answer:
        answer = self.inner.load()

        def cramped(batch: Batch) -> Any:
            if len(batch["image"]) > 3:
                raise MemoryError
            return answer(batch)

        return cramped


def test_bytes_of_a_teacher_whose_rows_are_independent_do_not_change(tmp_path: Path) -> None:
    taught(tmp_path / "whole", batch_size=16)
    taught(tmp_path / "halved", teacher=Cramped(plain(), tmp_path / "log"), batch_size=16)
    assert tree(tmp_path / "halved") == tree(tmp_path / "whole")


def test_without_a_shortage_nothing_is_noted(tmp_path: Path) -> None:
    taught(tmp_path / "c", batch_size=7, shard_rows=30)
    for path in (tmp_path / "c").rglob("made/0*.json"):
        if "segments" in path.parts:
            noted = json.loads(path.read_text())
            assert noted["batch_size"] == 7
            assert not {"halved", "sizes"} & noted.keys()


def test_a_size_is_kept_for_the_shards_of_all_drafts_of_a_worker(tmp_path: Path) -> None:
    answer = limited(5)
    how: dict[str, Any] = {
        "batch_size": 8,
        "shard_rows": 10,
        "snapshot_every": 20,
        "band": INFINITE,
    }
    taught(tmp_path / "c", teacher=plain(answer=answer), **how)
    assert answer.seen.count(8) == 1
    assert len(list((tmp_path / "c" / "segments").iterdir())) == 3


def test_a_row_that_does_not_fit_alone_names_everything(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        taught(tmp_path / "c", teacher=plain("huge", answer=limited(0)), band=INFINITE)
    assert isinstance(caught.value, MemoryError)
    for word in ("'huge'", "row 'r0' alone", "batch of 1", "halved 2 times", "half precision"):
        assert word in str(caught.value)
    assert Cache(tmp_path / "c").snapshots() == []
    assert taught(tmp_path / "c", teacher=plain("huge", answer=limited(9))).rows == 60


def test_a_probe_halves_batches_as_teaching_does() -> None:
    found = probe(data(40), plain(answer=limited(3)), np.arange(40), plain().asks(), batch_size=8)
    assert {batch.rows for block in found.blocks for batch in block.batches} == {2}


def test_an_error_of_another_kind_is_not_asked_again(tmp_path: Path) -> None:
    answer = limited(3, lambda rows: [][rows])
    with pytest.raises(IndexError):
        taught(tmp_path / "c", teacher=plain(answer=answer))
    assert answer.seen == [4]
    assert not out_of_memory(SignalError("out of memory"))
    assert not out_of_memory(FileNotFoundError("out of memory.txt"))
    assert out_of_memory(OSError(12, "Cannot allocate memory"))


def counted(image: Any) -> Any:
    """Answers that hang on the size of the batch, as last bits do; not more than 5 rows fit at once,
    and not more than 2 of those with a high number."""
    if len(image) > (2 if image[0, 0] >= 25 else 5):
        raise MemoryError
    return {"logits": image + np.float32(len(image)) * 1e-6}


def test_repair_gives_the_bytes_of_a_shard_in_which_memory_ran_out(tmp_path: Path) -> None:
    rows = data(image=np.arange(60, dtype="f4")[:, None])
    cache, teacher = tmp_path / "c", plain(answer=counted)
    taught(cache, rows, teacher, batch_size=10, shard_rows=30)
    before = tree(cache)
    (made,) = cache.glob("segments/*/made/00000.json")
    assert json.loads(made.read_text())["sizes"] == [5, 5, 5, 5, 5, 2]
    assert json.loads(made.read_text())["halved"] == 2
    for path in cache.glob("segments/*/signals/logits/c/*/0"):
        flip(next(path.iterdir()) if path.is_dir() else path, 100)
    done = repair(Cache(cache), rows, teacher, verify(cache).problems, runner=LocalRunner())
    assert (done.rows, done.retaught) == (60, ())
    assert tree(cache) == before


def test_sizes_that_were_noted_shrink_where_less_fits_now() -> None:
    answer = limited(2)
    teacher = plain(answer=answer)
    asking = Asking(teacher, teacher.load(), data(), 8)
    found = [len(asked.places) for asked in asking.each(np.arange(11), (4, 4, 3))]
    assert found == [2, 2, 2, 2, 2, 1]
    assert answer.seen == [4, 2, 2, 2, 2, 2, 1]
