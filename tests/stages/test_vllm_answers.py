"""vLLM's answers: recorded ones read to the last bit, and everything else named."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages.teachers.vllm_answers import Prompt, completion, prompt
from stillroom.storage.encodings.topk import TopK
from stillroom.storage.errors import SignalError
from tests.stages.vllm_server import Logprob, entries, recorded

QWEN = 151_936


def test_a_recorded_answer_is_read_to_the_last_bit() -> None:
    found = completion(recorded("completion"), 2, QWEN)
    assert found.tokens.tolist() == [9707, 11, 1879, 0]
    assert found.top["indices"].dtype == np.uint32
    # The prompt's own token 1879 (rank 4) is none of the two likeliest.
    assert found.top["indices"].tolist() == [[11, 220], [358, 1246], [0, 13]]
    assert found.top["values"][:2].tolist() == [[-1.4375, -2.25], [-0.875, -1.9375]]
    assert found.top["logsumexp"].tolist() == [0, 0, 0]
    tail = [1 - math.exp(-1.4375) - math.exp(-2.25), 1 - math.exp(-0.875) - math.exp(-1.9375), 0]
    np.testing.assert_allclose(found.top["tail"], tail, rtol=1e-6)
    assert found.chosen.tolist() == [-1.4375, -3.75, 0]
    assert found.rank.tolist() == [1, 4, 1]


def test_the_engines_own_objects_say_the_same() -> None:
    choice = recorded("completion")["choices"][0]
    objects = [
        None if place is None else {int(t): Logprob(**entry) for t, entry in place.items()}
        for place in choice["prompt_logprobs"]
    ]
    objects[3][13].logprob = -math.inf  # type: ignore[index] # what the server writes as -9999
    found = prompt(choice["prompt_token_ids"], objects, 2, QWEN)
    expected = completion(recorded("completion"), 2, QWEN)
    for name in ("top", "chosen", "rank", "tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def changed(change: Any) -> Any:
    answer = copy.deepcopy(recorded("completion"))
    change(answer["choices"][0])
    return answer


def without(name: str) -> Any:
    return lambda choice: choice.pop(name)


def at(place: int, **more: Any) -> Any:
    return lambda choice: choice["prompt_logprobs"][place].update(more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("prompt_token_ids"), r"no prompt_token_ids came back.*vLLM 0\.10\.2"),
        (without("prompt_logprobs"), "no prompt_logprobs came back"),
        (lambda c: c["prompt_logprobs"].pop(), "3 places for 4 tokens"),
        (lambda c: c["prompt_logprobs"].__setitem__(0, {}), "the first without any"),
        (
            lambda c: c["prompt_logprobs"].__setitem__(2, None),
            "of token 2: expected entries by token",
        ),
        (
            lambda c: c["prompt_logprobs"][1].pop("11"),
            "of token 1: the prompt's own token 11 is not",
        ),
        (lambda c: c["prompt_logprobs"][1].pop("220"), "of token 1: 1 entries, expected the 2"),
        (at(1, **{"7": {"logprob": -9.0}, "8": {"logprob": -9.0}}), "of token 1: 4 entries"),
        (at(1, **{"220": {"logprob": 4.5, "rank": 1}}), "4.5 is no log-probability.*raw_logprobs"),
        (at(1, **{"220": {"logprob": -0.1, "rank": 1}}), r"probabilities sum to 1\.142"),
        (at(1, **{"220": {"rank": 2}}), "of token 1: 'logprob'"),
        (at(1, **{"220": {"logprob": float("nan")}}), "nan is no log-probability"),
        (at(3, **{"0": {"logprob": 0.0}}), "of token 3: 'rank'"),
        (at(2, **{"1879": {"logprob": -1.0, "rank": 4}}), "1879 is likelier than the last of 2"),
        (lambda c: c["prompt_token_ids"].__setitem__(0, QWEN), "token 151,936 is none of 151,936"),
    ],
)
def test_what_is_not_in_that_shape_is_named(change: Any, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        completion(changed(change), 2, QWEN)


def test_other_answers_and_other_tokens_are_named() -> None:
    others: list[Any] = [None, [], {"choices": []}, {"choices": [1]}, {"error": "x"}]
    for answer in others:
        with pytest.raises(SignalError, match="expected one choice for one prompt"):
            completion(answer, 2, QWEN)
    assert completion(recorded("completion"), 2, QWEN, [9707, 11, 1879, 0]).rank.tolist() == [
        1,
        4,
        1,
    ]
    with pytest.raises(SignalError, match="3 tokens was sent, the server read 4"):
        completion(recorded("completion"), 2, QWEN, [9707, 11, 1879])
    one = completion({"choices": [{"prompt_token_ids": [5], "prompt_logprobs": [None]}]}, 2, 9)
    assert (len(one.tokens), len(one.top), len(one.chosen)) == (1, 0, 0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 2**32), st.booleans())
def test_the_likeliest_are_those_that_topk_would_keep(k: int, seed: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    logits = random.integers(-3, 3, 9).astype(np.float64) if ties else random.standard_normal(9)
    row = logits - np.log(np.exp(logits).sum())
    own = int(random.integers(9))
    found: Prompt = prompt([0, own], [None, entries(row, own, k)], k, 9)
    expected = TopK(k).encode(row[None])
    np.testing.assert_array_equal(found.top["indices"], expected["indices"])
    np.testing.assert_array_equal(found.top["values"], expected["values"])
    np.testing.assert_allclose(found.top["tail"], expected["tail"], atol=1e-7)
    assert found.chosen[0] == np.float32(row[own])
