"""Patterns of layers: a signal for each match, by a rule, and errors that say what there is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.stages import ModuleTeacher
from stillroom.stages.teachers.places import Spot, expanded
from stillroom.storage import Cache
from stillroom.storage.errors import SignalError, UnknownSignalError
from tests.stages.builders import answers, data, images, taught


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.mlp(x + self.attn(x))
        return out


class Deep(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block() for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            image = block(image)
        out: torch.Tensor = self.head(self.norm(image))
        return out


INNER = ("blocks", "blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp")


def places(layers: dict[str, str], module: nn.Module | None = None) -> dict[str, str]:
    found = expanded(module or Deep(), layers, "teacher 't'")
    return {signal: place for signal, (place, _) in found.items()}


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("attn", "blocks.*.attn", {f"attn-{i}": f"blocks.{i}.attn" for i in range(3)}),
        ("hidden.{}", "blocks.*", {f"hidden-{i}": f"blocks.{i}" for i in range(3)}),
        ("b{}a", "blocks.[02].attn", {f"b{i}a": f"blocks.{i}.attn" for i in (0, 2)}),
        ("b", "blocks.[!0].mlp.?", {f"b-{i}-{j}": f"blocks.{i}.mlp.{j}" for i in (1, 2) for j in (0, 1)}),
        ("m{}_{}", "*.*.mlp.0", {f"mblocks_{i}": f"blocks.{i}.mlp.0" for i in range(3)}),
        ("x{}", "norm**", {"x": "norm"}),
        ("x{}", "blocks.2.**p", {"xml": "blocks.2.mlp"}),
        ("x", "**.0", {f"x-{n.replace('.', '-')}": f"{n}.0" for n in INNER}),
        ("i", "blocks.*.attn:input", {f"i-{i}": f"blocks.{i}.attn:input" for i in range(3)}),
        ("q", "query(blocks.*.attn)", {f"q-{i}": f"query(blocks.{i}.attn)" for i in range(3)}),
        ("x", "last(blocks.*)", {"x": "blocks.2"}),
        ("x", "last(blocks.*.mlp.0):input", {"x": "blocks.2.mlp.0:input"}),
        ("x", "attention(last(blocks.*.attn))", {"x": "attention(blocks.2.attn)"}),
        ("x", "last", {"x": "head:input"}),
        ("x", "blocks.1", {"x": "blocks.1"}),
        ("x", "", {"x": ""}),
    ],
)  # fmt: skip
def test_a_pattern_is_a_signal_for_each_match(
    name: str, pattern: str, expected: dict[str, str]
) -> None:
    assert places({name: pattern}) == expected
    for place in expected.values():
        assert str(Spot.of(place)) == place


def test_ten_and_more_stay_in_the_order_of_the_module() -> None:
    found = list(places({"h": "blocks.*"}, Deep(12)))
    assert found == [f"h-{i}" for i in range(12)]


def test_an_exact_name_comes_before_what_it_could_mean() -> None:
    module = nn.Sequential()
    module.add_module("last", nn.Linear(2, 2))
    module.add_module("end", nn.Linear(2, 2))
    assert places({"x": "last"}, module) == {"x": "last"}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"x": "block.*.attn"}, r"'t': no layer matches 'block\.\*\.attn'; did you mean 'blocks\.\*\.at"),
        ({"x": "z*q"}, r"no layer matches 'z\*q'; known: blocks, blocks\.\*, blocks\.\*\.attn"),
        ({"x": "last(block.*)"}, r"no layer matches 'block\.\*'; did you mean 'blocks"),
        ({"x{}{}": "blocks.*"}, r"'x\{\}\{\}' has 2 \{\} for 1 wildcards"),
        ({"x-1": "norm", "x": "blocks.*"}, r"'blocks\.\*' and 'norm' are both signal 'x-1'"),
    ],
)  # fmt: skip
def test_a_pattern_that_means_nothing_says_what_there_is(
    layers: dict[str, str], words: str
) -> None:
    with pytest.raises((UnknownSignalError, SignalError), match=words):
        places(layers)
    with pytest.raises(UnknownSignalError, match="there is none; name a layer"):
        places({"x": "last"}, nn.Sequential(nn.ReLU()))


def test_every_match_is_stored_as_it_was(tmp_path: Path) -> None:
    layers = {"logits": "", "hidden-{}": "blocks.*", "feature": "last"}
    encodings = {"hidden-{}": "float16", "hidden-1": "raw"}
    teacher = ModuleTeacher("deep", Deep, layers=layers, encodings=encodings)
    snapshot = taught(tmp_path / "c", teacher=teacher, batch_size=60, shard_rows=60)
    module, states = Deep().eval(), torch.from_numpy(images(60))
    with torch.inference_mode():
        for number, block in enumerate(module.blocks):
            states = block(states)
            found = answers(snapshot, data(), f"hidden-{number}")
            np.testing.assert_allclose(
                found, states.numpy(), rtol=0 if number == 1 else 1e-3, atol=1e-3
            )
        np.testing.assert_array_equal(
            answers(snapshot, data(), "feature"), module.norm(states).numpy()
        )
    asked = {n: (s.encoding, s.source) for n, s in snapshot.signals.items()}
    assert asked["hidden-0"] == ("float16", "blocks.0")
    assert asked["hidden-1"] == ("raw", "blocks.1")
    assert asked["feature"] == ("raw", "head:input")
    again = taught(tmp_path / "c", teacher=teacher)
    assert again.number == snapshot.number


BUILT: list[str] = []


def noted(depth: int) -> nn.Module:
    """Says on which device it was built, and computes with what it built where it is told to."""
    module = Deep(depth)
    BUILT.append(module.head.weight.device.type)
    if depth == 2:
        assert module.head.weight.sum().item() != 0
    return module


def test_names_are_read_without_weights_where_a_builder_allows_it() -> None:
    BUILT.clear()
    for depth, expected in ((3, ["meta"]), (2, ["meta", "cpu"])):
        layers = {"h": "blocks.*"}
        teacher = ModuleTeacher("deep", partial(noted, depth), layers=layers)
        assert set(teacher.asks()) == {f"h-{i}" for i in range(depth)}
        assert expected == BUILT
        BUILT.clear()
    ModuleTeacher("deep", partial(noted, 3), layers={"h": "blocks.0"}).asks()
    assert not BUILT


def test_an_encoding_of_no_signal_is_refused(tmp_path: Path) -> None:
    wrong: Any = {"h-3": "float16"}
    with pytest.raises(SignalError, match="encoding for 'h-3', which teacher 'deep' does not"):
        taught(
            tmp_path / "c",
            teacher=ModuleTeacher("deep", Deep, layers={"h": "blocks.*"}, encodings=wrong),
        )
    assert Cache(tmp_path / "c").snapshots() == []
