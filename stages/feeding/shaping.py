"""Signals as tensors: one shape, fields of a record, and rows that differ in length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Signal

Lengths = Literal["padded", "nested", "flat"]
"""How rows that differ in length arrive:

- padded: `NAME` (n, longest, ...) with zeros behind the shorter rows, and `NAME.length` (n,) int64;
- nested: `NAME`, a nested tensor of torch's jagged layout;
- flat: `NAME` (total, ...), all rows one after another, and `NAME.offsets` (n + 1,) int64.
"""
LENGTHS: tuple[Lengths, ...] = ("padded", "nested", "flat")


def as_tensors(name: str, values: Any, lengths: Lengths = "padded") -> dict[str, Any]:
    """A signal's rows by name; fields of a record as `NAME.FIELD`; texts stay a list."""
    if isinstance(values, list | torch.Tensor):
        return {name: values}
    ragged = values.offsets if isinstance(values, Ragged) else None
    flat: Any = values.values if isinstance(values, Ragged) else values
    if flat.dtype.names is None:
        fields = {name: flat}
    else:
        # Copied here: of a single record numpy calls a field contiguous whatever its strides, torch not.
        fields = {f"{name}.{field}": flat[field].copy() for field in flat.dtype.names}
    tensors = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in fields.items()}
    return tensors if ragged is None else _ragged(name, tensors, ragged, lengths)


def part_tensors(
    name: str, signal: Signal, parts: Mapping[str, Any], lengths: Lengths = "padded"
) -> dict[str, Any]:
    """The parts of a signal's encoding as `NAME.PART`, a part without a name as `NAME`.

    Classes and counts are int64, as torch indexes by them; half floats are float32.
    """
    stored = {part.name: part.dtype for part in signal.parts}
    tensors, offsets = {}, None
    for part, rows in parts.items():
        if isinstance(rows, Ragged):
            offsets = rows.offsets
        flat = np.ascontiguousarray(rows.values if isinstance(rows, Ragged) else rows)
        tensor = torch.from_numpy(flat)
        # uint16 is how bfloat16 lies on disk, and how classes do: the encoding says which.
        if "bfloat16" in signal.encoding and stored.get(part) == "uint16":
            tensor = tensor.view(torch.bfloat16)
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        elif part in ("indices", "counts"):
            tensor = tensor.long()
        tensors[f"{name}.{part}" if part else name] = tensor
    if offsets is None:
        return tensors
    found = _ragged(name, tensors, offsets, lengths)
    if lengths == "padded":
        found |= {f"{n}.length": found[f"{name}.length"] for n in tensors}
    return found


def _ragged(
    name: str, flat: Mapping[str, torch.Tensor], offsets: Any, lengths: Lengths
) -> dict[str, Any]:
    """What shares offsets here shares the tensor of them: torch computes only with such pairs."""
    bounds = torch.from_numpy(offsets)
    if lengths == "flat":
        return {**flat, f"{name}.offsets": bounds}
    if lengths == "nested":
        return {n: torch.nested.nested_tensor_from_jagged(a, bounds) for n, a in flat.items()}
    padded = {n: torch.from_numpy(Ragged(a.numpy(), offsets).padded()) for n, a in flat.items()}
    return {**padded, f"{name}.length": bounds.diff()}
