"""A server on loopback that answers as vLLM's does, and fails as servers do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORDED = Path(__file__).parent / "recorded"
CLASSES = 300
"""Tokens of the language model below: bytes, and some that never occur."""
BEGIN = 256


@dataclass
class Logprob:
    """An entry as the engine gives it, with the fields of vllm.logprobs.Logprob."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


def recorded(name: str) -> Any:
    """The JSON of a recorded answer."""
    return json.loads((RECORDED / f"vllm_{name}.json").read_text())


def tokens_of(text: str) -> list[int]:
    """Its bytes, behind a token that begins."""
    return [BEGIN, *text.encode()]


def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
    """(T, classes): of the token behind each, from the two before it; a language model of its own kind."""
    rows = []
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else 0
        rows.append(np.random.default_rng([token, before]).standard_normal(CLASSES) * 3)
    return np.stack(rows) if rows else np.zeros((0, CLASSES))


def log_probabilities(tokens: Sequence[int]) -> NDArray[np.float64]:
    """(T, classes), normalised."""
    logits = logits_of(tokens)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


def entries(row: NDArray[np.float64], given: int, k: int) -> dict[str, Any]:
    """One place of prompt_logprobs: the given token first, and then the k likeliest."""
    order = np.argsort(-row, kind="stable")
    rank = int((row > row[given]).sum()) + 1
    chosen = [(given, rank), *((int(t), i + 1) for i, t in enumerate(order[:k]))]
    return {str(t): {"logprob": float(row[t]), "rank": r, "decoded_token": "?"} for t, r in chosen}


def completed(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request for a completion, in the recorded shape."""
    prompt, k = body["prompt"], body["prompt_logprobs"]
    tokens = tokens_of(prompt) if isinstance(prompt, str) else prompt
    rows = log_probabilities(tokens)
    said = [entries(row, given, k) for row, given in zip(rows[:-1], tokens[1:], strict=True)]
    answer: dict[str, Any] = recorded("completion")
    answer["choices"][0] |= {"prompt_token_ids": tokens, "prompt_logprobs": [None, *said]}
    return answer


@dataclass
class Served:
    """What a server does, and what was asked of it."""

    url: str = ""
    failures: list[Any] = field(default_factory=list)
    """What to do with the next requests for completions: a status, "cut", "half", "slow", "drip"."""
    poison: str | None = None
    """A prompt that is always answered by status 500."""
    delay: float = 0.0
    """Seconds that an answer takes."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    most: int = 0
    """The most requests that were under way at once."""
    key: str = ""
    """What is asked for as a bearer token."""
    models: Any = field(default_factory=lambda: recorded("models"))
    version: str | None = "0.10.2"
    answer: Any = None
    """Instead of what the language model says."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    now: int = 0


@contextmanager
def serving(**how: Any) -> Iterator[Served]:
    """Run a server until the block ends."""
    served = Served(**how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, content: Any, **headers: str) -> None:
            whole = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(whole)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(whole)

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.reply(200, served.models)
            elif self.path == "/version" and served.version is not None:
                self.reply(200, {"version": served.version})
            else:
                self.reply(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            with served.lock:
                served.now += 1
                served.most = max(served.most, served.now)
                failure = served.failures.pop(0) if served.failures else None
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            served.keys.append(self.headers.get("Authorization", ""))
            time.sleep(served.delay)
            try:
                self.fail(failure) if failure else self.complete(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # who asked has gone
            finally:
                with served.lock:
                    served.now -= 1

        def complete(self, body: dict[str, Any]) -> None:
            if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
                self.reply(401, {"error": "Unauthorized"})
            elif body["prompt"] == served.poison:
                self.reply(500, b"poisoned")
            elif isinstance(served.answer, tuple):
                status, content, *headers = served.answer
                self.reply(status, content, **(headers[0] if headers else {}))
            else:
                self.reply(200, served.answer or completed(body))

        def fail(self, failure: Any) -> None:
            if failure == "cut":
                self.close_connection = True
                self.connection.close()
            elif failure == "half":
                whole = json.dumps(recorded("completion")).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole[: len(whole) // 2])
                self.close_connection = True
            elif failure == "slow":
                time.sleep(0.6)
                self.reply(200, {})
            elif failure == "drip":  # never silent for long, and never done
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                for _ in range(20):
                    self.wfile.write(b" ")
                    time.sleep(0.03)
                self.close_connection = True
            elif failure == "garbled":
                self.reply(200, b'{"choices": [')
            elif isinstance(failure, tuple):
                self.reply(*failure[:2], **failure[2])
            else:
                self.reply(failure, b"overloaded")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
