"""Bytes a row, error and speed of the encodings on a teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import booked
from benchmarks.measuring import Section, Table, interleaved, timed
from benchmarks.zipf import VOCABULARY, zipf_logits
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.logits import divergence
from stillroom.storage.encodings.packed import Packed
from stillroom.storage.encodings.part import Encoding
from stillroom.storage.ragged import Ragged

PLAIN = ("float32", "float16", "bfloat16", "int8")
# What each table compares. Another encoding of logits is one more name.
DIGITS = (*PLAIN, "topk(3)", "packed(topk(3))", "packed(topk(3),256)", "packed(sampled(50))")
VIEWS = (*PLAIN, "topk(10)", "packed(topk(10))", "packed(topk(10),256)", "packed(sampled(50))")
WORDS = (
    *("float16", "topk(50)", "packed(topk(50))", "packed(topk(50),64)", "packed(topk(50),256)"),
    *("sampled(50)", "packed(sampled(50))"),
)
DEMO = Path("out/digits/teacher")
WARM = 4.0
"""Temperature of the second KL: what classes of small probability lost shows there."""
Logits = NDArray[np.float32]


def measure(work: Path, quick: bool) -> Section:
    """Ten classes of the digits demo, views of a thousand classes, a language model's vocabulary."""
    section = Section(
        "Encodings",
        "Speed is for one thread and all rows at once. KL is the mean of KL(teacher ‖ decoded) in nats "
        f"at temperature 1 and at {WARM:g}, L1 the mean sum of |p - q|, all against the float32 answers. "
        "Of draws they are those of one draw, whose mean is exact: nearly all of the KL is the floor of "
        "60 nats for classes that were not drawn. Parts are what a student of many classes reads; "
        "packed rows are unpacked for it.",
    )
    rounds = 2 if quick else 3
    digits, source = _digits(5_000)
    section.tables.append(_table(source, digits, DIGITS, rounds))
    views = _views(500 if quick else 2_000)
    section.tables.append(_table("drawn views of 1,000 classes", views, VIEWS, rounds))
    section.tables.append(_words(32 if quick else 128, WORDS, rounds))
    section.tables += booked.tables(rounds, quick)
    section.notes += [
        "A view is the logits of 1,000 classes: normal noise of deviation 1.5, one class raised by 9 and "
        "nine relatives of it by 4 ± 2. A row is one view; rivals keep 44 bytes at k = 10.",
        f"Words are the process of benchmarks/zipf.py over {VOCABULARY:,} tokens: ids in the order of "
        "frequency, the distribution of a position a Pitman-Yor draw around Zipf's law. Rows hold 16 "
        "positions; `alone` is a row of one, `shuffled` numbers the tokens at random. Bytes are those "
        "of the rows; Arrow adds 8 for each row (not position). Rivals keep 36 bytes of 12 drawn "
        "tokens and 114 of the top 50.",
        *booked.NOTES,
    ]
    return section


def _table(source: str, values: Logits, names: Sequence[str], rounds: int) -> Table:
    rows = []
    for name in names:
        coding = encoding(name)
        lost = _lost(coding, values)
        encode, parts, decode = _speeds(coding, values, rounds, together=1)
        speed = [f"{each * 1e6:.3g} µs" for each in (encode, parts, decode)]
        rows.append((name, f"{_bytes(coding, values, 1):.4g}", *lost, *speed))
    columns = (source, "bytes a row", *_LOST, "encode a row", "parts a row", "decode a row")
    return Table(columns, tuple(rows))


def _words(positions: int, names: Sequence[str], rounds: int) -> Table:
    values = zipf_logits(positions)
    shuffled = values[:, np.random.default_rng(1).permutation(VOCABULARY)]
    rows = []
    for name in names:
        coding = encoding(name)
        sizes = (_bytes(coding, v, n) for v, n in ((values, 16), (values, 1), (shuffled, 16)))
        encode, parts, _ = _speeds(coding, values, rounds, together=16)
        speed = (f"{encode * 1e3:.2g} ms", f"{1 / parts:,.0f}")
        rows.append((name, *(f"{s:,.1f}" for s in sizes), *_lost(coding, values), *speed))
    columns = ("words", "bytes a position", "alone", "shuffled", *_LOST, "encode", "parts/s")
    return Table(columns, tuple(rows))


_LOST = ("KL", f"KL at {WARM:g}", "L1")


def _lost(coding: Encoding, values: Logits) -> list[str]:
    decoded = coding.decode(coding.encode(values), values.shape[1:])
    cold, warm = divergence(values, decoded), divergence(values / WARM, decoded / WARM)
    return [f"{figure:.3g}" for figure in (cold["kl"], warm["kl"], cold["l1"])]


def _bytes(coding: Encoding, values: Logits, together: int) -> float:
    """Bytes of a position where rows hold `together` positions."""
    if isinstance(coding, Packed):
        return len(_packed(coding, values, together).values) / len(values)
    return sum(part.row_bytes for part in coding.parts(values.shape[1:], values.dtype))


def _packed(coding: Packed, values: Logits, together: int) -> Ragged:
    return coding.pack(values, np.full(len(values) // together, together))


def _speeds(
    coding: Encoding, values: Logits, rounds: int, together: int
) -> tuple[float, float, float]:
    """Seconds a position to encode, to come to the parts, and from stored bytes to dense logits."""
    shape, stored = values.shape[1:], coding.encode(values)
    ways = {"decode": timed(partial(coding.decode, stored, shape))}
    if isinstance(coding, Packed):
        blobs = _packed(coding, values, together)
        # So many that the time is not that of a call.
        times = max(2**18 // max(len(blobs.values), 1), 1)
        many = Ragged(
            np.tile(blobs.values, times),
            np.concatenate([[0], np.cumsum(np.tile(blobs.lengths, times))]),
        )
        ways["encode"] = timed(partial(_packed, coding, values, together))
        ways["parts"] = timed(partial(coding.unpack, many, shape))
    else:
        times = 1
        ways["encode"] = timed(partial(coding.encode, values))
        ways["parts"] = timed(partial(_copied, stored))
    each = {n: t.median / len(values) for n, t in interleaved(ways, rounds).items()}
    parts = each["parts"] / times
    whole = each["decode"] + (parts if isinstance(coding, Packed) else 0)
    return each["encode"], parts, whole


def _copied(stored: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What reading parts as they lie costs at least."""
    return [array.copy() for array in stored.values()]


def _digits(rows: int) -> tuple[Logits, str]:
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
        logits: Logits = module(torch.from_numpy(image)).numpy()
    return logits, f"logits of the digits demo's teacher, {len(logits):,} rows"


def _views(rows: int, classes: int = 1_000) -> Logits:
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (rows, classes))
    for row in logits:
        one, *relatives = random.choice(classes, 10, replace=False)
        row[one] += 9
        row[relatives] += random.normal(4, 2, 9)
    return logits.astype(np.float32)
