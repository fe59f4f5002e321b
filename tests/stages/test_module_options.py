"""How a module is run: what changes its numbers is part of its identity, whatever is set elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.stages import ArrayRows, ModuleTeacher
from stillroom.storage.errors import SignalError
from stillroom.storage.identity import differences, digest
from tests.stages.builders import answers, data, images, net, network, taught


class Convolved(nn.Module):
    """Keeps what it was given, and what was set while it ran."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self._seen: list[Any] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        last = image.is_contiguous(memory_format=torch.channels_last)
        kernel = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        self._seen.append((last, kernel, torch.get_num_threads(), *allowed))
        out: torch.Tensor = self.head(self.conv(image).mean((2, 3)))
        return out


@pytest.fixture
def settings() -> Iterator[None]:
    """A process in which somebody has set everything otherwise."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def rows() -> ArrayRows:
    image = np.random.default_rng(0).standard_normal((12, 3, 9, 9)).astype("f4")
    return ArrayRows(range(12), image=image)


def test_a_teacher_runs_as_it_says_whatever_is_set_around_it(settings: None) -> None:
    module, image = Convolved(), rows().read(np.arange(12), ["image"])
    for teacher, expected in (
        (ModuleTeacher("t", module), ("highest", True)),
        (ModuleTeacher("t", module, matmul="high", cudnn_tf32=False), ("high", False)),
    ):
        teacher.load()(image)
        assert module._seen[-1] == (False, False, 1, *expected)
        assert torch.get_float32_matmul_precision() == "medium"
        assert not torch.backends.cudnn.allow_tf32


def test_channels_last_holds_for_weights_and_inputs_and_leaves_the_callers_module(
    tmp_path: Path,
) -> None:
    module = Convolved()
    seen = module._seen
    plain = taught(tmp_path / "a", rows(), ModuleTeacher("t", module), batch_size=12)
    assert {each[:2] for each in seen} == {(False, False)}
    teacher = ModuleTeacher("t", module, channels_last=True)
    loaded = teacher.load()
    loaded(rows().read(np.arange(12), ["image"]))
    assert loaded._module._seen[-1][:2] == (True, True)  # type: ignore[attr-defined]
    assert not module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    last = taught(tmp_path / "b", rows(), teacher, batch_size=12)
    np.testing.assert_allclose(answers(last, rows()), answers(plain, rows()), rtol=1e-4, atol=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {"channels_last": True},
    {"compiled": "inductor"},
    {"matmul": "high"},
    {"cudnn_tf32": False},
]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: next(iter(option)))
def test_an_option_that_changes_numbers_is_another_identity_and_is_named(
    option: dict[str, Any],
) -> None:
    before, after = network().identity(), network(**option).identity()
    assert digest(before) != digest(after)
    (words,) = differences(before, after)
    assert words.startswith(next(iter(option)))


def test_without_options_an_identity_has_nothing_of_them() -> None:
    identity = network(channels_last=False, compiled="", matmul="highest").identity()
    expected = ["code", "inputs", "kind", "libraries", "precision", "prepare", "weights"]
    assert sorted(identity) == expected


def test_inside_a_compiled_module_nothing_is_read_while_it_runs() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.num_heads = nn.Linear(8, 24), 2

    teacher = network(module=nn.Sequential(Attending()), layers={"q": "query(0)"}, compiled="eager")
    with pytest.raises(
        SignalError, match=r"query\(0\) is read while a module runs, which a compiled"
    ):
        teacher.load()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_compiled_teacher_gives_the_same_layers_in_every_batch(
    tmp_path: Path, backend: str
) -> None:
    module = net()
    layers = {"logits": "", "feature": "1", "given": "2:input"}
    teacher = network(module=module, layers=layers, compiled=backend)
    snapshot = taught(tmp_path / "c", teacher=teacher, batch_size=7, shard_rows=60)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    with torch.inference_mode():
        hidden = module[1](module[0](torch.from_numpy(images(60))))
        logits = module[2](hidden)
    for name, expected in (("logits", logits), ("feature", hidden), ("given", hidden)):
        found = answers(snapshot, data(), name)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
