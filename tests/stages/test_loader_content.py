"""The loader as a data source of any trainer: what is in a batch, and what is refused beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.stages import ArrayRows, FunctionTeacher, ViewPlan, loader
from stillroom.stages.views.boxes import Crop, Flip
from stillroom.storage import Reader, Snapshot
from stillroom.storage.errors import RowsError, UnknownRowError, UnknownSignalError, ViewError
from tests.stages.builders import data, every_kind, plain, taught
from tests.stages.loader_builders import KEYS, ROWS
from tests.stages.view_builders import album, viewed

# More processes than cores are not wrong, only slower.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return taught(tmp_path_factory.mktemp("loader") / "c", data(ROWS), plain(signals=("logits",)))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Every kind of signal, of 23 rows."""
    return taught(tmp_path_factory.mktemp("kinds") / "c", *every_kind())


def test_rows_are_joined_by_key_in_any_order(snapshot: Snapshot) -> None:
    rows, keys = data(ROWS), [KEYS[i] for i in (50, 3, 3, 41, 7)]
    feed = loader(snapshot, ["logits"], rows=rows, columns=["image", "label"], keys=keys)
    (batch,) = feed
    named = [feed.keys[i].as_py() for i in batch["batch.index"].tolist()]
    assert sorted(named) == sorted(keys)
    at = np.array([KEYS.index(key) for key in named])
    columns = rows.read(at, ["image", "label"])
    assert (batch["row.image"].numpy() == columns["image"]).all()
    assert (batch["row.label"].numpy() == columns["label"]).all()
    assert (batch["teacher.logits"].numpy() == np.asarray(columns["image"])[:, :4] * 2).all()
    # Without a data set all that was taught, without signals the data set alone.
    assert sorted(loader(snapshot, ["logits"]).keys.to_pylist()) == sorted(KEYS)
    alone = next(iter(loader(snapshot, [], rows=rows, columns=["label"], shuffle=False)))
    assert alone["row.label"].tolist() == rows.read(np.arange(ROWS), ["label"])["label"].tolist()  # type: ignore[union-attr]


def test_what_is_missing_is_said_before_the_first_batch(tmp_path: Path) -> None:
    old = data(20)
    taught(tmp_path / "c", data(12), plain("second", ("feature",)))
    snapshot = taught(tmp_path / "c", old, plain("first"))
    with pytest.raises(
        UnknownSignalError, match=r"lacks 2 of .*'lgits': did you mean 'logits'"
    ) as e:
        loader(snapshot, ["lgits", "feature", "hint"])
    assert "'hint': " in str(e.value)
    with pytest.raises(UnknownRowError, match=r"2 of 4 rows are not in snapshot.*: no, nor"):
        loader(snapshot, ["logits"], keys=["r1", "no", "r2", "nor"])
    with pytest.raises(
        RowsError, match=r"8 rows are not in the data set: r12, r13, r14, r15, r16 and 3"
    ):
        loader(snapshot, ["logits"], rows=data(12), keys=KEYS[:20])
    with pytest.raises(UnknownRowError, match=r"'feature' .*never taught for 8 of .*r12, r13"):
        loader(snapshot, ["logits", "feature"], rows=old)
    with pytest.raises(RowsError, match=r"2 rows .*changed since teacher 'first' answered.*r3, r4"):
        loader(snapshot, ["logits"], rows=data(20, edited=[3, 4]))
    assert len(loader(snapshot, ["logits"], rows=data(20, edited=[3]), compare=False)) == 1
    with pytest.raises(RowsError, match="the loader reads column 'imag'"):
        loader(snapshot, ["logits"], rows=old, columns=["imag"])
    with pytest.raises(RowsError, match="columns come from a data set"):
        loader(snapshot, ["logits"], columns=["image"])
    with pytest.raises(RowsError, match="no rows were chosen"):
        loader(snapshot, ["logits"], keys=[])
    with pytest.raises(ViewError, match="holds no views"):
        loader(snapshot, ["logits"], rows=old, views=1)


def tripled(image: Any) -> dict[str, Any]:
    return {"logits": image * 3}


def test_every_signal_that_lacks_rows_is_named(tmp_path: Path) -> None:
    taught(tmp_path / "c", data(6), plain("third", answer=tripled))
    taught(tmp_path / "c", data(12), plain("second", ("feature",)))
    snapshot = taught(tmp_path / "c", data(20), plain("first", ("logits",)))
    with pytest.raises(UnknownRowError) as error:
        loader(snapshot, ["first/logits", "feature", "third/logits"], keys=KEYS[:14])
    said = str(error.value).splitlines()
    assert len(said) == 2
    assert "'feature'" in said[0]
    assert "2 of the rows asked for: r12, r13." in said[0]
    assert "'third/logits'" in said[1]
    assert "8 of the rows asked for: r6, r7, r8, r9, r10 and 3 more." in said[1]


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"batch_size": 0}, ValueError, "batch_size and world_size: expected at least 1"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank: expected 0 to 1"),
        ({"rank": 1}, ValueError, "belong together"),
        ({"ragged": "lists"}, ValueError, "'padded', 'nested' or 'flat', found 'lists'"),
        ({"prefetch": -1}, ValueError, "prefetch: expected 0 or more, found -1"),
        ({"columns": "image"}, TypeError, "columns: expected a list of names"),
        ({"parts": ["hint"]}, ValueError, "hint are not among the signals"),
    ],
)
def test_settings_that_make_no_sense(snapshot: Snapshot, how: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        loader(snapshot, ["logits"], rows=data(ROWS), **how)


def test_padded_nested_and_flat_hold_the_same(kinds: Snapshot) -> None:
    ragged = {"tokens": (), "scores": (2,)}
    modes: Any = ("padded", "nested", "flat")
    feeds = [loader(kinds, list(ragged), batch_size=5, ragged=mode, seed=2) for mode in modes]
    for padded, nested, flat_ in zip(*feeds, strict=True):
        for name, shape in ragged.items():
            n = f"teacher.{name}"
            offsets = flat_[f"{n}.offsets"]
            assert torch.equal(offsets.diff(), padded[f"{n}.length"])
            for i, row in enumerate(nested[n].unbind()):
                assert row.shape[1:] == shape
                assert torch.equal(row, flat_[n][offsets[i] : offsets[i + 1]])
                assert torch.equal(row, padded[n][i, : len(row)])
                assert not padded[n][i, len(row) :].any()
        key = int(padded["batch.index"][0])
        assert torch.equal(nested["teacher.tokens"].unbind()[0], torch.arange(key % 4).int())


def test_nested_rows_come_through_processes(kinds: Snapshot) -> None:
    feed = loader(kinds, ["scores"], batch_size=5, ragged="nested", workers=2)
    alone = loader(kinds, ["scores"], batch_size=5, ragged="nested")
    for one, other in zip(feed, alone, strict=True):
        assert all(
            map(torch.equal, one["teacher.scores"].unbind(), other["teacher.scores"].unbind())
        )


def test_parts_are_what_the_encoding_stores(kinds: Snapshot) -> None:
    (dense,) = loader(kinds, ["few", "wide"], shuffle=False)
    (sparse,) = loader(kinds, ["few", "wide"], shuffle=False, parts=["few"])
    assert torch.equal(sparse["teacher.wide"], dense["teacher.wide"])
    index, values = sparse["teacher.few.indices"], sparse["teacher.few.values"]
    assert (index.dtype, values.dtype, "teacher.few" in sparse) == (
        torch.int64,
        torch.float32,
        False,
    )
    found = dense["teacher.few"].gather(1, index)
    assert torch.allclose(found, values + sparse["teacher.few.logsumexp"][:, None], atol=1e-6)


def tokens(number: Any) -> dict[str, Any]:
    """A logit of each of nine classes for up to four tokens."""
    return {
        "logits": [np.sin(np.outer(np.arange(n % 5), np.arange(9))).astype("f4") for n in number]
    }


def test_parts_of_ragged_rows_share_their_lengths(tmp_path: Path) -> None:
    teacher = FunctionTeacher("t", tokens, ("number",), ("logits",), {"logits": "topk(2)"})
    snapshot = taught(tmp_path / "c", ArrayRows(range(12), number=np.arange(12)), teacher)
    (padded,) = loader(snapshot, ["logits"], parts=["logits"], shuffle=False)
    (nested,) = loader(snapshot, ["logits"], parts=["logits"], shuffle=False, ragged="nested")
    assert padded["teacher.logits.length"].tolist() == [n % 5 for n in range(12)]
    assert padded["teacher.logits.indices"].shape == (12, 4, 2)
    both = nested["teacher.logits.values"] + nested["teacher.logits.indices"]
    wide = padded["teacher.logits.values"] + padded["teacher.logits.indices"]
    for i, row in enumerate(both.unbind()):
        assert torch.equal(row, wide[i, : i % 5])


def test_views_are_replayed_and_checked(tmp_path: Path) -> None:
    rows, plan = album(), ViewPlan((Crop((0.5, 1.0)), Flip()), seed=3)
    snapshot = viewed(tmp_path, plan, rows, views=2)
    how: Any = {"columns": ["image", "label"], "views": 2, "batch_size": 5, "seed": 4}
    feed = loader(snapshot, ["logits"], rows=rows, **how)
    seen = [list(feed), list(feed), list(feed)]
    assert [len(epoch) for epoch in seen] == [3, 3, 3]
    by_row = [
        {
            int(i): image
            for b in epoch
            for i, image in zip(b["batch.index"], b["row.image"], strict=True)
        }
        for epoch in seen
    ]
    assert any(not torch.equal(by_row[0][i], by_row[1][i]) for i in range(12))
    assert all(torch.equal(by_row[0][i], by_row[2][i]) for i in range(12))
    other = album(12, edited=[6])
    with pytest.raises(RowsError, match="changed since"):
        loader(snapshot, ["logits"], rows=other, **how)
    with pytest.raises(ViewError, match="not what teacher 'looker' saw"):
        list(loader(snapshot, ["logits"], rows=other, compare=False, **how))
    with pytest.raises(UnknownRowError, match="not in snapshot"):
        loader(snapshot, ["logits"], rows=rows, **{**how, "views": 3})
    # Without views: the rows as they are, and view 0 alone where no data set says which rows.
    assert sorted(loader(snapshot, ["logits"]).keys.to_pylist()) == sorted(rows.keys.to_pylist())
    pairs = [("p1", 2), ("p1", 1), ("p0", 2)]
    (batch,) = loader(snapshot, ["logits"], keys=pairs, shuffle=False)
    expected = Reader(snapshot, ["logits"]).gather(pairs)["logits"]
    assert (batch["teacher.logits"].numpy() == expected).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to pin memory for")
def test_memory_is_pinned_where_there_is_a_gpu(kinds: Snapshot) -> None:
    for mode in ("padded", "nested", "flat"):
        for batch in loader(kinds, ["scores", "wide"], ragged=mode):
            assert all(t.is_pinned() for t in batch.values())
