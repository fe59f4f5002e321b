"""What vLLM says about a prompt, read into arrays: the k likeliest tokens behind every token of it.

The shape is that of vLLM 0.10.2 and later (`return_token_ids` came with it). A server's
`/v1/completions` answers, for each choice,

    "prompt_token_ids": [9707, 11, 1879],
    "prompt_logprobs": [null, {"1879": {"logprob": -1.5, "rank": 4, "decoded_token": " world"}, ...}, ...]

and the engine's `RequestOutput` holds the same with numbers for keys and objects with these fields.
The first token has nothing before it, so its place is null. Another place holds the k likeliest
tokens, and the prompt's own token as well where it is none of them: k entries, or k + 1. A server
writes -9999 for the logarithm of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.storage.encodings.logits import class_dtype
from stillroom.storage.errors import SignalError

_NOTHING = -9999.0
"""The log-probability that stands for none."""
_SLACK = 1e-2
"""By how much a server's rounding (bfloat16 logits) may lift a probability over 1."""


@dataclass(frozen=True)
class Prompt:
    """What was said of one prompt of T tokens; place i is of the token behind token i."""

    tokens: NDArray[Any]
    """(T,) the prompt's tokens: uint32."""
    top: NDArray[Any]
    """(T - 1,) records with the parts of `topk(k)`: `indices` (k,), `values` (k,) float16
    log-probabilities, largest first, `logsumexp` float32 (0: they are normalised), `tail` float32."""
    chosen: NDArray[np.float32]
    """(T - 1,) log-probability of the prompt's own next token."""
    rank: NDArray[np.int32]
    """(T - 1,) its rank, from 1."""


def record(k: int, classes: int) -> np.dtype[Any]:
    """The dtype of `Prompt.top`.

    >>> record(2, 150_000).names
    ('indices', 'values', 'logsumexp', 'tail')
    """
    return np.dtype(
        [
            ("indices", class_dtype(classes), (k,)),
            ("values", np.float16, (k,)),
            ("logsumexp", np.float32),
            ("tail", np.float32),
        ]
    )


def completion(response: Any, k: int, classes: int, sent: Sequence[int] | None = None) -> Prompt:
    """From the JSON of `/v1/completions` for one prompt; `sent`: its tokens, where tokens were sent.

    SignalError where something else came back, with what is missing and how a server gives it.
    """
    choices = response.get("choices") if isinstance(response, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise SignalError(f"expected one choice for one prompt, found {_short(response)}")
    return prompt(
        choices[0].get("prompt_token_ids"), choices[0].get("prompt_logprobs"), k, classes, sent
    )


def prompt(
    tokens: Any, logprobs: Any, k: int, classes: int, sent: Sequence[int] | None = None
) -> Prompt:
    """From a prompt's tokens and their `prompt_logprobs`, a server's or the engine's own.

    SignalError names the place where they cannot be those of k of so many classes.
    """
    if tokens is None and sent is None:
        raise SignalError(
            "no prompt_token_ids came back, so nobody can tell which entry is the prompt's own token; "
            "vLLM 0.10.2 and later return them. Upgrade it, or send tokens"
        )
    if logprobs is None:
        raise SignalError("no prompt_logprobs came back; this server does not give any")
    ids = np.array(sent if tokens is None else tokens, np.int64).reshape(-1)
    if sent is not None and list(ids) != list(sent):
        raise SignalError(
            f"a prompt of {len(sent):,} tokens was sent, the server read {len(ids):,}: {_short(ids)}. It "
            "truncates or adds tokens; compare its settings"
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < classes:
        raise SignalError(f"token {int(ids.max()):,} is none of {classes:,}; {_CLASSES}")
    if len(logprobs) != len(ids) or (len(ids) and logprobs[0] is not None):
        raise SignalError(
            f"prompt_logprobs have {len(logprobs):,} places for {len(ids):,} tokens; expected one for "
            "each, the first without any"
        )
    rows = max(len(ids) - 1, 0)
    top, chosen, rank = np.zeros(rows, record(k, classes)), np.zeros(rows), np.zeros(rows, np.int32)
    for place, (given, entries) in enumerate(zip(ids[1:].tolist(), _rest(logprobs), strict=True)):
        try:
            found, values, chosen[place], rank[place] = _place(entries, given, k)
        except (
            SignalError,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
        ) as error:
            raise SignalError(f"prompt_logprobs of token {place + 1:,}: {error}") from error
        if found.max() >= classes or found.min() < 0:
            raise SignalError(f"token {int(found.max()):,} is none of {classes:,}; {_CLASSES}")
        top["indices"][place], top["values"][place] = found, values
        top["tail"][place] = max(1.0 - float(np.exp(values).sum()), 0.0)
    return Prompt(ids.astype(np.uint32), top, chosen.astype(np.float32), rank)


_CLASSES = "say how many the model has with classes= (its vocabulary, with what pads it)"


def _rest(logprobs: Any) -> list[Any]:
    """All places but the first; the engine's flat container only gives one after the other."""
    return [logprobs[i] for i in range(1, len(logprobs))]


def _place(entries: Any, given: int, k: int) -> tuple[NDArray[Any], NDArray[Any], float, int]:
    """Tokens and log-probabilities of the k likeliest, and the given token's with its rank."""
    if not isinstance(entries, Mapping):
        raise SignalError(f"expected entries by token, found {_short(entries)}")
    said = {int(token): _logprob(entry) for token, entry in entries.items()}
    if given not in said:
        raise SignalError(f"the prompt's own token {given} is not among {_short(list(said))}")
    if len(said) not in (k, k + 1):
        raise SignalError(
            f"{len(said)} entries, expected the {k} likeliest and perhaps the prompt's own token"
        )
    own = said[given]
    # With one more than k, that one is the prompt's own, which is then none of the likeliest.
    kept = said if len(said) == k else {t: v for t, v in said.items() if t != given}
    ordered = sorted(kept.items(), key=lambda item: (-item[1], item[0]))
    values = np.array([value for _, value in ordered])
    if np.exp(values).sum() > 1 + _SLACK:
        raise SignalError(
            f"probabilities sum to {np.exp(values).sum():.4g}: these are no log-probabilities. Let the "
            "server run with --logprobs-mode raw_logprobs"
        )
    if len(said) > k and own > values[-1] + _SLACK:
        raise SignalError(
            f"the prompt's own token {given} is likelier than the last of {k} and not among them"
        )
    rank = _field(next(e for t, e in entries.items() if int(t) == given), "rank")
    return np.array([token for token, _ in ordered], np.int64), values, own, int(rank)


def _logprob(entry: Any) -> float:
    value = float(_field(entry, "logprob"))
    if value == float("-inf"):
        return _NOTHING
    if not isfinite(value) or value > _SLACK:
        raise SignalError(
            f"{value} is no log-probability; let the server run with --logprobs-mode raw_logprobs"
        )
    return max(min(value, 0.0), _NOTHING)


def _field(entry: Any, name: str) -> Any:
    """Of a server's JSON, or of the engine's own object."""
    return entry[name] if isinstance(entry, Mapping) else getattr(entry, name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
