"""vLLM as a teacher: the k likeliest next tokens behind every token of a prompt."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillroom.stages.data.rows import Batch
from stillroom.stages.teachers.http_json import JsonServer
from stillroom.stages.teachers.teacher import Answer
from stillroom.stages.teachers.vllm_answers import Prompt, completion, prompt, record
from stillroom.storage.code import code_identity
from stillroom.storage.errors import MissingPackageError, SignalError, nearest
from stillroom.storage.folder import Ask
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Values

SIGNALS = ("top", "chosen", "rank", "tokens")
Asked = str | list[int]
"""A prompt: a text, or its tokens."""


@dataclass(frozen=True)
class VllmTeacher:
    """A model behind a vLLM server, asked for the log-probabilities of prompts.

    Of a prompt of T tokens:

    | signal | of a row | |
    |---|---|---|
    | `top` | ragged (T - 1) records | the parts of `topk(k)`: `indices`, `values`, `logsumexp`, `tail` |
    | `chosen` | ragged (T - 1) float32 | log-probability of the prompt's own next token |
    | `rank` | ragged (T - 1) int32 | its rank, from 1 |
    | `tokens` | ragged (T) uint32 | the prompt's tokens, as the server cut it |

    Place i is of the token behind token i, as a causal model's logits are. `Reader.parts` gives `top`
    as it gives a signal that is encoded as `topk(k)`. The server needs `--max-logprobs` of at least k,
    and vLLM 0.10.2. What two requests say may differ in the last bits, as the server puts prompts
    together as they come.
    """

    name: str
    """Names the teacher's segments."""
    url: str
    """The server's, such as http://127.0.0.1:8000. Not part of the identity."""
    model: str
    """As the server names it."""
    revision: str
    """Which weights these are (a commit, a digest): no server tells, so whoever started it has to."""
    classes: int
    """Size of the model's vocabulary, with what pads it."""
    k: int = 20
    """How many tokens are kept; vLLM's own limit is 20 until it is raised."""
    inputs: Sequence[str] = ("text",)
    """Columns of the data set. Without `prepare`, the one that holds prompts: texts, or whole numbers."""
    signals: Sequence[str] = ("top",)
    """What is stored."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""
    pad: int | None = None
    """Where prompts are (n, T) tokens: what stands behind the end of shorter ones."""
    prepare: Callable[..., Sequence[Asked]] | None = None
    """columns by name -> one prompt for each row (such as a chat template)."""
    special_tokens: bool = True
    """Whether the server adds the tokenizer's special tokens to texts."""
    version: str = ""
    """vLLM's, where the server does not tell (behind a proxy that forwards only /v1)."""
    key_variable: str = "VLLM_API_KEY"
    """Environment variable with the server's key. The key itself is kept and stored nowhere."""
    concurrency: int = 8
    """Requests under way at once, of each worker."""
    timeout: float = 300.0
    """Seconds that one attempt may take."""
    attempts: int = 6
    """How often a request is sent before teaching stops; finished shards stay."""
    backoff: float = 0.5
    """Seconds before the second attempt, doubled each time."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be."""
        _require(self.name, self.signals, self.encodings, self.k, self.classes)
        if not self.revision:
            raise ValueError(
                f"teacher {self.name!r}: revision must say which weights the server runs"
            )
        if self.concurrency < 1:
            raise ValueError(f"teacher {self.name!r}: concurrency must be positive")
        if self.prepare is None and len(self.inputs) != 1:
            raise ValueError(f"teacher {self.name!r}: prepare= makes prompts of several columns")
        self._server()

    def _server(self) -> JsonServer:
        return JsonServer(self.url, self.key_variable, self.timeout, self.attempts, self.backoff)

    @property
    def precision(self) -> str:
        """vLLM computes in half floats unless it is told otherwise, and puts prompts together as they
        come: how far two of its answers may be apart. No part of the identity."""
        return "bfloat16"

    def asks(self) -> Mapping[str, Ask]:
        """The signals that were chosen."""
        return {n: Ask(self.encodings.get(n, "raw"), f"top {self.k}") for n in self.signals}

    def identity(self) -> dict[str, Any]:
        """Model, revision and what the server reports of itself: model, vLLM's version.

        Asks the server. SignalError where it serves another model, TeacherUnreachableError.
        """
        server = self._server()
        served = {str(m.get("id")): m for m in _listed(server.get("/v1/models"))}
        if self.model not in served:
            raise SignalError(
                f"teacher {self.name!r}: {self.url} does not serve {self.model!r}; "
                f"{nearest(self.model, served)}"
            )
        card = served[self.model]
        version = self.version or str(server.get("/version", missing={}).get("version", ""))
        if not version:
            raise SignalError(
                f"teacher {self.name!r}: {self.url}/version does not tell vLLM's version; name it with "
                "version="
            )
        return {
            "kind": "vllm",
            "model": self.model,
            "revision": self.revision,
            "served": {key: card.get(key) for key in ("root", "parent", "max_model_len")},
            "vllm": version,
            **_asked(self),
            "special_tokens": self.special_tokens,
        }

    def load(self) -> Answer:
        """Nothing is loaded here; every prompt is a request."""
        server = self._server()

        def one(given: Asked) -> Prompt:
            body = {
                "model": self.model,
                "prompt": given,
                "prompt_logprobs": self.k,
                "max_tokens": 1,
                "temperature": 1.0,  # older engines scaled a prompt's logits too
                "add_special_tokens": self.special_tokens,
                "return_token_ids": True,
            }
            sent = None if isinstance(given, str) else given
            try:
                return completion(server.post("/v1/completions", body), self.k, self.classes, sent)
            except SignalError as error:
                start = repr(given)[:60]
                raise SignalError(f"teacher {self.name!r}, prompt {start}: {error}") from error

        def answer(batch: Batch) -> dict[str, Values]:
            prompts = _prompts(self, batch)
            pool = ThreadPoolExecutor(min(self.concurrency, max(len(prompts), 1)))
            try:
                waiting = [pool.submit(one, given) for given in prompts]
                return _signals(self, [each.result() for each in waiting])
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # where one failed, send no more

        return answer


@dataclass(frozen=True)
class VllmEngineTeacher:
    """A model in vLLM's own engine, in the worker's process; the signals are those of `VllmTeacher`.

    Needs the package vllm where it is loaded.
    """

    name: str
    """Names the teacher's segments."""
    model: str
    """As vLLM takes it: a folder or a name. A folder's place is part of the identity, as a name is."""
    revision: str
    """Which weights these are (a commit, a digest)."""
    classes: int
    """Size of the model's vocabulary, with what pads it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `vllm.LLM`, plain values; part of the identity."""
    k: int = 20
    """How many tokens are kept."""
    inputs: Sequence[str] = ("text",)
    """As of `VllmTeacher`."""
    signals: Sequence[str] = ("top",)
    """What is stored."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""
    pad: int | None = None
    """As of `VllmTeacher`."""
    prepare: Callable[..., Sequence[Asked]] | None = None
    """As of `VllmTeacher`."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be."""
        _require(self.name, self.signals, self.encodings, self.k, self.classes)

    @property
    def precision(self) -> str:
        """vLLM computes in half floats unless it is told otherwise, and puts prompts together as they
        come: how far two of its answers may be apart. No part of the identity."""
        return "bfloat16"

    def asks(self) -> Mapping[str, Ask]:
        """The signals that were chosen."""
        return {n: Ask(self.encodings.get(n, "raw"), f"top {self.k}") for n in self.signals}

    def identity(self) -> dict[str, Any]:
        """Model, revision, settings, and vLLM's version."""
        return {
            "kind": "vllm engine",
            "model": self.model,
            "revision": self.revision,
            "settings": dict(self.settings),
            "vllm": _version(self.name),
            **_asked(self),
        }

    def load(self) -> Answer:
        """Start the engine in this process."""
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise _lacking(self.name) from error
        engine = LLM(model=self.model, **{"max_logprobs": self.k, **self.settings})
        sampling = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=self.k)

        def answer(batch: Batch) -> dict[str, Values]:
            prompts: list[Any] = [
                text if isinstance(text, str) else {"prompt_token_ids": text}
                for text in _prompts(self, batch)
            ]
            said = engine.generate(prompts, sampling, use_tqdm=False)
            try:
                each = [
                    prompt(s.prompt_token_ids, s.prompt_logprobs, self.k, self.classes)
                    for s in said
                ]
            except SignalError as error:
                raise SignalError(f"teacher {self.name!r}: {error}") from error
            return _signals(self, each)

        return answer


Either = VllmTeacher | VllmEngineTeacher


def _require(
    name: str, signals: Sequence[str], encodings: Mapping[str, str], k: int, classes: int
) -> None:
    for signal in (*signals, *encodings):
        if signal not in SIGNALS:
            raise SignalError(f"teacher {name!r} gives no {signal!r}; {nearest(signal, SIGNALS)}")
    if not 1 <= k <= classes < 2**32:
        raise ValueError(f"teacher {name!r}: k must lie from 1 to classes, found {k} of {classes}")


def _version(teacher: str) -> str:
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError as error:
        raise _lacking(teacher) from error


def _lacking(teacher: str) -> MissingPackageError:
    return MissingPackageError(
        f"teacher {teacher!r} needs the package vllm, which cannot be imported here: pip install "
        "'stillroom[vllm]' where it runs, or ask a server (VllmTeacher)"
    )


def _asked(teacher: Either) -> dict[str, Any]:
    """What of the identity both have."""
    return {
        "classes": teacher.classes,
        "inputs": list(teacher.inputs),
        "pad": teacher.pad,
        "prepare": None if teacher.prepare is None else code_identity(teacher.prepare),
    }


def _prompts(teacher: Either, batch: Batch) -> list[Asked]:
    columns = {name: batch[name] for name in teacher.inputs}
    if teacher.prepare is not None:
        given: Any = teacher.prepare(**columns)
    else:
        given = next(iter(columns.values()))
    return [text if isinstance(text, str) else _tokens(teacher, text) for text in given]


def _tokens(teacher: Either, row: Any) -> list[int]:
    tokens = np.asarray(row)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise SignalError(
            f"teacher {teacher.name!r}: a prompt is a text or a row of tokens, found {tokens.dtype} of "
            f"shape {tokens.shape}"
        )
    if teacher.pad is not None:
        kept = np.flatnonzero(tokens != teacher.pad)
        tokens = tokens[: kept[-1] + 1] if len(kept) else tokens[:0]
    if not len(tokens):
        raise SignalError(f"teacher {teacher.name!r}: a prompt without tokens")
    return [int(token) for token in tokens]


def _signals(teacher: Either, each: Sequence[Prompt]) -> dict[str, Values]:
    dtype = {
        "top": record(teacher.k, teacher.classes),
        "chosen": np.dtype(np.float32),
        "rank": np.dtype(np.int32),
        "tokens": np.dtype(np.uint32),
    }
    found: dict[str, Values] = {}
    for name in teacher.signals:
        rows = [getattr(one, name) for one in each]
        found[name] = (
            Ragged.of(rows) if rows else Ragged(np.zeros(0, dtype[name]), np.zeros(1, np.int64))
        )
    return found


def _listed(models: Any) -> list[Mapping[str, Any]]:
    found = models.get("data") if isinstance(models, Mapping) else None
    return [m for m in found if isinstance(m, Mapping)] if isinstance(found, list) else []
