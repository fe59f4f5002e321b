"""What serves a state of a data set, and the snapshot's two files as they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.storage.files import json_bytes, with_checksum, write_atomic, write_json
from stillroom.storage.folder import FORMAT
from stillroom.storage.place import Place
from stillroom.storage.signal import Signal
from stillroom.storage.table import table_bytes

Int64s = NDArray[np.int64]
RUNS = pa.schema(
    [
        ("source", pa.int32()),
        ("start", pa.int64()),
        ("rows", pa.int64()),
        ("segment", pa.large_string()),
        ("slot", pa.int64()),
    ]
)
"""Columns of the file of runs."""


@dataclass(frozen=True)
class Source:
    """One teacher's signals in a snapshot, all served by the same runs."""

    teacher: str
    digest: str
    """Digest of the teacher's identity."""
    signals: Mapping[str, Signal]
    inputs: tuple[str, ...]
    """The data set's columns that the teacher read."""
    dataset: str
    """Fingerprint of the data set's keys and those columns."""

    def to_json(self) -> dict[str, Any]:
        """As the snapshot's JSON holds it."""
        return {
            "teacher": self.teacher,
            "digest": self.digest,
            "signals": {name: signal.to_json() for name, signal in self.signals.items()},
            "inputs": list(self.inputs),
            "dataset": self.dataset,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Source:
        """Read back `to_json`."""
        signals = {n: Signal.from_json(n, s) for n, s in value["signals"].items()}
        inputs = tuple(str(name) for name in value["inputs"])
        return cls(value["teacher"], value["digest"], signals, inputs, str(value["dataset"]))


@dataclass(frozen=True)
class Served:
    """A source and where each row of the data set lies: aligned arrays, -1 where not served."""

    source: Source
    segments: Sequence[str]
    segment: Int64s
    """(rows,) index into `segments`, or -1."""
    slot: Int64s
    """(rows,) slot in that segment."""


def write_snapshot(
    folder: Place, number: int, served: Sequence[Served], parent: int | None, why: str
) -> None:
    """Write a new snapshot; its JSON comes last and makes it exist.

    FileExistsError when another process wrote a snapshot of that number first.
    """
    runs, content, described = _spelled(number, served, parent, why)
    write_atomic(folder / runs, [content])
    write_json(folder / f"{number:06d}.json", described, new=True)


def snapshot_bytes(served: Sequence[Served], parent: int | None, why: str) -> int:
    """How many bytes a snapshot would take."""
    _, content, described = _spelled((parent or 0) + 1, served, parent, why)
    return len(content) + len(json_bytes(described))


def _spelled(
    number: int, served: Sequence[Served], parent: int | None, why: str
) -> tuple[str, NDArray[np.uint8], dict[str, Any]]:
    """The name and the bytes of the file of runs, and the JSON beside it."""
    held = np.any([s.segment >= 0 for s in served], axis=0)
    # The order of slots, not that of the data set: rows that moved change nothing.
    keys: list[NDArray[Any]] = []
    for s in reversed(served):
        keys += [s.slot, np.where(s.segment < 0, len(s.segments), s.segment)]
    order = np.lexsort(keys)
    order = order[held[order]]
    columns: dict[str, list[Any]] = {name: [] for name in RUNS.names}
    for index, s in enumerate(served):
        segment, slot = s.segment[order], s.slot[order]
        for start, rows in _runs(segment, slot):
            columns["source"].append(index)
            columns["start"].append(start)
            columns["rows"].append(rows)
            columns["segment"].append(s.segments[segment[start]])
            columns["slot"].append(int(slot[start]))
    batch = pa.record_batch([pa.array(columns[f.name], f.type) for f in RUNS], schema=RUNS)
    content, checksum = table_bytes(batch)
    # Named by its content: of two that write the same number at once, neither harms the other.
    runs = f"{number:06d}-{checksum}.arrow"
    described = {
        "format": FORMAT,
        "number": number,
        "parent": parent,
        "why": why,
        "rows": int(held.sum()),
        "runs": runs,
        "crc32c": checksum,
        "sources": [s.source.to_json() for s in served],
    }
    return runs, content, with_checksum(described)


def _runs(segment: Int64s, slot: Int64s) -> Iterable[tuple[int, int]]:
    """(start, rows) of maximal stretches in one segment with consecutive slots."""
    if len(segment) == 0:
        return []
    breaks = np.flatnonzero((np.diff(segment) != 0) | (np.diff(slot) != 1)) + 1
    starts = np.concatenate([[0], breaks])
    stops = np.concatenate([breaks, [len(segment)]])
    kept = segment[starts] >= 0
    return zip(starts[kept].tolist(), (stops - starts)[kept].tolist(), strict=True)
