"""Small sound caches for made-up inputs to damage, and how that is undone."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.storage.files import write_json
from stillroom.storage.ragged import Ragged
from stillroom.storage.segment import Segment
from stillroom.storage.testing import SmallCache, between

FOLDERS = (
    *("", "segments", "snapshots", "snapshots/made", "leases", "books", "quarantine"),
    *("quarantine/segments", "quarantine/snapshots", "quarantine/files"),
    *("segments/{}", "segments/{}/receipts", "segments/{}/made", "segments/{}/signals"),
    *("segments/{}/signals/x", "segments/{}/signals/x/c", "segments/{}/records/text"),
)


def _values(keys: list[str]) -> dict[str, Any]:
    rows = np.array([int(key[1]) for key in keys], "f4")
    ragged = Ragged.of([np.full((int(n) % 3, 2), n, "f4") for n in rows])
    logits = np.outer(rows + 1, np.arange(5)).astype("f4")
    fixed = np.outer(rows, [1, -1]).astype("f4")
    return {"x": fixed, "top": logits, "rag": ragged, "text": [f"é {key}" for key in keys]}


def small_cache(path: Path, signals: tuple[str, ...], shards: int) -> None:
    """Two segments of one teacher, one of another, three snapshots, a draft, leases, quarantine."""
    small = SmallCache(path)
    keys, how = [f"k{i}" for i in range(4)], {"top": "topk(2)", "rag": "float16"}

    def taught(some: list[str]) -> Segment:
        values = {name: _values(some)[name] for name in signals}
        return small.teach(some, values, encodings=how, shard_rows=-(-len(some) // shards))

    one = taught(keys[:3])
    small.commit(keys[:3], [one])
    two = taught(keys[3:])
    small.commit(keys, [one, two])
    if shards == 1:
        other = small.teach(keys[2:], {"id": np.arange(2)}, teacher="other", weights=7)
        small.commit(keys, [one, two], [other])
    else:
        draft = small.draft(keys, {"x": "raw"}, weights=2, shard_rows=2)
        draft.write(draft.shards()[0], {"x": between(_values(keys)["x"], 0, 2)}, {})
        with small.cache.writing("0123456789abcdef"):
            pass
        for name in ("segments/0007-t-0123456789ab/plan.json", "snapshots/000002.json"):
            write_json(path / "quarantine" / name, {"format": 2})


@dataclass
class Victim:
    """A sound cache, one input's changes to it, and how to undo them."""

    path: Path
    sound: dict[Path, bytes]
    folders: tuple[str, ...]
    touched: set[Path] = field(default_factory=set)
    added: list[Path] = field(default_factory=list)
    opened: set[str] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)
    """By class, and by what was done."""

    @property
    def files(self) -> list[Path]:
        """Of the sound cache."""
        return list(self.sound)

    @classmethod
    def at(cls, path: Path, signals: tuple[str, ...], shards: int) -> Victim:
        """Make the cache, and beside it what nobody may look at."""
        small_cache(path, signals, shards)
        (path.parent / "outside-ed1f2369e4a4").mkdir(parents=True)
        (path.parent / "outside-ed1f2369e4a4" / "plan.json").write_text("{}")
        (path.parent / "outside").mkdir()
        (path.parent / "outside/secret").write_text("{}")
        files = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
        segments = sorted(p.name for p in (path / "segments").iterdir())
        folders = tuple(f.format(s) for f in FOLDERS for s in segments[: 4 if "{" in f else 1])
        return cls(path, files, folders)

    def write(self, path: Path, data: bytes) -> None:
        """Change a file of the sound cache."""
        self.touched.add(path)
        path.write_bytes(data)

    def restore(self) -> None:
        """As if nothing had happened."""
        for place in reversed(self.added):
            with suppress(OSError):
                shutil.rmtree(
                    place
                ) if place.is_dir() and not place.is_symlink() else place.unlink()
        for path in self.touched:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.sound[path])
        self.added.clear()
        self.touched.clear()
