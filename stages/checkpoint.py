"""Checkpoint: where a training stands, as one safetensors file; nothing in it is ever unpickled.

Tensors lie in the file by number; what holds them (dicts, lists, numbers, texts) is JSON in its header.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from stillroom.storage.files import write_atomic

_STATE = "state"


def save_checkpoint(place: Path, digest: str, state: Any) -> None:
    """Write it whole or not at all; `digest` says whose it is."""
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    spelled = json.dumps({"digest": digest, "state": _spelled(state, tensors)})
    write_atomic(place, [save(tensors, {_STATE: spelled})])


def load_checkpoint(place: Path, digest: str) -> Any:
    """The state that was saved; None where there is none, or another training's, or it is damaged.

    A training without its checkpoint begins anew, which costs time and no truth.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, "pt") as file:
            said = json.loads(file.metadata()[_STATE])
            if said["digest"] != digest:
                return None
            return _read(said["state"], {n: file.get_tensor(n) for n in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        return None


def _spelled(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A copy: two entries may share memory, which safetensors refuses.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        # Pairs, because an optimiser's keys are numbers and JSON's are texts.
        return {"dict": [[key, _spelled(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_spelled(each, tensors) for each in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r}")


def _read(said: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(said, dict):
        return said
    ((kind, value),) = said.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _read(each, tensors) for key, each in value}
    each = [_read(one, tensors) for one in value]
    return tuple(each) if kind == "tuple" else each
