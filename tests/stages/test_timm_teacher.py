"""timm's models as teachers, against timm itself. Needs timm and a torchvision that fits torch."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.stages import ArrayRows
from stillroom.stages.teachers.timm import SAYS, timm_teacher
from stillroom.storage.errors import RowsError, UnknownSignalError
from stillroom.storage.identity import differences, digest
from tests.stages.builders import answers, taught

VIT, CNN = "vit_tiny_patch16_224", "efficientnet_lite0"


def test_without_timm_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm cannot be imported.*stillroom\[timm\]"):
        timm_teacher("t", VIT, "w.safetensors")


@pytest.fixture(scope="module")
def timm() -> Any:
    try:
        import timm.data
    except Exception as error:  # RuntimeError where torchvision was built for another torch
        pytest.skip(f"timm: {error}")
    return timm


def images(rows: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (rows, 40, 60, 3), np.uint8)


def saved(timm: Any, model: str, path: Path, **created: Any) -> Any:
    """A model with drawn weights, in a file and as timm has it."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    built = timm.create_model(model, pretrained=False, **created).eval()
    save_file(built.state_dict(), path)
    return built


def png(image: Any) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("model", [VIT, CNN])
def test_what_is_cached_is_what_timm_says(timm: Any, tmp_path: Path, model: str) -> None:
    import torch
    from PIL import Image

    small = {"input_size": (3, 224, 224) if model == VIT else (3, 64, 64)}
    built = saved(timm, model, tmp_path / "w.safetensors", num_classes=7)
    config = timm.data.resolve_data_config(small, model=built)
    transform = timm.data.create_transform(**config, is_training=False)
    shown = torch.stack([transform(Image.fromarray(image)) for image in images(4)])
    with torch.inference_mode():
        features = built.forward_features(shown)
        expected = {"features": features, "logits": built(shown)}
        expected["pooled"] = built.forward_head(features, pre_logits=True)
    given = (tmp_path / "w.safetensors",)
    teacher = timm_teacher("t", model, *given, layers=SAYS, created={"num_classes": 7}, shown=small)
    for name, column in (("arrays", images(4)), ("bytes", [png(i) for i in images(4)])):
        rows = ArrayRows(range(4), image=column)
        snapshot = taught(tmp_path / name, rows, teacher, batch_size=4)
        for signal, values in expected.items():
            found = answers(snapshot, rows, signal)
            np.testing.assert_allclose(found, values.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_attention_and_blocks_of_a_transformer_by_pattern(timm: Any, tmp_path: Path) -> None:
    import torch

    built = saved(timm, VIT, tmp_path / "w.safetensors")
    layers = {"attn": "attention(blocks.*.attn)", "block-{}": "blocks.*", "given": "last"}
    teacher = timm_teacher("t", VIT, tmp_path / "w.safetensors", layers=layers)
    assert len(teacher.asks()) == 25
    found: Any = teacher.load()({"image": images(2)})
    x = teacher.prepare(image=images(2))  # type: ignore[misc]
    with torch.inference_mode():
        x = built.norm_pre(built.patch_drop(built._pos_embed(built.patch_embed(x))))
        for number, block in enumerate(built.blocks):
            attn = block.attn
            q, k, _ = attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
            weights = (q @ k.mT / 8).softmax(-1).numpy()
            x = block(x)
            np.testing.assert_allclose(found[f"attn-{number}"], weights, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(found[f"block-{number}"], x.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_how_images_are_shown_is_part_of_the_identity(timm: Any, tmp_path: Path) -> None:
    saved(timm, CNN, tmp_path / "w.safetensors")

    def identity(**more: Any) -> Any:
        return timm_teacher("t", CNN, tmp_path / "w.safetensors", **more).identity()

    plain = identity()
    assert digest(identity()) == digest(plain)
    for shown in ({"mean": (0.1, 0.2, 0.3)}, {"crop_pct": 0.5}, {"interpolation": "nearest"}):
        (words,) = differences(plain, identity(shown=shown))
        assert words.startswith(f"{next(iter(shown))} of ")
        assert "as_shown" in words
    assert plain["libraries"].keys() >= {"timm", "torchvision", "pillow", "torch"}
    with pytest.raises(UnknownSignalError, match="did you mean 'crop_pct'"):
        identity(shown={"crop_pc": 1.0})
    with pytest.raises(
        UnknownSignalError, match=r"no model 'efficientnet_lit0'; did you mean 'eff"
    ):
        timm_teacher("t", "efficientnet_lit0", tmp_path / "w.safetensors")
    teacher = timm_teacher("t", CNN, tmp_path / "w.safetensors")
    with pytest.raises(RowsError, match="found float32"):
        teacher.load()({"image": images(2).astype("f4")})
