"""Teachers that cannot be cached: random, or saying of a row what depends on the rest of the batch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stillroom.stages import ArrayRows, FunctionTeacher, ModuleTeacher, RoutedTeacher, Teacher
from stillroom.stages.events import RowsTaught
from stillroom.stages.teachers.suspects import suspects
from stillroom.stages.views.boxes import Flip
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.worker.steady import FEW
from stillroom.storage import Cache
from stillroom.storage.errors import UnsteadyError
from tests.stages.builders import Heard, Shuffled, answers, data, every_kind, images, plain, taught
from tests.stages.view_builders import album, viewed


class Net(nn.Module):
    """A net with one layer that is switched on whatever it is told."""

    def __init__(self, layer: nn.Module, *, on: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(8, 16), layer, nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.on = on

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.encoder[1].train(self.on)
        out: torch.Tensor = self.head(self.encoder(image))
        return out


class Functional(nn.Module):
    """Dropout by function, which trains unless it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.head(image), 0.1)


def teacher(module: Any, **more: Any) -> ModuleTeacher:
    return ModuleTeacher("net", module, **more)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Net(nn.Dropout(0.1)), r"asked twice .*Found in it: training-mode Dropout: encoder\.1\."),
        (Net(nn.AlphaDropout(0.1)), r"asked twice .*training-mode AlphaDropout: encoder\.1"),
        (Functional(), r"asked twice .*dropout with training=True in the forward of Functional"),
        (
            Net(nn.BatchNorm1d(16)),
            r"other rows of its batch.*training-mode BatchNorm1d: encoder\.1",
        ),
    ],
    ids=["dropout", "alpha", "function", "batch norm"],
)
def test_a_layer_that_is_left_on_is_named_and_nothing_is_stored(
    tmp_path: Path, module: nn.Module, words: str
) -> None:
    with pytest.raises(UnsteadyError, match=words) as caught:
        taught(tmp_path / "c", teacher=teacher(module), batch_size=30)
    assert "'net', signal 'logits'" in str(caught.value)
    assert "may be" in str(caught.value)
    assert Cache(tmp_path / "c").snapshots() == []
    assert list((tmp_path / "c").rglob("*receipts/*")) == []


def test_a_layer_that_is_left_on_is_named_under_views_too(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(nn.Dropout(0.1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(image.flatten(1)[:, :8])
            return out

    shown: dict[str, Any] = {"rows": album(), "views": 2, "teacher": teacher(Flat())}
    with pytest.raises(UnsteadyError, match=r"Found in it: training-mode Dropout: net\.encoder\.1"):
        viewed(tmp_path / "c", ViewPlan((Flip(),)), **shown)


def test_a_layer_that_is_left_on_in_one_expert_is_named_with_its_route(tmp_path: Path) -> None:
    experts: dict[str | int, Teacher] = {
        "de": teacher(Net(nn.Dropout(0.1), on=False)),
        "fr": teacher(Net(nn.Dropout(0.1))),
    }
    routed = RoutedTeacher("experts", "language", experts)
    rows = ArrayRows([f"r{i}" for i in range(60)], image=images(60), language=["de", "fr"] * 30)
    with pytest.raises(UnsteadyError) as caught:
        taught(tmp_path / "c", routed.rows(rows), routed, batch_size=30)
    words = "Found in it: training-mode Dropout: encoder.1 (expert for 'fr')."
    assert words in str(caught.value)


def test_experts_that_cannot_tell_are_not_said_to_be_fine(tmp_path: Path) -> None:
    noisy = FunctionTeacher("noisy", drawn, ("image",), ("logits",))
    routed = RoutedTeacher("experts", "language", {"de": noisy})
    rows = ArrayRows([f"r{i}" for i in range(60)], image=images(60), language=["de"] * 60)
    with pytest.raises(UnsteadyError, match="Look for random numbers"):
        taught(tmp_path / "c", routed.rows(rows), routed)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Identity()])
def test_a_layer_that_is_off_is_none(tmp_path: Path, layer: nn.Module) -> None:
    assert taught(tmp_path / "c", teacher=teacher(Net(layer, on=False))).rows == 60


def drawn(image: Any) -> Any:
    return {"logits": image + np.random.default_rng().standard_normal(image.shape) * 0.01}


def centred(image: Any) -> Any:
    return {"logits": image - image.mean(0)}


def placed(image: Any) -> Any:
    return {"logits": image + np.arange(len(image))[:, None] * 0.1}


def longest(image: Any) -> Any:
    return {"logits": [np.zeros(len(image), "f4") for _ in image]}


def ranked(image: Any) -> Any:
    return {"logits": image[:, 0].argsort().argsort()}


def spoken(image: Any) -> Any:
    return {"logits": [f"row {i}" for i in range(len(image))]}


calls = itertools.count()


def counting(image: Any) -> Any:
    return {"logits": np.full(len(image), next(calls))}


def boxes(image: Any) -> Any:
    record = np.zeros(len(image), [("box", "f4", (4,)), ("sure", "?")])
    record["sure"] = image[:, 0] > image[:, 0].mean()
    return {"logits": record}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            drawn,
            r"asked twice for the same 8 rows.*8 of 8 rows differ \('r0', .*by 0\.0\d+, .*may be",
        ),
        (counting, r"asked twice .*by 1, 0\.000244 may be"),
        (centred, r"other rows of its batch.*8 rows differ .*by \d\.\d+, 0\.0\d+ may be"),
        (placed, r"other rows of its batch, or on their order"),
        (longest, r"other rows of its batch.*in shape"),
        (ranked, r"other rows of its batch"),
        (spoken, r"other rows of its batch"),
        (boxes, r"other rows of its batch"),
    ],
)
def test_a_function_that_is_not_of_its_row_alone_is_refused(
    tmp_path: Path, answer: Any, words: str
) -> None:
    with pytest.raises(UnsteadyError, match=words) as caught:
        taught(tmp_path / "c", teacher=plain(answer=answer), batch_size=30)
    assert "Look for random numbers" in str(caught.value)
    assert list((tmp_path / "c").rglob("*receipts/*")) == []


def test_what_may_be_is_the_users_to_say(tmp_path: Path) -> None:
    noisy = plain(answer=drawn)
    assert taught(tmp_path / "wide", teacher=noisy, band=0.05).rows == 60
    assert taught(tmp_path / "any", teacher=plain(answer=centred), band=float("inf")).rows == 60
    with pytest.raises(UnsteadyError, match=r"teach\(\.\.\., band=0\.1\)"):
        taught(tmp_path / "narrow", teacher=noisy, band=1e-4)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="band must be a share"):
            taught(tmp_path / "wrong", teacher=noisy, band=wrong)


def test_stored_bytes_are_those_without_a_second_look_and_its_cost_is_said(tmp_path: Path) -> None:
    from tests.stages.builders import network, tree

    heard = Heard()
    taught(tmp_path / "plain", teacher=network(), band=float("inf"), batch_size=16, shard_rows=20)
    how: dict[str, Any] = {"batch_size": 16, "shard_rows": 20, "listen": heard}
    taught(tmp_path / "looked", teacher=network(), **how)
    assert tree(tmp_path / "looked") == tree(tmp_path / "plain")
    events = [event for event in heard.events if isinstance(event, RowsTaught)]
    assert [event.asked_again for event in events] == [3 * FEW, 0, 0]


def test_every_kind_of_signal_passes(tmp_path: Path) -> None:
    rows, teacher = every_kind()
    assert taught(tmp_path / "c", rows, teacher).rows == 23


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_are_no_hindrance(tmp_path: Path, rows: int) -> None:
    assert taught(tmp_path / "c", data(rows)).rows == rows
    with pytest.raises(UnsteadyError, match="asked twice"):
        taught(tmp_path / "d", data(rows), plain(answer=drawn))


def fixed(image: Any) -> Any:
    if len(image) != 20:
        raise RuntimeError("expected a batch of 20")
    return {"logits": image * 2}


def fixed_and_random(image: Any) -> Any:
    return {"logits": fixed(image)["logits"] + np.random.default_rng().random(image.shape)}


def test_a_teacher_of_batches_of_one_size_is_looked_at_in_that_size(tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch_size": 20, "shard_rows": 20}
    assert taught(tmp_path / "c", teacher=plain(answer=fixed), **how).rows == 60
    with pytest.raises(UnsteadyError, match="the same 20 rows"):
        taught(tmp_path / "d", teacher=plain(answer=fixed_and_random), **how)


def test_what_other_workers_stored_meanwhile_is_taken_back(tmp_path: Path) -> None:
    for seed in range(3):
        with pytest.raises(UnsteadyError):
            taught(tmp_path / str(seed), teacher=plain(answer=drawn), runner=Shuffled(seed))
        assert Cache(tmp_path / str(seed)).drafts() == []


def test_shards_of_an_earlier_run_are_kept(tmp_path: Path) -> None:
    calm = plain(answer=moody)
    MOOD.clear()

    def cut_off(event: Any) -> None:
        if isinstance(event, RowsTaught):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "c", teacher=calm, listen=cut_off)
    (draft,) = Cache(tmp_path / "c").drafts()
    kept = draft.receipts()
    MOOD.append(1)
    with pytest.raises(UnsteadyError):
        taught(tmp_path / "c", teacher=calm, runner=Shuffled(1))
    (draft,) = Cache(tmp_path / "c").drafts()
    assert draft.receipts() == kept
    MOOD.clear()
    snapshot = taught(tmp_path / "c", teacher=calm)
    np.testing.assert_array_equal(answers(snapshot, data()), images(60))


MOOD: list[int] = []


def moody(image: Any) -> Any:
    from tests.stages import test_steady

    return {"logits": image + (np.random.default_rng().random() if test_steady.MOOD else 0)}


class Deep(nn.Module):
    """Fifty layers, in which differences of half precision grow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 8))]
        self.blocks = nn.ModuleList(layers + [nn.Sequential(*layers[0]) for _ in range(24)])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            image = image + block(image)
        return image


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_an_honest_teacher_passes_in_every_precision(tmp_path: Path, precision: Any) -> None:
    rows = ArrayRows(range(64), image=images(64, seed=2))
    honest = teacher(Deep(), precision=precision)
    assert taught(tmp_path / "c", rows, honest, batch_size=64, shard_rows=64).rows == 64


def test_suspects_are_found_where_they_are() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + torch.rand_like(x)
            x = functional.batch_norm(x, None, None, training=True)
            q = x[None, None]
            return functional.scaled_dot_product_attention(q, q, q, dropout_p=0.1)[0, 0]

    module = nn.Sequential(nn.Linear(8, 8), Noisy(), nn.Dropout(0.0), nn.Dropout(0.2)).eval()
    x = torch.zeros(4, 8)
    found = suspects(module, lambda: module(x))
    assert [line.partition(" in ")[0] for line in found] == [
        "rand_like",
        "batch_norm over the batch's own figures",
        "attention with dropout_p > 0",
    ]
    assert all(line.endswith("in 1 (Noisy)") for line in found)
    module.train()
    assert "training-mode Dropout: 3" in suspects(module, lambda: module(x))
    assert "training-mode Dropout: 2" not in suspects(module, lambda: module(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert replace(teacher(module), name="x").load().suspects({"image": x.numpy()})  # type: ignore[attr-defined]
