"""Parts of Hugging Face teachers that need no transformers: masks, pools, sources, tokenizers' files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stillroom.stages.teachers.huggingface import running
from stillroom.stages.teachers.huggingface.checkpoint import (
    checkpoint_folder,
    checkpoint_weights,
    content_of,
)
from stillroom.stages.teachers.huggingface.cut_rows import cut_rows
from stillroom.stages.teachers.huggingface.encoder import EncoderTeacher
from stillroom.stages.teachers.huggingface.image_text import ImageTextTeacher
from stillroom.stages.teachers.huggingface.language import LanguageTeacher
from stillroom.stages.teachers.huggingface.pixels import normalised
from stillroom.stages.teachers.huggingface.rows import Joined, groups, padded, within
from stillroom.stages.teachers.huggingface.sources import Source
from stillroom.stages.teachers.huggingface.texts import Texts, conversation
from stillroom.stages.teachers.huggingface.vision import VisionTeacher
from stillroom.storage import Cache
from stillroom.storage.errors import (
    RowsError,
    SignalError,
    UnknownSignalError,
)
from tests.stages.builders import data, plain, taught

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_one_group_and_no_group_is_too_large(lengths: list[int], most: int) -> None:
    found = list(groups(np.array(lengths), most))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    for group in found:
        longest = max(lengths[row] for row in group)
        assert len(group) == 1 or longest * len(group) <= most
        padding = longest * len(group) - sum(lengths[row] for row in group)
        assert padding <= max(longest * len(group) / 4, 128)


def test_short_texts_are_not_padded_to_a_long_one_that_would_fit_beside_them() -> None:
    found = list(groups(np.array([200, 5, 6, 5, 190, 7] + [8] * 40), 8_192))
    assert [group.tolist() for group in found] == [[1, 3, 2, 5, *range(6, 46)], [4, 0]]


@given(LENGTHS, st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_what_was_padded_and_grouped_is_joined_as_it_was(lengths: list[int], most: int) -> None:
    ids = [np.arange(n) + 100 * i for i, n in enumerate(lengths)]
    joined = Joined(np.array(lengths))
    for rows in groups(np.array(lengths), most):
        given, mask = padded([ids[row] for row in rows], -1)
        assert ((given == -1) == (mask == 0)).all()
        kept = np.array(lengths)[rows]
        joined.put(np.repeat(rows, kept), within(kept), given[mask.astype(bool)])
    for row, expected in zip(joined.ragged(), ids, strict=True):
        np.testing.assert_array_equal(row, expected)


def base(**outputs: Any) -> Any:
    given = {"last_hidden_state": torch.randn(3, 4, 2), "hidden_states": None, **outputs}
    return SimpleNamespace(**given, items=lambda: given.items())


def test_a_mean_is_of_the_tokens_that_are_there() -> None:
    given, mask = base(), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    found = running.pooled(given, Source("mean"), mask, "")
    expected = [
        row[: int(n)].mean(0) for row, n in zip(given.last_hidden_state, mask.sum(1), strict=True)
    ]
    np.testing.assert_allclose(found, torch.stack(expected), rtol=1e-5)
    given.last_hidden_state[0, 2:] = 1e30
    np.testing.assert_allclose(
        running.pooled(given, Source("mean"), mask, "")[0], expected[0], rtol=1e-5
    )
    first = running.pooled(given, Source("cls"), mask, "")
    np.testing.assert_allclose(first, given.last_hidden_state[:, 0])
    unit = running.pooled(given, Source("cls", "unit"), mask, "")
    np.testing.assert_allclose(unit.norm(dim=-1), 1, rtol=1e-5)


def test_images_of_a_convolutional_model_are_pooled_over_their_places() -> None:
    given = base(last_hidden_state=torch.randn(3, 2, 5, 4))
    found = running.pooled(given, Source("mean"), None, "")
    np.testing.assert_allclose(found, given.last_hidden_state.mean((2, 3)), rtol=1e-5)


def test_a_layer_or_an_output_that_is_not_there_is_named() -> None:
    layers = (torch.zeros(3, 4, 2),) * 3
    with pytest.raises(UnknownSignalError, match=r"t has no hidden:3; .* the last hidden:2"):
        running.states(base(hidden_states=layers), Source("hidden", "3"), "t")
    with pytest.raises(
        UnknownSignalError,
        match="t has no attention:0; the first is attention:1",
    ):
        running.attention(base(attentions=layers[:2]), Source("attention", "0"), "t")
    with pytest.raises(UnknownSignalError, match="gives no pooler_output, read for 'pooler'; it"):
        running.pooled(base(), Source("pooler"), None, "t")


def teacher(kind: Any, **changes: Any) -> Any:
    texts = {} if kind is VisionTeacher else {"texts": Texts(8)}
    return kind("t", changes.pop("folder", "nowhere"), **{**texts, **changes})


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (EncoderTeacher, {"signals": {"x": "maen"}}, "'t' gives no 'maen'; did you mean 'mean'"),
        (EncoderTeacher, {"signals": {"x": "hidden"}}, "gives no 'hidden': expected hidden with"),
        (EncoderTeacher, {"signals": {"x": "hidden:-1"}}, "gives no 'hidden:-1'"),
        (
            EncoderTeacher,
            {"signals": {"x": "mean:unit@titel"}},
            "reads no column it is given; known: text",
        ),
        (EncoderTeacher, {"signals": {"x": "ids:3"}}, "gives no 'ids:3': expected ids alone"),
        (
            EncoderTeacher,
            {"encodings": {"y": "float16"}},
            "encoding for 'y', which teacher 't' does not",
        ),
        (LanguageTeacher, {"signals": {"x": "logit"}}, "did you mean 'logits'"),
        (
            LanguageTeacher,
            {"encodings": {"logits": "head(h)"}},
            "read it from 'state', not from 'logits'",
        ),
        (VisionTeacher, {"signals": {"x": "ids"}}, "gives no 'ids'"),
        (ImageTextTeacher, {"texts": None}, r"reads texts; say how: texts=Texts\(max_tokens="),
        (ImageTextTeacher, {"signals": {"x": "logits_per_image"}}, "gives no 'logits_per_image'"),
    ],
)
def test_what_a_teacher_does_not_give_is_named_before_it_is_loaded(
    kind: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SignalError, match=message):
        teacher(kind, **changes).asks()


@pytest.mark.parametrize("kind", [EncoderTeacher, LanguageTeacher, VisionTeacher, ImageTextTeacher])
def test_a_name_on_a_hub_is_no_folder(kind: Any) -> None:
    for ask in (teacher(kind).identity, teacher(kind).load):
        with pytest.raises(FileNotFoundError, match="teacher 't': no checkpoint at nowhere"):
            ask()


def test_a_machine_without_transformers_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError, match=r"teacher 't' needs transformers.*pip install 'stillroom\[text"
    ):
        teacher(EncoderTeacher, folder=tmp_path).load()


def test_texts_that_may_be_cut_have_their_tokens_counted() -> None:
    kept = teacher(EncoderTeacher).asks()
    assert {n: a.source for n, a in kept.items()} == {"embedding": "mean"}
    cut = teacher(LanguageTeacher, texts=Texts(8, "cut")).asks()
    assert {n: a.source for n, a in cut.items() if n not in kept} == {
        "logits": "logits",
        "ids": "ids",
        "tokens": "tokens",
        "length": "length",
    }
    two = {"inputs": ("a", "b"), "signals": {"a": "mean@a", "b": "mean@b", "n": "tokens@b"}}
    asked = teacher(EncoderTeacher, texts=Texts(8, "cut"), **two).asks()
    assert {ask.source for ask in asked.values()} == {
        *("mean@a", "mean@b", "tokens@a", "tokens@b", "length@a", "length@b")
    }


def test_a_model_of_images_and_texts_reads_the_columns_that_its_signals_need() -> None:
    assert list(teacher(ImageTextTeacher).inputs) == ["image", "text"]
    assert teacher(ImageTextTeacher, signals={"t": "text_embeds", "n": "tokens"}).inputs == ["text"]
    assert teacher(ImageTextTeacher, signals={"i": "image_features"}).inputs == ["image"]


@pytest.mark.parametrize("text", ["hi", "[]", "{}", '["hi"]', '[{"content": "hi"}]', "3"])
def test_what_is_no_conversation_is_named(text: str) -> None:
    with pytest.raises(RowsError, match=r"t: .* is no conversation; expected a JSON list such as"):
        conversation(text, "t")


def test_images_are_scaled_and_normalised_and_must_have_the_models_size() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    asked = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.25, 1.0],
        "size": {"shortest_edge": 4},
    }
    found = normalised(images, asked)
    expected = (images[:, 1] / 255 - 0.2) / 0.25
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-5, atol=1e-6)
    for size in (
        {"size": {"height": 8, "width": 4}},
        {"size": 8},
        {"crop_size": {"height": 8, "width": 4}},
    ):
        with pytest.raises(RowsError, match=r"images are 4 x 4, the model reads 8 x [48]; resize"):
            normalised(images, {**asked, "do_center_crop": True, **size})
    np.testing.assert_array_equal(
        normalised(images, {"do_rescale": False, "do_normalize": False}), images
    )
    with pytest.raises(RowsError, match="image_mean has 2 numbers, the images have 3 channels"):
        normalised(images, {**asked, "image_mean": [0.5, 0.5]})


def test_the_weights_that_transformers_would_load_are_those_of_the_identity(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no weights: none of model\.safetensors, "):
        checkpoint_weights(tmp_path)
    for name in ("pytorch_model.bin", "other.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
        expected = "model.safetensors" if name.startswith("model") else "pytorch_model.bin"
        assert checkpoint_weights(tmp_path).name == expected
    (tmp_path / "config.json").touch()
    assert checkpoint_folder(str(tmp_path), "t") == tmp_path


def test_settings_enter_an_identity_without_paths_and_never_at_length() -> None:
    given = {
        "_name_or_path": "/home/a",
        "text": {"name_or_path": "b", "d": 3},
        "map": list(range(999)),
    }
    found = content_of(given)
    assert found["text"] == {"d": 3}
    assert "_name_or_path" not in found
    assert len(found["map"]) == 64
    assert found["map"] != content_of({**given, "map": list(range(998))})["map"]


def counted(image: Any) -> dict[str, Any]:
    kept = np.full(len(image), 4, np.int32)
    return {"tokens": kept, "length": kept + (image[:, 0] > 0).astype(np.int32)}


def test_rows_that_were_cut_are_known(tmp_path: Path) -> None:
    teacher = plain("reader", ("tokens", "length"), answer=counted)
    snapshot = taught(tmp_path / "c", data(30), teacher)
    taught(tmp_path / "c", data(50), plain("other"))  # rows that the first never saw
    first = np.asarray(data(30).read(np.arange(30), ["image"])["image"])[:, 0]
    expected = {f"r{i}" for i in np.flatnonzero(first > 0)}
    assert 0 < len(expected) < 30
    for state in (snapshot, Cache.at(tmp_path / "c").snapshot()):
        assert set(cut_rows(state, "reader").to_pylist()) == expected
    with pytest.raises(UnknownSignalError):
        cut_rows(snapshot, "other")
