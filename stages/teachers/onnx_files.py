"""ONNX files, read as far as identities need: which tensors there are, and which files lie beside.

An ONNX file is one protocol-buffers message. Walking its fields takes no library, copies no weights,
and runs nothing; field numbers are those of onnx.proto.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from stillroom.storage.errors import FormatError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Which messages hold which, by field number, on the way to where data lies outside the file."""
_GRAPH, _NODE, _NODE_OUTPUT, _GRAPH_OUTPUT, _NAME = 7, 1, 2, 12, 1


class OnnxFile:
    """What an ONNX file says about itself."""

    def __init__(self, path: str | Path) -> None:
        """Walk the file; FileNotFoundError, or FormatError where it is no ONNX model."""
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no model at {self.path}; name an .onnx file")
        if self.path.stat().st_size == 0:
            raise FormatError(f"{self.path} is no ONNX model: it is empty")
        with open(self.path, "rb") as file:
            # Not closed here: an error's traceback may still hold a view of it.
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            self.beside = tuple(sorted(set(_locations("model", whole))))
            """Names of the files that hold weights outside this one."""
            self.tensors = tuple(_tensors(whole))
            """Every tensor that a node of the graph computes, in the order of nodes."""
        except (ValueError, IndexError, RecursionError) as error:
            raise FormatError(f"{self.path} is no ONNX model: {error}") from error
        if not self.tensors:
            raise FormatError(f"{self.path} is no ONNX model: it holds no graph that computes")

    def digests(self) -> dict[str, str]:
        """SHA-256 of the file (`model`) and of each file beside it, by its name in the model.

        FileNotFoundError where one is missing, FormatError for a name that leaves the model's folder.
        """
        found = {"model": _digest(self.path)}
        for name in self.beside:
            inside = PurePosixPath(name.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts:
                raise FormatError(f"{self.path} keeps weights in {name!r}, outside its own folder")
            file = self.path.parent / inside
            if not file.is_file():
                raise FileNotFoundError(
                    f"{self.path} keeps weights in {name!r}, which does not lie beside it"
                )
            found[f"data/{name}"] = _digest(file)
        return found

    def giving(self, tensors: list[str]) -> bytes:
        """The model with these inner tensors among its outputs.

        Two messages one after the other are one message with the fields of both, so the outputs are
        appended and nothing of the file is written anew.
        """
        outputs = b"".join(_field(_GRAPH_OUTPUT, _field(_NAME, n.encode())) for n in tensors)
        return self.path.read_bytes() + (_field(_GRAPH, outputs) if outputs else b"")


def _locations(kind: str, message: memoryview) -> Iterator[str]:
    """File names in `external_data`, anywhere in the model."""
    if kind == "entry":
        entry = {number: bytes(value).decode() for number, value in _fields(message)}
        if entry.get(1) == "location":
            yield entry.get(2, "")
        return
    for number, value in _fields(message):
        if (inner := _INSIDE[kind].get(number)) is not None:
            yield from _locations(inner, value)


def _tensors(model: memoryview) -> Iterator[str]:
    for number, graph in _fields(model):
        if number == _GRAPH:
            for part, node in _fields(graph):
                if part == _NODE:
                    names = [bytes(v).decode() for n, v in _fields(node) if n == _NODE_OUTPUT]
                    yield from filter(None, names)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of every field that holds bytes; numbers are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("it ends in the middle of a field")
            yield tag >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError(f"a field of unknown kind {kind}")
    if at != len(message):
        raise ValueError("it ends in the middle of a field")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, of a number below 16."""
    size, head = len(content), bytes([number << 3 | _BYTES])
    while size > 0x7F:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + content


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
