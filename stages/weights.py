"""Weights: what a model's numbers are, whatever file or process they lie in."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.storage.errors import FormatError, listed

if TYPE_CHECKING:
    import torch

_LONGEST_HEADER = 100_000_000


def file_weights(path: Path) -> dict[str, str]:
    """SHA-256 of every tensor in a weights file, by name; path and order do not matter.

    A .safetensors file is read without torch or a copy in memory; other files are read by
    torch.load(weights_only=True). Raises FileNotFoundError, or FormatError when it is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; name the file that holds the state dict")
    if path.suffix != ".safetensors":
        return tensor_weights(load_state(path))
    if path.stat().st_size < 8:
        raise FormatError(f"{path} is no safetensors file: it holds {path.stat().st_size} bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            length = int.from_bytes(content[:8], "little")
            if length > min(_LONGEST_HEADER, len(content) - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(content[8 : 8 + length])
            header.pop("__metadata__", None)
            body = memoryview(content)
            try:
                found = {}
                for name, tensor in header.items():
                    start, stop = (8 + length + int(n) for n in tensor["data_offsets"])
                    if not 8 + length <= start <= stop <= len(content):
                        raise ValueError(f"tensor {name!r} lies outside the file")
                    found[name] = _tensor_hash(tensor["dtype"], tensor["shape"], body[start:stop])
                return found
            finally:
                body.release()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is no safetensors file: {error}") from error


def tensor_weights(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The same from tensors in memory: equal to `file_weights` of the file they are saved to."""
    import torch

    found = {}
    for name, tensor in state.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = _tensor_hash(_spelled(tensor.dtype), tensor.shape, flat.data)
    return found


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from .safetensors, or from what torch.save wrote (no code is run)."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a file that is not its own
        raise FormatError(f"{path} holds no weights that torch can load: {error}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise FormatError(f"{path} holds a {type(state).__name__}, expected a state dict")
    if wrong := [str(name) for name, value in state.items() if not hasattr(value, "detach")]:
        raise FormatError(
            f"{path} holds more than a state dict: {listed(wrong)} are no tensors. Save "
            "module.state_dict() alone"
        )
    return dict(state)


def _tensor_hash(dtype: str, shape: Any, data: Any) -> str:
    hasher = hashlib.sha256(f"{dtype}{[int(n) for n in shape]}".encode())
    hasher.update(data)
    return hasher.hexdigest()


def _spelled(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)


_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""torch's dtype names as safetensors spells them."""
