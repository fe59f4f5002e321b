"""Weights: what a model's numbers are, whatever file or process they lie in."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stillroom.storage.errors import FormatError, listed

if TYPE_CHECKING:
    import torch

_LONGEST_HEADER = 100_000_000
Item = TypeVar("Item")


Weights = str | Path | Sequence[str | Path]
"""A file, an index of shards, a folder of either, or a list of files."""


def weight_files(weights: Weights) -> list[Path]:
    """The files that hold the tensors, in order of names.

    In a folder: those of its index (`model.safetensors.index.json`), or every .safetensors file.
    FileNotFoundError where one is missing; FormatError for a folder without weights.
    """
    if not isinstance(weights, str | Path):
        return [file for each in weights for file in weight_files(each)]
    path = Path(weights)
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        if len(indices) > 1:
            raise FormatError(f"{path} holds several sets of weights: {listed(indices)}; name one")
        found = _indexed(indices[0]) if indices else sorted(path.glob("*.safetensors"))
        if not found:
            raise FormatError(
                f"the folder {path} holds no .safetensors file and no *.index.json; name the file "
                "that holds the state dict"
            )
        return found
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; name the file that holds the state dict")
    return _indexed(path) if path.name.endswith(".index.json") else [path]


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("weight_map must name files beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{index} is no index of weights: {error}") from error
    return [file for name in names for file in weight_files(index.parent / name)]


def file_weights(weights: Weights) -> dict[str, str]:
    """SHA-256 of every tensor, by name; files, their names and their order do not matter.

    Hashed on threads. A .safetensors file is read without torch or a copy in memory; other files are
    read by torch.load(weights_only=True). Raises FileNotFoundError, or FormatError when a file holds
    no weights or two files hold a tensor of the same name.
    """
    return _merged((file, _in_file(file)) for file in weight_files(weights))


def _merged(each: Iterable[tuple[Path, dict[str, Item]]]) -> dict[str, Item]:
    found: dict[str, Item] = {}
    for file, tensors in each:
        if twice := sorted(found.keys() & tensors.keys()):
            raise FormatError(f"{file} holds tensors that another file holds too: {listed(twice)}")
        found |= tensors
    return found


def _in_file(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return tensor_weights(_load(path))
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
            parts: list[memoryview] = []
            try:
                for name, tensor in header.items():
                    start, stop = (8 + length + int(n) for n in tensor["data_offsets"])
                    if not 8 + length <= start <= stop <= len(content):
                        raise ValueError(f"tensor {name!r} lies outside the file")
                    parts.append(body[start:stop])
                kinds = [(tensor["dtype"], tensor["shape"]) for tensor in header.values()]
                each = zip(kinds, parts, strict=True)
                found = _on_threads(lambda one: _tensor_hash(*one[0], one[1]), each)
                return dict(zip(header, found, strict=True))
            finally:
                for part in parts:
                    part.release()
                body.release()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is no safetensors file: {error}") from error


def tensor_weights(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The same from tensors in memory: equal to `file_weights` of the file they are saved to."""
    import torch

    def hashed(tensor: torch.Tensor) -> str:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor_hash(_spelled(tensor.dtype), tensor.shape, flat.data)

    return dict(zip(state, _on_threads(hashed, state.values()), strict=True))


def _on_threads(hashed: Callable[[Item], str], tensors: Iterable[Item]) -> list[str]:
    """Of each tensor; hashlib lets go of Python's lock for all but tiny ones."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(hashed, tensors))


def load_state(weights: Weights) -> dict[str, torch.Tensor]:
    """A state dict from .safetensors, or from what torch.save wrote (no code is run).

    A .safetensors file is mapped into memory, not read into it: workers of one node share its pages and
    read them from the disk once. A module that the state is then loaded into holds a copy of its own
    in every worker, or on its GPU. What torch.save wrote is read by each worker.
    """
    return _merged((file, _load(file)) for file in weight_files(weights))


def _load(path: Path) -> dict[str, torch.Tensor]:
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
