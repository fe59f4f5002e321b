"""Image models, and models of images and texts: plain transformers code gives the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.teachers.huggingface.image_text import ImageTextTeacher
from stillroom.stages.teachers.huggingface.pixels import ImageReader, Images
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.stages.teachers.huggingface.vision import VisionTeacher
from stillroom.storage import Reader
from stillroom.storage.errors import FormatError, RowsError, UnknownSignalError
from tests.stages import hf_builders as hf
from tests.stages.builders import taught

transformers = pytest.importorskip("transformers")
pytest.importorskip("PIL")
pytestmark = pytest.mark.slow

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
PHOTOS = hf.photos()


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    hf.save_vit(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    hf.save_clip(folder)
    return folder


def pixels(folder: Path, images: Any = PHOTOS) -> Any:
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return processor(list(images), return_tensors="pt")["pixel_values"]


def test_images_of_the_models_size_are_prepared_without_pillow_as_with_it(
    vit: Path, clip: Path
) -> None:
    for folder in (vit, clip):
        mine = ImageReader(Images(), folder, "t").read("image", PHOTOS)
        theirs = ImageReader(Images(processor="transformers"), folder, "t").read("image", PHOTOS)
        np.testing.assert_allclose(mine, pixels(folder), **CLOSE)
        np.testing.assert_array_equal(theirs, pixels(folder))
        moved = np.ascontiguousarray(PHOTOS.transpose(0, 3, 1, 2))
        for processor in ("numpy", "transformers"):
            same = ImageReader(Images("CHW", processor), folder, "t").read("image", moved)
            np.testing.assert_allclose(same, mine, **CLOSE)


def test_images_of_another_size_need_the_checkpoints_processor(vit: Path, clip: Path) -> None:
    large = hf.photos(2, 24)
    for folder in (vit, clip):
        with pytest.raises(RowsError, match="images are 24 x 24, the model reads 16 x 16"):
            ImageReader(Images(), folder, "t").read("image", large)
        found = ImageReader(Images(processor="transformers"), folder, "t").read("image", large)
        np.testing.assert_array_equal(found, pixels(folder, large))
    with pytest.raises(RowsError, match="expected images as uint8 of shape"):
        ImageReader(Images(), vit, "t").read("image", PHOTOS.astype("float32"))


def test_a_processor_that_is_not_there_is_named(vit: Path, tmp_path: Path) -> None:
    hf.save_vit(tmp_path)
    hf.edit_json(tmp_path / "preprocessor_config.json", image_processor_type="NoImageProcessor")
    with pytest.raises(ImportError, match=r"cannot be used here .*install torchvision; or resize"):
        ImageReader(Images(processor="transformers"), tmp_path, "t")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FormatError, match=r"has no preprocessor_config\.json"):
        VisionTeacher("t", tmp_path).identity()


def test_every_signal_of_a_classifier_is_what_plain_code_gives(vit: Path, tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification.from_pretrained(
        vit, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        out = model(pixel_values=pixels(vit), output_hidden_states=True, output_attentions=True)
        last = model.vit(pixel_values=pixels(vit)).last_hidden_state
    signals = {
        n.replace(":", "-"): n for n in ("logits", "hidden:1", "last", "mean", "cls", "attention:2")
    }
    teacher = VisionTeacher("vit", vit, signals=signals)
    rows = ArrayRows(range(5), image=PHOTOS)
    found: dict[str, Any] = Reader(taught(tmp_path / "c", rows, teacher)).gather(rows.keys)
    np.testing.assert_allclose(found["logits"], out.logits, **CLOSE)
    np.testing.assert_allclose(found["hidden-1"], out.hidden_states[1], **CLOSE)
    np.testing.assert_allclose(
        found["last"], last, **CLOSE
    )  # behind the final norm, unlike hidden:2
    assert np.abs(np.asarray(found["last"]) - out.hidden_states[2].numpy()).max() > 0.01
    np.testing.assert_allclose(found["mean"], last.mean(1), **CLOSE)
    np.testing.assert_allclose(found["cls"], last[:, 0], **CLOSE)
    np.testing.assert_allclose(found["attention-2"], out.attentions[1], **CLOSE)
    with pytest.raises(UnknownSignalError, match="gives no pooler_output"):
        VisionTeacher("t", vit, signals={"l": "logits", "p": "pooler"}).load()({"image": PHOTOS})


def test_a_backbone_without_a_classifier_has_no_logits(vit: Path, tmp_path: Path) -> None:
    hf.save_vit(tmp_path, "ViTModel")
    found: Any = VisionTeacher("t", tmp_path, signals={"p": "pooler"}).load()({"image": PHOTOS})
    model = transformers.ViTModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = model(pixel_values=pixels(tmp_path)).pooler_output
    np.testing.assert_allclose(found["p"], expected, **CLOSE)
    with pytest.raises(
        FormatError, match=r"lacks 2 weights of a ViTForImageClassification.*classifier"
    ):
        VisionTeacher("t", tmp_path).load()


def test_a_convolutional_model_is_pooled_over_its_places(tmp_path: Path) -> None:
    model = hf.save_resnet(tmp_path)
    signals = {"logits": "logits", "mean": "mean", "pooler": "pooler", "hidden": "hidden:1"}
    with pytest.raises(FormatError, match='give the teacher attention="eager"'):
        VisionTeacher("t", tmp_path, signals=signals).load()
    teacher = VisionTeacher("t", tmp_path, signals=signals, attention="eager")
    found: Any = teacher.load()({"image": PHOTOS})
    with torch.inference_mode():
        out = model(pixel_values=pixels(tmp_path), output_hidden_states=True)
    np.testing.assert_allclose(found["logits"], out.logits, **CLOSE)
    np.testing.assert_allclose(found["hidden"], out.hidden_states[1], **CLOSE)
    np.testing.assert_allclose(found["mean"], out.hidden_states[-1].mean((2, 3)), **CLOSE)
    np.testing.assert_allclose(found["pooler"], found["mean"], **CLOSE)


def test_images_and_texts_of_one_space_are_what_plain_code_gives(
    clip: Path, tmp_path: Path
) -> None:
    texts = list(hf.TEXTS[:5])
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    teacher = ImageTextTeacher(
        "clip",
        clip,
        Texts(32, "cut"),
        signals={
            "i": "image_embeds",
            "t": "text_embeds",
            "raw": "text_features",
            "ids": "ids",
            "scale": "logit_scale",
        },
    )
    rows = ArrayRows(range(5), image=PHOTOS, text=texts)
    found: dict[str, Any] = Reader(taught(tmp_path / "c", rows, teacher)).gather(rows.keys)
    for row, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)["input_ids"]
        np.testing.assert_array_equal(found["ids"][row], ids[0])
        with torch.inference_mode():
            out = model(input_ids=ids, pixel_values=pixels(clip)[row : row + 1])
            raw = model.get_text_features(input_ids=ids)
        np.testing.assert_allclose(found["t"][row], out.text_embeds[0], **CLOSE)
        np.testing.assert_allclose(found["i"][row], out.image_embeds[0], **CLOSE)
        np.testing.assert_allclose(found["raw"][row], raw[0], **CLOSE)
        scale = teacher.identity()["logit_scale"]
        made = scale * np.asarray(found["i"][row]) @ np.asarray(found["t"][row])
        np.testing.assert_allclose(made, float(out.logits_per_image), rtol=1e-3, atol=1e-3)
    assert np.unique(np.asarray(found["scale"])).tolist() == [np.float32(scale)]


def test_one_tower_alone_reads_one_column(clip: Path) -> None:
    found: Any = ImageTextTeacher("t", clip, signals={"i": "image_features"}).load()(
        {"image": PHOTOS}
    )
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values=pixels(clip))
    np.testing.assert_allclose(found["i"], expected, **CLOSE)
