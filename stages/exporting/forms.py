"""The forms that a student is written in beside its weights: a torch.export program, an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from stillroom.stages.exporting.comparing import Arrays, Form, as_array
from stillroom.stages.exporting.decomposed import decompositions
from stillroom.stages.exporting.described import ExportError
from stillroom.stages.exporting.whole import Whole
from stillroom.storage.errors import MissingPackageError

TRACED = 3
"""Rows that are shown while tracing: their number stands for any."""
INLINE_BYTES = 1 << 30
"""Larger ONNX models keep their weights in a file beside them: protobuf holds 2 GiB."""


def traced(whole: Whole, columns: Sequence[Any], names: Sequence[str], who: str) -> Any:
    """The student as a torch.export program over any number of rows.

    It holds no row that it was traced with, and no line of source code. ExportError where torch.export
    cannot follow the module, and where the module takes a fixed number of rows.
    """
    for name, column in zip(names, columns, strict=True):
        if not isinstance(column, torch.Tensor):
            raise ExportError(
                f"{who} reads texts in {name!r}, and a traced program takes tensors alone; export it as "
                "safetensors, or give it the tokens as a column"
            )
    shown = tuple(column[torch.arange(TRACED) % len(column)] for column in columns)
    rows = torch.export.Dim("rows", min=1)
    with _quiet():
        try:
            program = torch.export.export(
                whole, shown, dynamic_shapes=(tuple({0: rows} for _ in shown),)
            )
        except Exception as error:  # torch raises a dozen kinds for what it cannot follow
            raise ExportError(
                f"{who} cannot be traced by torch.export for any number of rows: {_first(error)}. What "
                "stops it is mostly Python that looks into a tensor's values or at the number of rows; "
                "its safetensors are not touched by this"
            ) from error
    program.example_inputs = None
    for graph in (m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in graph.graph.nodes:
            node.meta.pop("stack_trace", None)
    return program


def save_program(program: Any, place: Path) -> None:
    """As .pt2."""
    with _quiet():
        torch.export.save(program, place)


def open_program(place: Path) -> Form:
    """What `torch.export.load` makes of a file that was just written here.

    PyTorch may unpickle what it finds in a .pt2, so nothing else of stillroom ever opens one.
    """
    with _quiet():
        module = torch.export.load(place).module()

    def run(columns: list[Any]) -> Arrays:
        with torch.inference_mode():
            return {name: as_array(tensor) for name, tensor in module(*columns).items()}

    return run


def require_onnx() -> None:
    """MissingPackageError names what ONNX needs and is not installed."""
    if missing := [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]:
        raise MissingPackageError(
            f"ONNX needs {', '.join(missing)}, not installed here: pip install 'stillroom[export]'"
        )


def save_onnx(program: Any, columns: Sequence[str], outputs: Sequence[str], place: Path) -> int:
    """As ONNX, inputs named as columns and outputs as the student's; returns its operator set.

    ExportError names what ONNX has no operator for.
    """
    with _quiet():
        try:
            made = torch.onnx.export(
                program.run_decompositions(decompositions()),
                dynamo=True,
                verbose=False,
                input_names=list(columns),
                output_names=list(outputs),
            )
        except Exception as error:  # as many kinds as above
            raise ExportError(f"no ONNX of this student: {_first(error)}") from error
        assert made is not None
        model: Any = made.model
        for node in model.graph.all_nodes():
            node.metadata_props.clear()  # lines of source code and their paths
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.metadata_props.clear()
            if value.shape is not None and not isinstance(value.shape[0], int):
                value.shape[0] = "rows"
        size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
        made.save(place, external_data=size > INLINE_BYTES)
    return int(model.opset_imports[""])


def open_onnx(place: Path, columns: Sequence[str]) -> Form:
    """An ONNX Runtime session on the CPU, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    taken = {given.name for given in session.get_inputs()}

    def run(given: list[Any]) -> Arrays:
        # An input that no output depends on is none of the model's.
        feeds = {n: as_array(c) for n, c in zip(columns, given, strict=True) if n in taken}
        return dict(zip(names, session.run(None, feeds), strict=True))

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn about their own insides."""
    loud = logging.getLogger("torch.onnx"), logging.getLogger("torch.export")
    levels = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


def _first(error: BaseException) -> str:
    """The first lines of what torch says, which goes on for pages."""
    cause = error
    while cause.__cause__ is not None:  # the exporter wraps what went wrong
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = " ".join(lines[:3])
    return f"{type(cause).__name__}: {said[:400]}"
