"""A small cache with everything in it, and ways to damage it; shared by the tests of care."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from stillroom.storage.ragged import Ragged
from stillroom.storage.testing import SmallCache, between, on_disk

ENCODINGS = {"top": "topk(2)", "tok": "topk(2)", "rag": "float16", "brain": "bfloat16"}
ASIDE = {"made", "leases", "quarantine"}
"""Folders that are no content of a cache."""


def values_of(keys: list[str]) -> dict[str, Any]:
    """Every kind of signal, from which one can tell the row; topk classes end at 5."""
    seed = np.array([sum(key.encode()) for key in keys])
    logits = ((seed[:, None] * np.arange(3, 8)) % 11).astype("f4") + np.arange(5, dtype="f4") / 8
    return {
        "x": np.stack([seed, -seed], axis=1).astype("f4"),
        "top": logits,
        "brain": logits,
        "rag": Ragged.of([np.full((n % 3, 2), n, "f4") for n in seed]),
        "tok": Ragged.of(
            [np.repeat(row[None], n % 3, 0) for n, row in zip(seed, logits, strict=True)]
        ),
        "text": [f"é {key}" for key in keys],
    }


FIRST = [f"k{i}" for i in range(11)]
SECOND = [f"m{i}" for i in range(5)]


def full_cache(path: Path, *, draft: bool = True) -> SmallCache:
    """Two teachers, three segments in shards of up to 4, three snapshots, and a draft of one shard.

    Segment 1 holds k0 to k10, segment 2 m0 to m4, segment 3 another teacher's `id` of k0 to k10.
    """
    small = SmallCache(path)
    first = small.teach(FIRST, values_of(FIRST), encodings=ENCODINGS)
    small.commit(FIRST, [first])
    second = small.teach(SECOND, values_of(SECOND), encodings=ENCODINGS)
    small.commit([*FIRST, *SECOND], [first, second])
    ids = {"id": np.arange(11)}
    third = small.teach(FIRST, ids, teacher="other", weights=7)
    small.commit([*FIRST, *SECOND], [first, second], [third])
    if draft:
        begun = small.draft(FIRST, {"x": "raw", "rag": "float16"}, weights=2)
        shard = begun.shards()[1]
        values = values_of(FIRST)
        begun.write(
            shard,
            {n: between(values[n], shard.start, shard.stop) for n in ("x", "rag")},
            {"rag": {"max_abs": 0.25}},
        )
    return small


def content(path: Path) -> dict[str, bytes]:
    """Every file that is content of the cache, by its path."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not ASIDE & set(file.relative_to(path).parts)
    }


def everything(path: Path) -> dict[str, bytes]:
    """Every file but locks and leases."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and "leases" not in file.relative_to(path).parts
    }


def root(small: SmallCache) -> Path:
    """The cache's folder."""
    return on_disk(small.cache.path)


def only(path: Path, pattern: str) -> Path:
    """The first file of that pattern."""
    return sorted(path.glob(pattern))[0]


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    changed = bytearray(path.read_bytes())
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


@contextmanager
def restored(path: Path, before: dict[str, bytes]) -> Iterator[None]:
    """Put the content back afterwards, and take away what came to it."""
    try:
        yield
    finally:
        now = content(path)
        for name in now.keys() - before.keys():
            (path / name).unlink()
        for name in before:
            if now.get(name) != before[name]:
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(before[name])


def random_flips(path: Path, count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Flip one random bit of the content after another, each undone before the next; yields where.

    Half of them lie anywhere, half first choose a file, so that small files are not spared.
    """
    before, drawn = content(path), random.Random(seed)
    names = sorted(before)
    sizes = [len(before[name]) for name in names]
    for _ in range(count):
        (name,) = drawn.choices(names, sizes if drawn.random() < 0.5 else None)
        bit = drawn.randrange(8 * len(before[name]))
        flip(path / name, bit)
        yield name, bit
        (path / name).write_bytes(before[name])


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file, spelled as the cache spells it."""
    value = {**json.loads(path.read_bytes()), **changes}
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n")


def crc(data: bytes) -> str:
    """CRC-32C as eight hexadecimal digits."""
    return f"{google_crc32c.value(data):08x}"
