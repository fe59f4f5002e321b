"""A module's identity is its numbers and its code, wherever they lie; layers are read as they are."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stillroom.stages.teachers.layers import LayerTaps
from stillroom.stages.teachers.weights import file_weights, load_state, tensor_weights
from stillroom.storage.errors import FormatError, SignalError, UnknownSignalError
from stillroom.storage.identity import digest
from tests.stages.builders import answers, data, images, net, network, taught


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = net().state_dict()
    return made


def test_all_ways_to_keep_weights_have_the_same_digests(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool]
    dtypes += [torch.int64, torch.int32, torch.int16, torch.uint16, torch.float8_e4m3fn]
    state |= {str(dtype): torch.ones(3, 2).to(dtype) for dtype in dtypes}
    state |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4)}
    save_file(state, tmp_path / "w.safetensors", metadata={"made": "today"})
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": state}, tmp_path / "nested.pt")
    expected = tensor_weights(state)
    assert len(expected) == len(state)
    for name in ("w.safetensors", "w.pt", "nested.pt"):
        assert file_weights(tmp_path / name) == expected


def test_a_safetensors_file_is_mapped_so_that_workers_share_its_pages(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    save_file(state, tmp_path / "w.safetensors")
    found = load_state(tmp_path / "w.safetensors")
    assert str(tmp_path / "w.safetensors") in Path("/proc/self/maps").read_text()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_moved_or_renamed_file_is_the_same_teacher(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "a").mkdir()
    save_file(state, tmp_path / "a" / "w.safetensors")
    first = network(weights=tmp_path / "a" / "w.safetensors")
    before = digest(first.identity())
    shutil.move(tmp_path / "a" / "w.safetensors", tmp_path / "other.safetensors")
    moved = network(weights=tmp_path / "other.safetensors")
    assert digest(moved.identity()) == before
    torch.save(state, tmp_path / "w.pt")
    assert digest(network(weights=tmp_path / "w.pt").identity()) == before


def test_one_flipped_bit_answers_all_rows_anew_and_names_the_tensor(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    save_file(state, tmp_path / "w.safetensors")
    teacher = network(weights=tmp_path / "w.safetensors")
    taught(tmp_path / "c", teacher=teacher)
    state["2.bias"].view(torch.int32)[1] ^= 1
    save_file(state, tmp_path / "w.safetensors")
    snapshot = taught(tmp_path / "c", teacher=teacher)
    assert snapshot.number == 2
    assert "60 rows: the teacher changed (weights differ in 2.bias)" in snapshot.why


def test_the_weights_of_the_file_answer(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state = {name: tensor * 2 for name, tensor in state.items()}
    save_file(state, tmp_path / "w.safetensors")
    snapshot = taught(
        tmp_path / "c", teacher=network(weights=tmp_path / "w.safetensors"), batch_size=60
    )
    module = net()
    module.load_state_dict(state)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images(60)[:10])).numpy()
    np.testing.assert_allclose(answers(snapshot, data())[:10], expected, rtol=1e-5)


def drawn() -> nn.Module:
    """Weights that nobody fixed."""
    return nn.Linear(8, 4)


def test_a_builder_that_draws_its_weights_draws_those_of_its_identity(tmp_path: Path) -> None:
    teacher = network(module=drawn, layers={"logits": ""})
    assert teacher.identity() == teacher.identity()
    before = torch.random.get_rng_state()
    snapshot = taught(tmp_path / "c", teacher=teacher)
    assert torch.equal(torch.random.get_rng_state(), before)
    live = teacher.load()({"image": images(60)})["logits"]
    np.testing.assert_allclose(answers(snapshot, data()), np.asarray(live), rtol=1e-5)


class Scaled(nn.Module):
    """Numbers that decide answers and are no weights."""

    offset: torch.Tensor

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("offset", torch.zeros(1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * self.scale + self.offset


def test_a_class_builds_its_module(tmp_path: Path) -> None:
    snapshot = taught(tmp_path / "c", teacher=network(module=Scaled, layers={"logits": ""}))
    np.testing.assert_array_equal(answers(snapshot, data()), images(60))


def test_what_decides_a_modules_answers_is_part_of_its_identity() -> None:
    def identity(module: Any, **changes: Any) -> str:
        return digest(network(module=module, layers={"logits": ""}, **changes).identity())

    module = Scaled()
    plain = identity(module)
    assert identity(Scaled()) == plain
    assert identity(Scaled(2.0)) != plain
    assert identity(partial(Scaled, 2.0)) != identity(partial(Scaled, 3.0))
    assert identity(module, precision="bfloat16") != plain
    assert identity(module, inputs=("other",)) != plain
    assert identity(module, prepare=abs) != plain
    assert identity(module, device="cpu", threads=2) == plain
    module.offset += 1
    assert identity(module) != plain


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "w.safetensors"),
        (b"\xff" * 100, "w.safetensors"),
        (b"\x02\0\0\0\0\0\0\0[]", "w.safetensors"),
        (b"not weights", "w.pt"),
        (b"", "w.pt"),
    ],
)
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=name):
        file_weights(tmp_path / name)


def test_a_checkpoint_with_more_than_weights_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": net().state_dict()}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match="epoch, model are no tensors"):
        file_weights(tmp_path / "w.pt")
    torch.save(torch.ones(2), tmp_path / "t.pt")
    with pytest.raises(FormatError, match="holds a Tensor, expected a state dict"):
        file_weights(tmp_path / "t.pt")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        file_weights(tmp_path / "none.pt")


class Spoken(nn.Module):
    """Answers in a dict, and in a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.same = self.pair.linear

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = self.pair(image)
        return {"logits": first, "hidden": second}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(image), image


def test_entries_of_dicts_and_tuples_are_picked_by_key(tmp_path: Path) -> None:
    layers = {"logits": ":logits", "hidden": "pair:1", "linear": "same"}
    snapshot = taught(tmp_path / "c", teacher=network(module=Spoken(), layers=layers))
    np.testing.assert_array_equal(answers(snapshot, data(), "hidden"), images(60))
    logits, linear = (answers(snapshot, data(), name) for name in ("logits", "linear"))
    np.testing.assert_array_equal(logits, linear)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "gives a dict with logits, hidden, not a tensor; pick one as ':key'"),
        (":logit", "has no 'logit'; did you mean 'logits'"),
        ("pair:2", "'pair' has no '2'; known: 0, 1"),
        ("pair", "gives a list, not a tensor|gives a tuple, not a tensor"),
        ("pair.linear:x", "has no 'x'"),
    ],
)
def test_an_output_that_is_no_tensor_says_how_to_pick_one(
    tmp_path: Path, place: str, message: str
) -> None:
    with pytest.raises((UnknownSignalError, SignalError), match=message):
        taught(tmp_path / "c", teacher=network(module=Spoken(), layers={"logits": place}))


def test_a_layer_is_read_before_an_in_place_layer_overwrites_it() -> None:
    linear = nn.Linear(8, 4)
    taps = LayerTaps(nn.Sequential(linear, nn.ReLU(inplace=True)), {"before": "0"}, "t")
    image = torch.from_numpy(images(60))
    found = taps.run((image,), {})["before"]
    assert (found < 0).any()
    torch.testing.assert_close(found, linear(image))


def test_a_callers_module_keeps_no_hooks() -> None:
    module = net()
    taps = LayerTaps(module, {"feature": "1"}, "t")
    taps.run((torch.zeros(1, 8),), {})
    assert not any(m._forward_hooks for m in module.modules())
    with pytest.raises(RuntimeError):
        taps.run((torch.zeros(1, 3),), {})
    assert not any(m._forward_hooks for m in module.modules())
