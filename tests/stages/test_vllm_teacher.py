"""vLLM as a teacher, of a real server on loopback that fails as servers do."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stillroom.stages import ArrayRows, FunctionTeacher, VllmEngineTeacher, VllmTeacher
from stillroom.stages.teachers.http_json import JsonServer
from stillroom.storage import Reader
from stillroom.storage.errors import SignalError, TeacherUnreachableError
from stillroom.storage.identity import differences
from stillroom.storage.ragged import Ragged
from tests.stages.builders import Heard, answers, taught
from tests.stages.vllm_server import (
    CLASSES,
    Logprob,
    Served,
    entries,
    log_probabilities,
    recorded,
    serving,
    tokens_of,
)

MODEL = "Qwen/Qwen2.5-0.5B"
TEXTS = ["Hello", "a", "two words", "é ü", "0123456789", "Hello"]
EVERY = ("top", "chosen", "rank", "tokens")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def teacher(served: Served, **changes: Any) -> VllmTeacher:
    given = {"k": 3, "signals": EVERY, "backoff": 0.001, "timeout": 5.0, **changes}
    return VllmTeacher("qwen", served.url, MODEL, "main@7ae5576", CLASSES, **given)


def rows(texts: list[str] = TEXTS) -> ArrayRows:
    return ArrayRows([f"r{i}" for i in range(len(texts))], text=texts)


def dense(text: list[str]) -> dict[str, Any]:
    """What the served language model says, as a teacher that gives every logit."""
    return {"top": [log_probabilities(tokens_of(t))[:-1].astype(np.float32) for t in text]}


def test_a_server_teaches_what_dense_logits_encoded_as_topk_would(tmp_path: Path) -> None:
    with serving() as served:
        snapshot = taught(tmp_path / "a", rows(), teacher(served, signals=("top", "tokens")))
        assert served.most <= 8
    full = FunctionTeacher("dense", dense, ("text",), ("top",), {"top": "topk(3)"})
    other = taught(tmp_path / "b", rows(), full)
    one, two = (
        Reader(s, ["top"]).parts(s.positions(rows().keys), ["top"])["top"]
        for s in (snapshot, other)
    )
    assert one.keys() == two.keys() == {"indices", "values", "logsumexp", "tail"}
    for name in one:
        assert one[name].values.dtype == two[name].values.dtype
        np.testing.assert_array_equal(one[name].offsets, two[name].offsets)
        np.testing.assert_allclose(one[name].values, two[name].values, atol=2e-3)
    np.testing.assert_array_equal(one["indices"].values, two["indices"].values)
    found = answers(snapshot, rows(), "tokens")
    assert [row.tolist() for row in found] == [tokens_of(text) for text in TEXTS]


def test_tokens_are_sent_as_they_are_without_what_pads_them(tmp_path: Path) -> None:
    tokens = np.array([[5, 6, 7, -1], [8, -1, -1, -1], [5, 6, 7, 9]])
    data = ArrayRows(["a", "b", "c"], ids=tokens)
    with serving() as served:
        made = teacher(served, inputs=("ids",), pad=-1, signals=("chosen", "rank"))
        snapshot = taught(tmp_path / "c", data, made)
        sent = {tuple(body["prompt"]) for body in served.bodies}
        assert sent == {(5, 6, 7), (8,), (5, 6, 7, 9)}
        with pytest.raises(SignalError, match="a prompt without tokens"):
            made.load()({"ids": np.full((1, 4), -1)})
    chosen = answers(snapshot, data, "chosen")
    assert isinstance(chosen, Ragged)
    assert chosen.lengths.tolist() == [2, 0, 3]
    expected = log_probabilities([5, 6, 7, 9])[[0, 1, 2], [6, 7, 9]]
    np.testing.assert_array_equal(chosen[2], expected.astype(np.float32))


class Engine:
    """Stands in for vllm.LLM, which needs a GPU: its arguments, and outputs of the recorded shape."""

    def __init__(self, model: str, **settings: Any) -> None:
        self.given: list[Any] = [model, settings]
        MADE.append(self)

    def generate(self, prompts: list[Any], sampling: Any, use_tqdm: bool) -> list[Any]:
        self.given.append(sampling)
        said = []
        for text in prompts:
            tokens = tokens_of(text) if isinstance(text, str) else text["prompt_token_ids"]
            found = log_probabilities(tokens)
            places = [
                {int(t): Logprob(**e) for t, e in entries(row, own, 3).items()}
                for row, own in zip(found[:-1], tokens[1:], strict=True)
            ]
            said.append(SimpleNamespace(prompt_token_ids=tokens, prompt_logprobs=[None, *places]))
        return said


MADE: list[Engine] = []


def test_an_engine_is_given_the_same_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = VllmEngineTeacher("e", MODEL, "main", CLASSES, {"dtype": "bfloat16"}, 3, signals=EVERY)
    with pytest.raises(ModuleNotFoundError, match=r"teacher 'e' needs the package vllm"):
        made.identity()
    with pytest.raises(ModuleNotFoundError, match=r"teacher 'e' needs the package vllm"):
        made.load()
    stand_in = SimpleNamespace(LLM=Engine, SamplingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    found = made.load()({"text": TEXTS})
    assert MADE[-1].given[:2] == [MODEL, {"max_logprobs": 3, "dtype": "bfloat16"}]
    assert MADE[-1].given[2]["prompt_logprobs"] == 3
    with serving() as served:
        expected = teacher(served).load()({"text": TEXTS})
    for name in EVERY:
        one, two = found[name], expected[name]
        assert isinstance(one, Ragged)
        assert isinstance(two, Ragged)
        np.testing.assert_array_equal(one.values, two.values)
        np.testing.assert_array_equal(one.offsets, two.offsets)
    ids = replace(made, inputs=("ids",)).load()({"ids": np.array([tokens_of("Hello")])})["top"]
    assert isinstance(ids, Ragged)
    np.testing.assert_array_equal(ids[0], next(iter(expected["top"])))


def asked(text: list[str]) -> list[str]:
    return [f"Q: {t}\nA:" for t in text]


def test_what_is_asked_for_is_in_the_request_and_in_the_identity(tmp_path: Path) -> None:
    with serving() as served:
        plain = teacher(served, signals=("chosen",))
        made = replace(plain, prepare=asked, special_tokens=False)
        taught(tmp_path / "c", rows(["x"]), made)
        body = served.bodies[0]
        assert (body["prompt"], body["prompt_logprobs"], body["model"]) == ("Q: x\nA:", 3, MODEL)
        assert (body["add_special_tokens"], body["return_token_ids"]) == (False, True)
        identity = plain.identity()
        assert differences(identity, made.identity()) == [
            "prepare: new",
            "special_tokens: true became false",
        ]
        assert (identity["vllm"], identity["revision"]) == ("0.10.2", "main@7ae5576")
        served.version = "0.11.0"
        assert differences(identity, plain.identity()) == ["vllm 0.10.2 became 0.11.0"]
        served.models["data"][0] |= {"root": "Qwen/Qwen2.5-1.5B", "created": 1, "permission": []}
        assert differences(identity, plain.identity()) == [
            "served.root: Qwen/Qwen2.5-0.5B became Qwen/Qwen2.5-1.5B",
            "vllm 0.10.2 became 0.11.0",
        ]
        served.version = None
        with pytest.raises(
            SignalError, match="/version does not tell vLLM's version; name it with"
        ):
            plain.identity()
        assert replace(plain, version="0.10.2").identity()["vllm"] == "0.10.2"
        with pytest.raises(SignalError, match=r"does not serve 'Qwen/Qwen2\.5'; did you mean"):
            replace(plain, model="Qwen/Qwen2.5").identity()
    elsewhere = served.url
    with serving() as served:
        assert served.url != elsewhere
        assert teacher(served, signals=("chosen",)).identity() == identity


@pytest.mark.parametrize(
    "failures",
    [
        [500, 503],
        [429, 502],
        ["cut", "cut"],
        ["half", "garbled"],
        ["slow"],
        ["drip"],
        [(429, {"error": {"message": "later"}}, {"Retry_After": "0.01"})],
        [(503, b"", {"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"})],
    ],
    ids=str,
)
def test_a_server_that_fails_for_a_while_changes_nothing(failures: list[Any]) -> None:
    with serving() as served:
        made = teacher(served, timeout=0.25, concurrency=1)
        expected = made.load()({"text": ["Hello"]})
        served.failures, before = list(failures), len(served.bodies)
        found = made.load()({"text": ["Hello"]})
        assert len(served.bodies) - before == len(failures) + 1
    for name in EVERY:
        one, two = found[name], expected[name]
        assert isinstance(one, Ragged)
        assert isinstance(two, Ragged)
        np.testing.assert_array_equal(one.values, two.values)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (500, "in 3 attempts; the last: status 500: overloaded"),
        ("cut", "in 3 attempts; the last: "),
        ("half", "the connection was cut in the middle of the answer"),
        ("drip", "not finished after 0.2 s"),
    ],
)
def test_a_server_that_never_recovers_is_named(failure: Any, message: str) -> None:
    with serving(failures=[failure] * 9) as served:
        made = teacher(served, timeout=0.2, attempts=3, concurrency=1)
        with pytest.raises(TeacherUnreachableError, match=message):
            made.load()({"text": ["Hello"]})
        assert len(served.bodies) == 3
    with pytest.raises(TeacherUnreachableError, match=r"/v1/models gave no answer in 3 attempts"):
        made.identity()


def test_a_run_that_a_server_ended_goes_on_behind_its_finished_shards(tmp_path: Path) -> None:
    how = {"batch_size": 2, "shard_rows": 2}
    with serving() as served:
        made = teacher(served, attempts=1)
        served.poison = TEXTS[4]
        with pytest.raises(TeacherUnreachableError, match="Shards that are finished stay"):
            taught(tmp_path / "c", rows(), made, **how)
        served.poison, heard = None, Heard()
        taught(tmp_path / "c", rows(), made, listen=heard, **how)
        assert heard.taught == 2


def test_what_a_server_refuses_is_not_sent_again_and_said_in_its_words() -> None:
    with serving(answer=(400, recorded("refused"))) as served:
        with pytest.raises(
            SignalError, match=r"prompt 'Hello': .*400: Requested prompt logprobs of 50"
        ):
            teacher(served).load()({"text": ["Hello"]})
        assert len(served.bodies) == 1
    away = serving(answer=(404, {"detail": "Not Found"}))
    with away as served, pytest.raises(TeacherUnreachableError, match="Name the URL of the server"):
        teacher(served).load()({"text": ["Hello"]})


def test_the_key_goes_to_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "tell-nobody")
    with serving() as other, serving() as served:
        served.answer = (307, b"", {"Location": f"{other.url}/v1/completions"})
        with pytest.raises(TeacherUnreachableError, match="answers 307"):
            teacher(served).load()({"text": ["Hello"]})
        served.failures = [(302, b"", {"Location": f"{other.url}/v1/models"})]
        with pytest.raises(TeacherUnreachableError, match="answers 302"):
            teacher(served).load()({"text": ["Hello"]})
        assert other.bodies == []


def test_the_key_is_sent_and_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(key="tell-nobody") as served:
        made = teacher(served)
        with pytest.raises(TeacherUnreachableError, match="set VLLM_API_KEY to a valid key"):
            made.load()({"text": ["Hello"]})
        monkeypatch.setenv("VLLM_API_KEY", "tell-nobody")
        taught(tmp_path / "c", rows(), made)
        assert served.keys[-1] == "Bearer tell-nobody"
        assert "tell-nobody" not in repr(made) + str(made.identity()) + str(vars(made))
    stored = [path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()]
    assert stored
    assert not any(b"tell-nobody" in content for content in stored)


def test_no_more_requests_are_under_way_than_allowed() -> None:
    with serving(delay=0.03) as served:
        teacher(served, concurrency=3).load()({"text": TEXTS * 2})
        assert 2 <= served.most <= 3
        assert len(served.bodies) == 12


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"url": "127.0.0.1:8000"}, ValueError, "is no server's URL"),
        ({"url": "http://me:secret@127.0.0.1"}, ValueError, "the URL of 127.0.0.1 holds more than"),
        ({"revision": ""}, ValueError, "revision must say which weights"),
        ({"k": 0}, ValueError, "k must lie from 1"),
        ({"k": 400}, ValueError, "found 400 of 300"),
        ({"signals": ("tops",)}, SignalError, "gives no 'tops'; did you mean 'top'"),
        ({"inputs": ("a", "b")}, ValueError, "prepare= makes prompts of several columns"),
        ({"concurrency": 0}, ValueError, "concurrency must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    made = VllmTeacher("qwen", "http://127.0.0.1:1", MODEL, "main", CLASSES)
    with pytest.raises(error, match=message) as raised:
        replace(made, **change)
    assert "secret" not in str(raised.value)


def test_a_wait_is_doubled_and_never_longer_than_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(TeacherUnreachableError):
        JsonServer("http://127.0.0.1:9", attempts=9, backoff=1.0, timeout=0.5).get("/version")
    most = [1, 2, 4, 8, 16, 30, 30, 30]
    assert len(waits) == 8
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, most, strict=True))
