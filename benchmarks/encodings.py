"""Bytes a row, error and speed of the encodings on a teacher's answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Section, Table, interleaved, timed
from stillroom.storage.encoding import encoding
from stillroom.storage.topk import TopK

PLAIN = ("float32", "float16", "bfloat16")
DEMO = Path("out/digits/teacher")


def measure(work: Path, quick: bool) -> Section:
    """Ten classes of the digits demo, and a language model's vocabulary."""
    section = Section(
        "Encodings",
        "Speed is for one thread and a shard's rows at once. KL is the mean of KL(teacher ‖ decoded) "
        "in nats at temperature 1, L1 the mean sum of |p - q|, both against the float32 answers.",
    )
    rounds = 2 if quick else 5
    digits, source = _digits(5_000)
    section.tables.append(_table(source, digits, (*PLAIN, "topk(3)", "topk(5)"), rounds))
    rows, classes = (64, 8_000) if quick else (512, 32_000)
    words = _words(rows, classes)
    source = f"drawn logits of {classes:,} classes, Zipf-like"
    names = (*PLAIN, "topk(16)", "topk(64)", "topk(256)")
    section.tables.append(_table(source, words, names, rounds))
    section.notes.append(
        "The Zipf-like logits are -1.5 log(rank) plus normal noise of deviation 1.5, every row with "
        "its own order of classes: no real model's, but with a head and a tail as those have."
    )
    return section


def _table(source: str, values: NDArray[np.float32], names: tuple[str, ...], rounds: int) -> Table:
    judge = TopK(1)
    rows = []
    for name in names:
        coding = encoding(name)
        shape, stored = values.shape[1:], coding.encode(values)
        size = sum(part.row_bytes for part in coding.parts(shape, values.dtype))
        decoded = coding.decode(stored, shape)
        error = judge.error(values, decoded)
        ways = {
            "encode": timed(partial(coding.encode, values)),
            "decode": timed(partial(coding.decode, stored, shape)),
        }
        each = {n: t.median / len(values) * 1e6 for n, t in interleaved(ways, rounds).items()}
        speed = [f"{each[n]:.3g} µs" for n in ("encode", "decode")]
        rows.append((name, f"{size:,}", f"{error['kl']:.2g}", f"{error['l1']:.2g}", *speed))
    columns = (source, "bytes a row", "KL", "L1", "encode a row", "decode a row")
    return Table(columns, tuple(rows))


def _digits(rows: int) -> tuple[NDArray[np.float32], str]:
    """The demo teacher's logits where `make demo` has run; drawn ones of that size elsewhere."""
    found = sorted(DEMO.glob("cnn20-*/weights.safetensors"))
    try:
        from stillroom.workflows.digits_data import digits_rows

        data = digits_rows()
    except FileNotFoundError:
        found = []
    if not found:
        drawn = np.random.default_rng(0).normal(0, 3, (rows, 10)).astype(np.float32)
        drawn[np.arange(rows), np.arange(rows) % 10] += 10
        return drawn, "drawn logits of 10 classes (`make demo` gives real ones)"
    import torch
    from safetensors.torch import load_file

    from stillroom.workflows.digits_models import cnn

    torch.set_num_threads(1)
    module = cnn(20).eval()
    module.load_state_dict(load_file(found[-1]))
    image: Any = data.read(np.arange(rows), ["image"])["image"]
    with torch.inference_mode():
        logits: NDArray[np.float32] = module(torch.from_numpy(image)).numpy()
    return logits, f"logits of the digits demo's teacher, {len(logits):,} rows"


def _words(rows: int, classes: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    falling = -1.5 * np.log(np.arange(1, classes + 1))
    noisy = falling + rng.normal(0, 1.5, (rows, classes))
    return np.asarray(rng.permuted(noisy, axis=1), np.float32)
