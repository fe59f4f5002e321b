"""Texts for proofs: prose that ships with Python as rows of characters, and an n-gram model of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows
from stillroom.storage.ragged import Ragged

if TYPE_CHECKING:
    from torch import nn

Int64s = NDArray[np.int64]
LEARNT = 62
"""Of the texts, those that are learned from: in CPython 3.11 58% of the characters."""


@cache
def prose() -> tuple[str, ...]:
    """The topics of Python's own help (pydoc_data.topics), in order of their names.

    In CPython 3.11 they are 79 texts, 465,000 characters, 103 of them distinct.
    """
    from pydoc_data import topics

    return tuple(text for _, text in sorted(topics.topics.items()))


@cache
def alphabet() -> str:
    """The characters of `prose`, each once, in order of their code points; the first ends a line."""
    return "".join(sorted(set("".join(prose()))))


def coded(text: str) -> Int64s:
    """(characters,) places in the alphabet."""
    known = np.array([ord(c) for c in alphabet()])
    return np.searchsorted(known, np.frombuffer(text.encode("utf-32-le"), np.uint32))


@cache
def _cut(places: int, before: int) -> tuple[list[str], Int64s, Int64s, NDArray[np.bool_]]:
    """Keys of rows, the text of each, its characters, and which of its places are there."""
    ids, there, keys, of = [], [], [], []
    for number, text in enumerate(prose()):
        codes = np.concatenate([np.zeros(before, np.int64), coded(text)])
        for start in range(0, len(text), places):
            row = codes[start : start + before + places]
            ids.append(np.pad(row, (0, before + places - len(row))))
            there.append(np.arange(places) < len(row) - before)
            keys.append(f"text-{number:02d}-{start:06d}")
            of.append(number)
    return keys, np.array(of), np.stack(ids), np.stack(there)


def character_rows(
    *, learn: int, test: int, seed: int, texts: int = LEARNT, places: int = 64, before: int = 8
) -> tuple[ArrayRows, dict[str, list[str]]]:
    """So many rows of the first texts and of the others, drawn by the seed: the splits train and test.

    Texts are cut into rows of `places` characters, none across two texts, so that the last of a text is
    shorter. Place i of a row is character `before` + i of it: every place has `before` characters to be
    foretold from; ends of lines stand before a text, and behind its last row.

    Returns rows of ids (before + places,) int64, next (places,) int64 and there (places,) bool, which
    marks the characters that are of the text.
    """
    keys, of, ids, there = _cut(places, before)
    order = np.random.default_rng(seed).permutation(len(keys))
    some = {"train": order[of[order] < texts][:learn], "test": order[of[order] >= texts][:test]}
    splits = {name: [keys[i] for i in chosen] for name, chosen in some.items()}
    all_ = np.concatenate(list(some.values()))
    columns = {"ids": ids[all_], "next": ids[all_, before:], "there": there[all_]}
    return ArrayRows([keys[i] for i in all_], **columns), splits


@cache
def _grams(length: int, texts: int) -> tuple[Int64s, Int64s]:
    """Of the first so many texts: every run of `length` characters and the next as one number, rising,
    and how often it is there. Before a text stand ends of lines, as in its rows."""
    codes = (np.concatenate([np.zeros(length, np.int64), coded(t)]) for t in prose()[:texts])
    windows = (np.lib.stride_tricks.sliding_window_view(c, length + 1) for c in codes)
    found = np.concatenate([_numbers(w, len(alphabet())) for w in windows])
    return np.unique(found, return_counts=True)


def _numbers(windows: Int64s, size: int) -> Int64s:
    """(n, length) characters as (n,) numbers."""
    return np.asarray(windows @ size ** np.arange(windows.shape[-1])[::-1], np.int64)


def witten_bell(before: Int64s, *, texts: int) -> NDArray[np.float64]:
    """Probabilities of the next character by an interpolated n-gram model of the first so many texts.

    p(c | h) = (count(h c) + d(h) p(c | h')) / (count(h) + d(h)), where d(h) is how many characters were
    seen after h, and h' is h without its first; before that all are equally likely (Witten and Bell
    1991; Chen and Goodman 1996, equation 8).

    Args:
        before: (n, order - 1) characters before each place.
        texts: how many of `prose` it counts in.

    Returns:
        (n, characters of the alphabet), rows summing to one.
    """
    return _after(_numbers(before, len(alphabet())), before.shape[1], texts)


def _after(history: Int64s, length: int, texts: int) -> NDArray[np.float64]:
    """The same after histories of one length, each as a number; equal ones are worked out once."""
    size = len(alphabet())
    known, back = np.unique(history, return_inverse=True)
    if length:
        found = _after(known % size ** (length - 1), length - 1, texts)
    else:
        found = np.full((len(known), size), 1 / size)
    pairs, counts = _grams(length, texts)
    first = np.searchsorted(pairs, known * size)
    distinct = np.searchsorted(pairs, (known + 1) * size) - first
    row = np.repeat(np.arange(len(known)), distinct)
    at = np.arange(len(row)) + np.repeat(first - (np.cumsum(distinct) - distinct), distinct)
    seen = np.bincount(row, counts[at], len(known)) + distinct
    found[distinct > 0] *= (distinct / np.maximum(seen, 1))[distinct > 0, None]
    found[row, pairs[at] % size] += counts[at] / seen[row]
    return np.asarray(found[back])


def foretold(ids: Int64s, there: NDArray[np.bool_], *, order: int, texts: int) -> Mapping[str, Any]:
    """A teacher of `character_rows`: `logits`, log-probabilities of the next character at every place of
    each row that is there, by `witten_bell` of so many texts."""
    places = there.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(ids, order - 1, 1)[:, -places - 1 : -1]
    found = np.log(witten_bell(windows[there], texts=texts)).astype(np.float32)
    return {"logits": Ragged(found, np.concatenate([[0], np.cumsum(there.sum(1))]))}


def window_mlp(window: int = 8, width: int = 64, embedding: int = 16) -> nn.Module:
    """(n, window + places) characters -> (n, places, alphabet): a hidden layer over the last `window`."""
    from torch import Tensor, nn

    size = len(alphabet())

    class WindowMlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(size, embedding)
            self.layers = nn.Sequential(
                nn.Linear(window * embedding, width), nn.ReLU(), nn.Linear(width, size)
            )

        def forward(self, ids: Tensor) -> Tensor:
            before = self.embedding(ids).unfold(1, window, 1)[:, :-1]
            logits: Tensor = self.layers(before.flatten(2))
            return logits

    return WindowMlp()


def foretelling(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """How well a student foretells `character_rows`, in bits a character: `bits`, the cross-entropy;
    `entropy`, how unsure its answers are."""
    import math

    there = tensors["row.there"]
    logp = tensors["student.logits"][there].double().log_softmax(-1) / math.log(2)
    cost = -logp.gather(-1, tensors["row.next"][there][:, None])
    entropy = -(logp * math.log(2)).exp().mul(logp).sum(-1)
    return {"bits": cost.mean().item(), "entropy": entropy.mean().item()}


def repeated_rows(
    rows: int,
    *,
    seed: int,
    vocabulary: int = 32,
    period: int = 4,
    times: int = 3,
    hide: float = 0.15,
) -> ArrayRows:
    """Runs of `period` random tokens, each written 2 to `times` times, of which some are hidden.

    Returns rows of tokens (period * times,) int64, where hidden ones are `vocabulary` and what is behind
    a row's end is 0; whole, the same with nothing hidden; and bool there and hidden.
    """
    draw, width = np.random.default_rng(seed), period * times
    whole = np.tile(draw.integers(0, vocabulary, (rows, period)), times)
    lengths = period * draw.integers(2, times + 1, rows)
    there = np.arange(width) < lengths[:, None]
    hidden = (draw.random(whole.shape) < hide) & there
    whole = np.where(there, whole, 0)
    keys = [f"repeated-{place:05d}" for place in range(rows)]
    tokens = np.where(hidden, vocabulary, whole)
    return ArrayRows(keys, tokens=tokens, whole=whole, there=there, hidden=hidden)


def filling(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`accuracy`: the share of hidden tokens of `repeated_rows` that a student fills in."""
    hidden = tensors["row.hidden"]
    right = tensors["student.logits"].argmax(-1) == tensors["row.whole"]
    return {"accuracy": right[hidden].double().mean().item()}
