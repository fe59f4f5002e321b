"""Bytes, error and speed of the encodings that need a book: product quantisation, hidden state and head."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Table, interleaved, timed
from stillroom.storage.books import Book
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.head import Head
from stillroom.storage.encodings.logits import divergence
from stillroom.storage.encodings.part import Encoding
from stillroom.storage.encodings.product import Product

FEATURES = ("float16", "product(8,4)", "product(8)", "product(16)", "product(32)", "product(64)")
STATES = ("float16", "topk(50)", "head(lm_head)", "head(lm_head,float16)", "head(lm_head,bfloat16)")
NOTES = (
    "Centroids are fitted to every other row and measured on the rest. Relative is the root mean square "
    "of the error over that of the features, cosine the mean between a feature and what is decoded.",
    "The head is drawn: 32,000 classes from hidden states of 512 numbers, logits of deviation 3. KL is "
    "against logits from the float32 state; decoding ends with dense float32 logits in every row.",
)
Floats = NDArray[np.float32]


def tables(rounds: int, quick: bool) -> list[Table]:
    """Features of the digits demo's teacher, and logits of a large vocabulary."""
    features, source = _features(5_000)
    return [
        _features_table(source, features[: 1_000 if quick else None], FEATURES, rounds),
        _states_table(16 if quick else 64, STATES, rounds),
    ]


def _features_table(source: str, values: Floats, names: Sequence[str], rounds: int) -> Table:
    some, others = values[::2], values[1::2]
    judge = Product(1)
    rows = []
    for name in names:
        coding, seconds = encoding(name), 0.0
        if isinstance(coding, Product):
            started = time.perf_counter()
            coding = coding.bound(Book("", coding.fitted(some)))
            seconds = time.perf_counter() - started
        decoded = coding.decode(coding.encode(others), others.shape[1:])
        error = judge.error(others, decoded)
        found = [f"{error[key]:.3g}" for key in ("max_abs", "rms", "relative")]
        speed = _speeds(coding, others, rounds)
        fit = f"{seconds:.2g} s" if seconds else ""
        size = sum(part.row_bytes for part in coding.parts(values.shape[1:], values.dtype))
        rows.append((name, f"{size:,}", *found, f"{error['cosine']:.4f}", fit, *speed))
    columns = ("bytes a row", "largest", "rms", "relative", "cosine", "fit", "encode", "decode")
    return Table((source, *columns), tuple(rows))


def _states_table(positions: int, names: Sequence[str], rounds: int) -> Table:
    random = np.random.default_rng(0)
    weight = random.normal(0, 3 / np.sqrt(512), (32_000, 512)).astype(np.float32)
    state = random.normal(0, 1, (positions, 512)).astype(np.float32)
    book = Book("", {"weight": weight, "bias": np.zeros(32_000, np.float32)})
    logits: Floats = state @ weight.T
    rows = []
    for name in names:
        coding: Encoding = encoding(name)
        given = logits
        if isinstance(coding, Head):
            coding, given = coding.bound(book), state
        decoded = coding.decode(coding.encode(given), given.shape[1:])
        lost = divergence(logits, decoded)
        size = sum(part.row_bytes for part in coding.parts(given.shape[1:], given.dtype))
        figures = f"{size:,}", f"{lost['kl']:.2g}", f"{lost['l1']:.2g}"
        rows.append((name, *figures, *_speeds(coding, given, rounds)))
    columns = ("drawn head of 32,000 classes", "bytes a row", "KL", "L1", "encode", "decode")
    return Table(columns, tuple(rows))


def _speeds(coding: Encoding, values: Floats, rounds: int) -> list[str]:
    stored = coding.encode(values)
    ways = {
        "encode": timed(partial(coding.encode, values)),
        "decode": timed(partial(coding.decode, stored, values.shape[1:])),
    }
    each = {n: t.median / len(values) * 1e6 for n, t in interleaved(ways, rounds).items()}
    return [f"{each[name]:.3g} µs" for name in ways]


def _features(rows: int) -> tuple[Floats, str]:
    """The demo teacher's features where `make demo` has run; drawn ones of that size elsewhere."""
    found = sorted(Path("out/digits/teacher").glob("cnn20-*/weights.safetensors"))
    try:
        from stillroom.workflows.digits_data import digits_rows

        data = digits_rows()
    except FileNotFoundError:
        found = []
    if not found:
        random = np.random.default_rng(0)
        mixed = random.normal(0, 1, (rows, 24)) @ random.normal(0, 1, (24, 320))
        drawn = np.maximum(mixed + random.normal(0, 1, (rows, 320)), 0)
        return drawn.astype(np.float32), "drawn features of 320 (`make demo` gives real ones)"
    import torch
    from safetensors.torch import load_file

    from stillroom.workflows.digits_models import CNN_FEATURE, cnn

    torch.set_num_threads(1)
    module: Any = cnn(20).eval()
    module.load_state_dict(load_file(found[-1]))
    image: Any = data.read(np.arange(rows), ["image"])["image"]
    with torch.inference_mode():
        features: Floats = module[: int(CNN_FEATURE) + 1](torch.from_numpy(image)).numpy()
    return features, f"features of the digits demo's teacher, {len(features):,} rows"
