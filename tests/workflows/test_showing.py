"""What `cache show` tells of a cache: who taught it, what they were, and how they changed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from stillroom.storage import Cache
from stillroom.storage.errors import StillroomError
from stillroom.workflows.inspecting import describe_cache
from stillroom.workflows.showing import (
    chosen_teachers,
    identity_words,
    print_cache,
    print_identities,
)
from tests.stages.builders import data, every_kind, net, network, plain, taught


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two identities of one teacher, the first with an edit of two rows, and another teacher."""
    folder = tmp_path_factory.mktemp("shown")
    state = net().state_dict()
    weights = folder / "w.safetensors"
    save_file(state, weights)
    teacher = partial(network, weights=weights, encodings={"logits": "float16"})
    taught(folder / "c", teacher=teacher())
    taught(folder / "c", data(edited=[1, 2]), teacher())
    state["2.bias"][1] += 1
    save_file(state, weights)
    taught(folder / "c", data(edited=[1, 2]), teacher(precision="bfloat16"))
    taught(folder / "c", data(edited=[1, 2]), plain("other"))
    return folder / "c"


def shown(cache: Path, capsys: pytest.CaptureFixture[str], teacher: str | None = None) -> str:
    print_cache(describe_cache(cache), teacher)
    return " ".join(capsys.readouterr().out.split())


def test_identities_are_described_with_what_they_serve_and_how_they_differ(cache: Path) -> None:
    teachers = {t["name"]: t["identities"] for t in describe_cache(cache)["teachers"]}
    assert list(teachers) == ["net", "other"]
    old, new = teachers["net"]
    assert (old["rows"], len(old["segments"]), old["snapshots"]) == (62, 2, [1, 2])
    assert (new["rows"], len(new["segments"]), new["snapshots"]) == (60, 1, [3, 4])
    assert old["differs"] == []
    assert new["differs"] == ["weights differ in 2.bias", "precision: float32 became bfloat16"]
    assert old["digest"] != new["digest"]
    assert old["first"] <= old["last"] <= new["first"]
    (other,) = teachers["other"]
    assert other["differs"] == []
    json.dumps(teachers)


def test_a_person_sees_the_same(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(cache, capsys)
    assert "2 teachers, 4 segments, 4 snapshots" in text
    assert "62 rows in 2 segments" in text
    assert "weights differ in 2.bias precision: float32 became bfloat16" in text
    assert "precision float32; weights 4 parts" in text
    assert "snapshots 3 to 4" in text
    newest = describe_cache(cache)["teachers"][0]["identities"][-1]["digest"][:12]
    assert newest in text
    assert "2 rows are new, changed or lack" in text
    assert "float16 output 8.4 504 B max_abs" in text  # 4 numbers of 2 bytes, and checksums


def test_one_teacher_is_shown_alone(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(cache, capsys, "other")
    assert "teacher other" in text
    assert "teacher net" not in text
    with pytest.raises(StillroomError, match="no teacher 'othr'; did you mean 'other'"):
        chosen_teachers(describe_cache(cache), "othr")


def test_identities_are_printed_in_full(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_identities(describe_cache(cache), "net")
    printed = json.loads(capsys.readouterr().out)
    stored = {s.digest: s.identity for s in Cache(cache).segments() if s.teacher == "net"}
    assert printed == {"net": stored}


def test_a_cut_off_run_and_a_cache_without_snapshots_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Cache.at(tmp_path / "empty")
    assert "0 teachers, 0 segments, 0 snapshots, 0 B" in shown(tmp_path / "empty", capsys)
    taught(tmp_path / "c")
    (tmp_path / "c" / "segments").rename(tmp_path / "gone")
    (segment,) = (tmp_path / "gone").iterdir()
    (segment / "segment.json").unlink()
    (tmp_path / "gone").rename(tmp_path / "c" / "segments")
    assert "not finished, 6 of 6 shards; teach again to go on" in shown(tmp_path / "c", capsys)


def test_every_kind_of_signal_and_lost_times_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, teacher = every_kind()
    taught(tmp_path / "c", rows, teacher)
    for made in (tmp_path / "c").rglob("made/*.json"):
        made.unlink()
    described = describe_cache(tmp_path / "c")
    assert described["snapshots"][0]["at"] is None
    text = shown(tmp_path / "c", capsys)
    for name in teacher.signals:
        assert name in text
    assert "topk(3)" in text
    assert "int32[*]" in text


def test_markup_in_names_and_reasons_is_shown_as_it_is(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described: dict[str, Any] = describe_cache(cache)
    described["snapshots"][0]["why"] = "[bold]because[/bold] [/x]"
    described["teachers"][0]["identities"][1]["differs"] = ["weights differ in a[0]"]
    print_cache(described)
    text = " ".join(capsys.readouterr().out.split())
    assert "[bold]because[/bold] [/x]" in text
    assert "a[0]" in text


def test_an_identity_in_a_few_words() -> None:
    identity = {
        "code": {"root": {"partial": "net", "args": [], "keywords": {}}, "code": {}},
        "libraries": {"torch": "2.13.0", "numpy": "2.4"},
        "inputs": ["a", "b"],
        "prepare": None,
        "version": "",
        "weights": {"a": "0" * 64, "b": "1" * 64},
    }
    words = identity_words(identity)
    assert words[0].startswith("code net, ")
    assert words[1:3] == ["torch 2.13.0, numpy 2.4", "inputs a, b"]
    assert words[3].startswith("weights 2 parts, ")
    assert len(words) == 4
