"""Digests are equal for equal values alone, and a difference is said as a person would say it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage.identity import canonical, differences, digest

quick = settings(max_examples=200, deadline=None, derandomize=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | st.sampled_from(["1.2.3", "2.0", "a" * 64, "b" * 64, "numpy 2.1"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["root", "code", "uses", "source", "", "a.b"]), inner, max_size=3)
    | st.fixed_dictionaries({"root": inner, "code": st.dictionaries(st.text(max_size=2), inner)}),
    max_leaves=12,
)  # fmt: skip
A, B, C = ("abc"[i] * 64 for i in range(3))


def weights(**changed: str) -> dict[str, dict[str, str]]:
    return {"weights": {f"layer{i}.w": A for i in range(8)} | changed}


@quick
@given(JSON, JSON)
def test_there_are_words_exactly_where_there_is_a_difference(old: Any, new: Any) -> None:
    found = differences({"field": old}, {"field": new})
    assert bool(found) == (canonical(old) != canonical(new))
    assert len(set(found)) == len(found)
    assert all(isinstance(words, str) and words for words in found)


@quick
@given(JSON)
def test_a_value_is_itself(value: Any) -> None:
    assert differences(value, value) == []
    assert digest(value) == digest([value][0])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (weights(), weights(**{"layer3.w": B}), ["weights differ in layer3.w"]),
        (
            weights(),
            weights(**{"layer3.w": B, "layer1.w": B}),
            ["weights differ in 2 of 8: layer1.w, layer3.w"],
        ),
        (
            weights(),
            weights(**{f"layer{i}.w": B for i in range(5)}),
            ["weights differ in 5 of 8: layer0.w, layer1.w, layer2.w and 2 more"],
        ),
        (
            weights(),
            weights(**{f"layer{i}.w": B for i in range(8)}),
            ["weights differ in all 8"],
        ),
        (weights(), weights(head=B, **{"layer3.w": C}), ["weights: head new; layer3.w changed"]),
        (weights(head=B), weights(), ["weights: head gone"]),
        (
            {"assets": {"chat_template": A, "tokenizer/vocab.txt": A}},
            {"assets": {"chat_template": B, "tokenizer/vocab.txt": A}},
            ["assets differ in chat_template"],
        ),
        ({"assets": {"template": A}}, {}, ["assets: gone"]),
        (
            {"libraries": {"torch": "2.12.0", "old": "1.0"}},
            {"libraries": {"torch": "2.13.0", "tokenizers": "0.22"}},
            ["old 1.0 gone", "tokenizers 0.22 new", "torch 2.12.0 became 2.13.0"],
        ),
        ({"precision": "float32"}, {"precision": "bfloat16"}, ["precision: float32 became bfloat16"]),
        ({"size": 2}, {"size": "2"}, ['size: 2 became "2"']),
        ({"flag": True}, {"flag": "true"}, ['flag: true became "true"']),
        ({"text": "a b"}, {"text": ""}, ['text: "a b" became ""']),
        ({"text": "a" * 70}, {"text": "b" * 70}, ["text changed"]),
        ({"prepare": None}, {"prepare": {"root": "f", "code": {}}}, ["prepare: new"]),
        ({"inputs": ["a", "b"]}, {"inputs": ["b", "a"]}, ["inputs: another order"]),
        ({"mean": [1, 2, 2]}, {"mean": [1, 1, 2]}, ["mean: [1, 2, 2] became [1, 1, 2]"]),
        ({"a": {"b": A}}, {"a": {"b": B}}, ["a differ in b"]),
        ({"a": A}, {"a": B}, ["a changed"]),
        (
            {"weights": {"w": A, "v": A}, "code": "x", "asked": {"n": 1}},
            {"weights": {"w": B, "v": A}, "code": "y", "asked": {"n": 2}},
            ["weights differ in w", "asked.n: 1 became 2", "code: x became y"],
        ),
    ],
)  # fmt: skip
def test_differences_are_said_in_words(old: Any, new: Any, words: list[str]) -> None:
    assert differences(old, new) == words


CODE = """
import numpy as np
MEAN, STD = 0.5, np.array([1.0, 2.0])
VERSION = "1.2.0"
def scaled(x, by=1.5):
    return (x - MEAN) / STD * by
def build(x):
    return scaled(x), VERSION
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("* by", "+ by", ["code of scaled changed"]),
        ("scaled(x), V", "scaled(-x), V", ["code of build changed"]),
        ("MEAN, STD = 0.5", "MEAN, STD = 0.25", ["MEAN of scaled: 0.5 became 0.25"]),
        ("[1.0, 2.0]", "[1.0, 2.5]", ["STD of scaled changed"]),
        ("by=1.5", "by=2.5", ["code of scaled changed", "defaults of scaled changed"]),
        ("# none", "# none", []),
    ],
)
def test_of_code_it_is_said_whose_and_which_constant(
    tmp_path: Any, old: str, new: str, words: list[str]
) -> None:
    found = [code_of(tmp_path, text, f"made{i}") for i, text in enumerate([CODE, swap(old, new)])]
    assert differences({"code": found[0]}, {"code": found[1]}) == words


def swap(old: str, new: str) -> str:
    return CODE.replace(old, new)


def code_of(folder: Any, text: str, name: str) -> Any:
    import importlib.util
    import sys

    from stillroom.storage.code import code_identity

    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return code_identity(module.build)
    finally:
        del sys.modules[name]


def named(a: float = 0, mean: Any = None) -> float:
    return a


def other(a: float) -> float:
    return a


def test_arguments_of_partials_are_named() -> None:
    from functools import partial

    from stillroom.storage.code import code_identity

    def said(old: Any, new: Any) -> list[str]:
        return differences({"prepare": code_identity(old)}, {"prepare": code_identity(new)})

    mean = partial(named, mean=(0.48, 0.45, 0.4))
    assert said(mean, partial(named, mean=(0.48, 0.45, 0.41))) == [
        "mean of named: [0.48, 0.45, 0.4] became [0.48, 0.45, 0.41]"
    ]
    assert said(mean, partial(named)) == ["mean of named: gone"]
    assert said(partial(named, 1), partial(named, 2)) == ["arguments of named: [1] became [2]"]
    assert said(named, other) == ["prepare: named became other"]
    assert said(named, mean) == ["prepare changed"]
    # The argument's spelling names its package, as what is installed counts by version.
    old, new = ({"root": f"module numpy of numpy {v}", "code": {}} for v in ("2.1", "2.2"))
    assert differences({"code": old}, {"code": new}) == ["numpy 2.1 became 2.2"]
