"""What is stored with a book comes back as the teacher said it, and mistakes are named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.pipeline import LocalRunner
from stillroom.stages import FunctionTeacher, ModuleTeacher, audit
from stillroom.storage import Cache, CorruptShardError, Ragged, Reader, SignalError, verify
from stillroom.storage.books import books, read_book
from stillroom.storage.errors import UnknownSignalError
from stillroom.storage.lazy import dask_array
from stillroom.storage.mirror import Mirror
from stillroom.storage.objects import ObjectPlace
from tests.stages.book_builders import book_path, coded, headed
from tests.stages.builders import (
    CLASSES,
    FEATURES,
    answers,
    data,
    images,
    plain,
    taught,
    tree,
)
from tests.storage.s3_server import s3_server


def live(teacher: ModuleTeacher, name: str = "") -> Any:
    """What the module itself says about every row."""
    given = ModuleTeacher(
        "live", teacher.module, layers={"logits": name}, precision=teacher.precision
    )
    return given.load()({"image": images(60)})["logits"]


@pytest.mark.parametrize(("precision", "size"), [("", 64), (",float16", 32), (",bfloat16", 32)])
def test_a_head_gives_the_logits_of_the_live_module(
    tmp_path: Path, precision: str, size: int
) -> None:
    teacher = headed(f"head(2{precision})")
    snapshot = taught(tmp_path / "c", data(), teacher)
    stored = snapshot.signals["logits"]
    assert (stored.shape, stored.row_bytes) == ((16,), size)
    np.testing.assert_allclose(
        answers(snapshot, data()),
        live(teacher),
        atol=0.05 if precision else 2e-6,
    )
    (segment,) = Cache(tmp_path / "c").segments()
    assert (segment.errors["logits"]["kl"] > 0) == bool(precision)
    assert dask_array(snapshot, "logits").compute().shape == (60, CLASSES)
    assert verify(tmp_path / "c").problems == ()


def test_a_head_without_bias_that_shares_its_weight_with_an_embedding(tmp_path: Path) -> None:
    teacher = headed("head(words)", module=tied, layers={"logits": "head:input"})
    snapshot = taught(tmp_path / "c", data(), teacher)
    book = read_book(tmp_path / "c", snapshot.signals["logits"].book)
    assert {n: a.shape for n, a in book.arrays.items()} == {"weight": (12, 5)}
    np.testing.assert_allclose(answers(snapshot, data()), live(teacher), atol=1e-6)
    other = taught(
        tmp_path / "d", data(), headed("head(head)", module=tied, layers={"logits": "head:input"})
    )
    assert other.signals["logits"].book == snapshot.signals["logits"].book


def tied() -> Any:
    """A body, and a head whose weight is that of an embedding."""
    import torch
    from torch import nn

    torch.manual_seed(5)
    module = nn.Sequential()
    module.add_module("body", nn.Linear(FEATURES, 5))
    module.add_module("norm", nn.LayerNorm(5))
    module.add_module("head", nn.Linear(5, 12, bias=False))
    words = nn.Embedding(12, 5)
    module[2].weight = words.weight

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.body, self.norm, self.head = words, module[0], module[1], module[2]

        def forward(self, image: Any) -> Any:
            return self.head(self.norm(self.body(image)))

    return Tied()


def halved() -> Any:
    """`net`, its weights and numbers bfloat16."""
    import torch
    from torch import nn

    torch.manual_seed(3)

    class Cast(nn.Module):
        def forward(self, image: Any) -> Any:
            return image.to(torch.bfloat16)

    return nn.Sequential(Cast(), nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES)).to(
        torch.bfloat16
    )


def test_a_bfloat16_model_needs_two_bytes_a_number_and_loses_none(tmp_path: Path) -> None:
    teacher = headed("head(3,bfloat16)", module=halved, layers={"logits": "3:input"})
    snapshot = taught(tmp_path / "c", data(), teacher)
    signal = snapshot.signals["logits"]
    book = read_book(tmp_path / "c", signal.book)
    assert (signal.row_bytes, book.arrays["weight"].dtype.name) == (32, "uint16")
    state = live(teacher, "3:input")
    weight, bias = (book.wide(n).astype("f8") for n in ("weight", "bias"))
    np.testing.assert_allclose(answers(snapshot, data()), state @ weight.T + bias, atol=1e-5)
    # The module itself rounds its sums to eight bits.
    np.testing.assert_allclose(answers(snapshot, data()), live(teacher), rtol=2**-7, atol=2**-7)


def test_codes_are_those_of_the_nearest_centroids(tmp_path: Path) -> None:
    snapshot = taught(tmp_path / "c", data(), coded())
    stored = snapshot.signals["feature"]
    assert (stored.shape, stored.row_bytes) == ((FEATURES,), 2)
    book = read_book(tmp_path / "c", stored.book)
    assert book.arrays["centroids"].shape == (2, 8, 4)
    found, exact = answers(snapshot, data(), "feature"), images(60) + 1
    pieces = exact.reshape(60, 2, 1, 4) - book.arrays["centroids"]
    best = (pieces.astype("f8") ** 2).sum(-1).min(-1)
    np.testing.assert_allclose(((found - exact).reshape(60, 2, 4) ** 2).sum(-1), best, rtol=1e-4)
    (segment,) = Cache(tmp_path / "c").segments()
    assert 0.5 < segment.errors["feature"]["cosine"] < 1
    np.testing.assert_array_equal(dask_array(snapshot, "feature").compute()[0].shape, (FEATURES,))


def many(number: Any) -> dict[str, Any]:
    """Integers, and rows of vectors that differ in length; few distinct ones."""
    base = np.arange(12).reshape(2, 6)
    return {
        "whole": (number[:, None] % 7 * base[0] - 20).astype("i2"),
        "tokens": [np.resize(base[n % 2 :: 2], (n % 4, 6)).astype("f2") for n in number],
        "grid": np.resize(number[:, None, None] % 3 + base, (len(number), 2, 6)).astype("f8"),
    }


def test_integers_ragged_rows_and_outer_axes_with_few_distinct_vectors_come_back_exactly(
    tmp_path: Path,
) -> None:
    rows = data(50, number=np.arange(50))
    names = ("whole", "tokens", "grid")
    teacher = FunctionTeacher("many", many, ("number",), names, dict.fromkeys(names, "product(3)"))
    snapshot = taught(tmp_path / "c", rows, teacher)
    exact = many(np.arange(50))
    for name in ("whole", "grid"):
        np.testing.assert_array_equal(answers(snapshot, rows, name), exact[name])
    tokens = answers(snapshot, rows, "tokens")
    assert isinstance(tokens, Ragged)
    for mine, theirs in zip(tokens, exact["tokens"], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert verify(tmp_path / "c").problems == ()
    assert audit(Cache(tmp_path / "c"), rows, teacher, runner=LocalRunner()).faithful


def test_a_reader_travels_without_its_book(tmp_path: Path) -> None:
    reader = Reader(taught(tmp_path / "c", data(), coded()))
    again = copy.copy(reader)  # by what is sent to another process
    assert "centroids" not in repr(reader.__reduce__())
    there, here = again.take(np.arange(5)), reader.take(np.arange(5))
    np.testing.assert_array_equal(there["feature"], here["feature"])
    book_path(tmp_path / "c").unlink()
    with pytest.raises(CorruptShardError, match="is missing, without which"):
        copy.copy(reader)


def test_a_store_of_objects_holds_and_reads_books_as_a_folder_does(tmp_path: Path) -> None:
    with s3_server() as port:
        given = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}
        given["endpoint"] = f"http://127.0.0.1:{port}"
        mirror = Mirror(tmp_path / "mirror", 2**30)
        place = ObjectPlace.at("s3://caches/c", mirror=mirror, options=given)
        for teacher, name in ((coded(), "feature"), (headed(), "headed/logits")):
            snapshot = taught(place, data(), teacher, shard_rows=30)
            here = taught(tmp_path / "c", data(), teacher, shard_rows=30)
            exact = answers(here, data(), name)
            np.testing.assert_array_equal(answers(snapshot, data(), name), exact)
        found = {str(p).removeprefix(f"{place}/"): p.read_bytes() for p in place.below()}
        assert {n: c for n, c in found.items() if n.startswith("books/")} == {
            n: c for n, c in tree(tmp_path / "c").items() if n.startswith("books/")
        }
        assert verify(place).problems == ()
        digest = snapshot.signals["feature"].book
        victim = place / "books" / f"{digest}.arrow"
        content = bytearray(victim.read_bytes())
        copied = mirror.place(str(victim), digest)
        copied.write_bytes(content[:-1] + b"x")  # a copy that was spoilt is fetched again
        assert read_book(place, digest).arrays["centroids"].shape == (2, 8, 4)
        content[300] ^= 1
        victim.put(bytes(content))
        copied.unlink()
        with pytest.raises(CorruptShardError, match=r"s3://caches/c/books/"):
            answers(snapshot, data(), "feature")
        victim.remove()
        with pytest.raises(CorruptShardError, match=r"s3://caches/c/books/.* is missing"):
            answers(snapshot, data(), "feature")
        assert {p.path for p in verify(place).problems} == {f"books/{digest}.arrow"}


def test_a_teacher_without_a_head_to_give_says_so(tmp_path: Path) -> None:
    teacher = plain("plain", encodings={"logits": "head(lm_head)"})
    with pytest.raises(SignalError, match=r"'plain', signal 'logits': head\(lm_head\) .*constants"):
        taught(tmp_path / "c", data(), teacher)
    assert books(tmp_path / "c") == []
    assert Cache(tmp_path / "c").drafts() == []


def test_a_plain_teacher_may_give_constants(tmp_path: Path) -> None:
    class Giving(FunctionTeacher):
        def load(self) -> Any:
            answer = super().load()

            class Loaded:
                def constants(self, name: str) -> dict[str, Any]:
                    return {"weight": np.eye(8, 4).T, "bias": None}

                def __call__(self, batch: Any) -> Any:
                    return answer(batch)

            return Loaded()

    teacher = Giving("own", coded().answer, ("image",), ("feature",), {"feature": "head(x)"})
    snapshot = taught(tmp_path / "c", data(), teacher)
    np.testing.assert_allclose(answers(snapshot, data(), "feature"), images(60)[:, :4] + 1)


@pytest.mark.parametrize(
    ("encoding", "layer", "error", "words"),
    [
        ("head(3)", "2:input", UnknownSignalError, "has no layer '3'"),
        ("head(1)", "2:input", SignalError, "'1' is a ReLU; a head is a Linear layer"),
        ("head(2)", "2", SignalError, "has 4 numbers .* reads 16; .*'2:input'"),
        ("product(5)", "1", SignalError, "'logits'.*product"),
    ],
)
def test_what_does_not_fit_is_named_with_the_way_out(
    tmp_path: Path, encoding: str, layer: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        taught(tmp_path / "c", data(), headed(encoding, layers={"logits": layer}))
