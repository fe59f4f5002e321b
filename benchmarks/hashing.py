"""Hashing 1,000,000 rows: stillroom's row hashes against a plain Python loop over the same bytes.

Run: python -m benchmarks.hashing (about a minute). Prints medians of interleaved rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import THREADS, hash_rows, hash_whole

ROUNDS = 5


def sliced(content: NDArray[np.uint8]) -> bytes:
    """A slice of one buffer for each row."""
    flat, size = content.reshape(-1).data, content.shape[1]
    each = (flat[i * size : (i + 1) * size] for i in range(len(content)))
    return b"".join([xxhash.xxh3_128_digest(row) for row in each])


def spelled(texts: pa.Array) -> bytes:
    """A Python string for each row."""
    return b"".join([xxhash.xxh3_128_digest(text.encode()) for text in texts.to_pylist()])


def main() -> None:
    """Print one line for each kind of row."""
    draw = np.random.default_rng(0)
    rows = {
        "1,000,000 rows of 64 bytes": draw.integers(0, 256, (1_000_000, 64), dtype=np.uint8),
        "50,000 rows of 3,072 bytes": draw.integers(0, 256, (50_000, 3072), dtype=np.uint8),
        "2,000 rows of 150,528 bytes": draw.integers(0, 256, (2000, 150_528), dtype=np.uint8),
    }
    texts = pa.array([f"row {i} with some words in it" for i in range(1_000_000)])
    texts = texts.cast(pa.large_string())
    print(f"seconds, median of {ROUNDS} interleaved rounds; {THREADS} threads")
    for name, content in rows.items():
        ways = {
            "loop": lambda content=content: sliced(content),
            "rows": lambda content=content: hash_rows({"x": content}),
            "whole": lambda content=content: hash_whole([("x", content)]),
        }
        report(name, ways)
    report(
        "1,000,000 texts",
        {
            "loop": lambda: spelled(texts),
            "rows": lambda: hash_rows({"x": texts}),
            "whole": lambda: hash_whole([("x", texts)]),
        },
    )


def report(name: str, ways: Mapping[str, Callable[..., Any]]) -> None:
    """Time the ways in turn and print their medians."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            taken[way].append(time.perf_counter() - started)
    loop, each, whole = (statistics.median(taken[way]) for way in ("loop", "rows", "whole"))
    print(
        f"{name}: plain loop {loop:.3f}, hashes {each:.3f} ({each / loop:.2f} of it), "
        f"fingerprint {whole:.3f}"
    )


if __name__ == "__main__":
    main()
