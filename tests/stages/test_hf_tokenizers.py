"""Tokenizers are compared by what decides ids, from files alone, and against a cache without a teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stillroom.stages import FunctionTeacher
from stillroom.stages.teachers.huggingface.agreement import (
    require_tokenizer_of,
    vocabulary_differences,
)
from stillroom.stages.teachers.huggingface.tokenizer_parts import tokenizer_parts
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage import Cache
from stillroom.storage.errors import FormatError, IdentityError, UnknownSignalError
from stillroom.storage.folder import Ask
from tests.stages.builders import plain, student, taught, trained


def words(folder: Path, **changes: Any) -> Path:
    """A tokenizer of whole words, as `tokenizers` writes it."""
    described = {
        "version": "1.0",
        "truncation": {"max_length": 4},
        "padding": None,
        "added_tokens": [{"id": 0, "content": "[UNK]", "special": True, "lstrip": False}],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {"[UNK]": 0, "room": 1, "still": 2},
            "unk_token": "[UNK]",
        },
        **changes.pop("tokenizer", {}),
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(described, indent=changes.pop("indent", 2)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]", **changes}))
    return folder


CHANGED: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"indent": 1, "model_max_length": 7, "padding_side": "left", "name_or_path": "/elsewhere"},
        [],
    ),
    ({"tokenizer": {"truncation": None, "decoder": {"type": "WordPiece"}}}, []),
    ({"tokenizer": {"normalizer": None}}, ["normalizer"]),
    ({"tokenizer": {"pre_tokenizer": {"type": "ByteLevel"}}}, ["pre_tokenizer"]),
    ({"tokenizer": {"post_processor": {"type": "BertProcessing"}}}, ["post_processor"]),
    (
        {
            "tokenizer": {
                "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "room": 2, "still": 1}}
            }
        },
        ["vocabulary", "model"],
    ),
    (
        {"tokenizer": {"added_tokens": [{"id": 3, "content": "<pad>"}]}},
        ["vocabulary", "special_tokens"],
    ),
    ({"pad_token": {"content": "still"}}, ["special_tokens"]),
    ({"do_lower_case": False}, ["switches"]),
]


@pytest.mark.parametrize(("changes", "parts"), CHANGED)
def test_a_tokenizer_is_another_by_what_decides_ids(
    tmp_path: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    before, after = (
        tokenizer_parts(words(tmp_path / n, **c)) for n, c in (("a", {}), ("b", changes))
    )
    assert [name for name in before if before[name] != after[name]] == parts


def test_scores_of_a_unigram_vocabulary_count(tmp_path: Path) -> None:
    def parts(score: float) -> dict[str, str]:
        vocab = [["<unk>", 0.0], ["a", score]]
        return tokenizer_parts(
            words(tmp_path, tokenizer={"model": {"type": "Unigram", "vocab": vocab}})
        )

    one, other = parts(-1.0), parts(-2.0)
    assert [name for name in one if one[name] != other[name]] == ["model"]


def test_a_tokenizer_without_a_json_is_known_by_its_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        tokenizer_parts(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    before = tokenizer_parts(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nc\n")
    assert before["vocab.txt"] != tokenizer_parts(tmp_path)["vocab.txt"]


@pytest.mark.parametrize(
    "content", ["{}", '{"model": {"vocab": 3}}', '{"model": null}', "[1]", "not json"]
)
def test_a_file_that_describes_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        tokenizer_parts(tmp_path)


def test_vocabularies_are_compared_id_by_id() -> None:
    assert vocabulary_differences({"a": 0, "b": 1}, {"b": 1, "a": 0}) == []
    shifted = {f"t{i}": i for i in range(50)}, {f"t{i}": i + (i > 9) for i in range(50)}
    assert vocabulary_differences(*shifted) == [
        "vocabulary: 41 of 51 ids differ: 10 is 't10' and none, 11 is 't11' and 't10', "
        "12 is 't12' and 't11' and 38 more"
    ]
    assert vocabulary_differences({"a": 0, "A": 0}, {"a": 0}) == [
        "vocabulary: 1 of 1 ids differ: 0 is 'A' or 'a' and 'a'"
    ]


@dataclass(frozen=True)
class Reads:
    """A teacher that reads texts by the tokenizer of a folder."""

    inner: FunctionTeacher
    folder: Path
    name: str = "reader"

    @property
    def inputs(self) -> Sequence[str]:
        return self.inner.inputs

    def asks(self) -> Mapping[str, Ask]:
        return self.inner.asks()

    def identity(self) -> dict[str, Any]:
        return {**self.inner.identity(), "tokenizer": tokenizer_parts(self.folder)}

    def load(self) -> Answer:
        return self.inner.load()


def test_a_students_tokenizer_is_checked_against_the_cache_alone(tmp_path: Path) -> None:
    mine = words(tmp_path / "teachers")
    taught(tmp_path / "c", teacher=plain("other"))
    snapshot = taught(tmp_path / "c", teacher=Reads(plain(), mine))
    cache = Cache.at(tmp_path / "c")
    moved = mine.rename(tmp_path / "students")
    for where in (cache, snapshot, cache.segments()[-1]):
        require_tokenizer_of(where, "reader", moved)
    for changes, parts in CHANGED:
        words(moved, **changes)
        if not parts:
            require_tokenizer_of(snapshot, "reader", moved)
            continue
        named = f"{', '.join(sorted(parts))} differ"
        with pytest.raises(IdentityError, match=rf"is not that of teacher 'reader': {named}"):
            require_tokenizer_of(snapshot, "reader", moved)
    (moved / "tokenizer.json").unlink()
    (moved / "vocab.txt").write_text("a\n")
    with pytest.raises(
        IdentityError, match=r"another form .*: vocab\.txt, the teacher's in tokenizer"
    ):
        require_tokenizer_of(snapshot, "reader", moved)
    with pytest.raises(FormatError, match="'other' names no tokenizer"):
        require_tokenizer_of(snapshot, "other", moved)
    with pytest.raises(
        UnknownSignalError, match="serves no teacher 'raeder'; did you mean 'reader'"
    ):
        require_tokenizer_of(snapshot, "raeder", moved)
    with pytest.raises(UnknownSignalError, match="holds answers of 'other', not of 'reader'"):
        require_tokenizer_of(cache.segments()[0], "reader", moved)


def test_training_checks_the_students_tokenizer_before_anything_trains(tmp_path: Path) -> None:
    folder, out = words(tmp_path / "tokenizer"), tmp_path / "students"
    snapshot = taught(tmp_path / "c", teacher=Reads(plain(), folder))
    (record,) = trained(out, [student(tokenizer=folder)], snapshot)
    moved = folder.rename(tmp_path / "moved")
    (again,) = trained(out, [student(tokenizer=moved)], snapshot)
    assert again.folder == record.folder  # where it lies is no part of a student
    words(moved, unk_token="[PAD]")
    before = sorted(out.iterdir())
    with pytest.raises(IdentityError, match="is not that of teacher 'reader'"):
        trained(out, [student("more", tokenizer=moved)], snapshot)
    assert sorted(out.iterdir()) == before
    trained(out, [student("hard", "labels", tokenizer=moved)], snapshot)  # reads no teacher
    other = taught(tmp_path / "d", teacher=plain("other"))
    with pytest.raises(FormatError, match="'other' names no tokenizer"):
        trained(out, [student(tokenizer=moved)], other)
