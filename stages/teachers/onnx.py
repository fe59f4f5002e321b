"""An ONNX model as a teacher: any of its tensors, by name, from an ONNX Runtime session."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Batch, column_shapes
from stillroom.stages.teachers.assets import Assets, asset_digests, asset_paths
from stillroom.stages.teachers.onnx_files import OnnxFile
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage.code import code_identity
from stillroom.storage.errors import (
    FormatError,
    IdentityError,
    MissingPackageError,
    SignalError,
    UnknownSignalError,
    nearest,
)
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values

Provider = Literal["auto", "cpu", "cuda"]
Level = Literal["all", "extended", "basic", "none"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_SAME = (
    "bool",
    "float16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
_DTYPES |= {f"tensor({name})": name for name in _SAME}
"""numpy's names of what onnxruntime calls an input's type."""


@dataclass(frozen=True)
class OnnxTeacher:
    """An ONNX file whose answers are cached; needs the extra `onnx` (or onnxruntime-gpu).

    `outputs` maps a signal to a tensor of the model by name: one of its outputs, or any inner tensor
    that a node computes ("" is the first output). A model whose inputs have a fixed first axis is run
    that many rows at a time, the last run filled up with its last row. Numbers keep the model's dtype,
    also float16; a tensor of texts is a text signal, a sequence of tensors is one array for each row.
    """

    name: str
    """Names the teacher's segments."""
    model: str | Path
    """The .onnx file. Weights that it keeps in other files lie beside it."""
    outputs: Mapping[str, str] = field(default_factory=lambda: {"logits": ""})
    """Tensor by signal."""
    inputs: Sequence[str] = ("image",)
    """Columns of the data set."""
    feeds: Mapping[str, str] = field(default_factory=dict)
    """The model's input by column; where it is empty, columns are its inputs in order."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""
    prepare: Callable[..., Any] | None = None
    """columns by name -> the model's input, a tuple of them in its order, or a dict by its names
    (preprocessing). Where there are assets it gets them as `assets=`: paths and bytes by role."""
    ragged: Sequence[str] = ()
    """Signals whose rows differ in length (such as boxes). The model is then run row by row, and what
    a tensor holds is the row's array, without its first axis where the model says that this is the
    batch (it has the name, or the fixed length, of the first axis of an input)."""
    provider: Provider = "auto"
    """"auto" is CUDA where onnxruntime was built with it, else the CPU. The one that runs is part of the
    identity; name it where workers have other packages than the process that plans."""
    optimise: Level = "all"
    """onnxruntime's graph optimisation. "all" also chooses layouts for the processor at hand."""
    threads: int = 1
    """CPU threads inside one worker; fixed, because it can change the last bits of a sum."""
    libraries: Sequence[str] = ()
    """Installed packages that `prepare` computes with: their versions are part of the identity."""
    assets: Assets = field(default_factory=dict)
    """Files beside the model that decide the numbers, by role: their bytes are part of the identity."""

    def __post_init__(self) -> None:
        """Refuse settings that onnxruntime would not name."""
        for given, known, what in (
            (self.provider, get_args(Provider), "provider"),
            (self.optimise, get_args(Level), "optimise"),
        ):
            if given not in known:
                raise ValueError(
                    f"teacher {self.name!r}: {what} {given!r}; {nearest(given, known)}"
                )
        for signal in (*self.encodings, *self.ragged):
            if signal not in self.outputs:
                raise SignalError(f"teacher {self.name!r} does not give {signal!r}")

    def asks(self) -> Mapping[str, Ask]:
        """Every signal, with its tensor as the source."""
        return {n: Ask(self.encodings.get(n, "raw"), t) for n, t in self.outputs.items()}

    def identity(self) -> dict[str, Any]:
        """The files' bytes, preprocessing, assets, provider, optimisation, onnxruntime's version."""
        assets = {"assets": asset_digests(self.assets)} if self.assets else {}
        return {
            **assets,
            "kind": "onnx",
            "files": OnnxFile(self.model).digests(),
            "prepare": None if self.prepare is None else code_identity(self.prepare),
            "inputs": list(self.inputs),
            "feeds": dict(self.feeds),
            "ragged": sorted(self.ragged),
            "provider": self._provider(),
            "optimise": self.optimise,
            "libraries": {n: importlib.metadata.version(n) for n in self.libraries}
            | {"onnxruntime": _runtime(self.name).__version__, "numpy": np.__version__},
        }

    def _provider(self) -> str:
        offered = _runtime(self.name).get_available_providers()
        if self.provider != "auto":
            return _PROVIDERS[self.provider]
        cuda = _PROVIDERS["cuda"]
        return cuda if cuda in offered else _PROVIDERS["cpu"]

    def load(self) -> Answer:
        """Open the session, with inner tensors among the model's outputs.

        FormatError where onnxruntime cannot load the model, UnknownSignalError names a tensor that it
        does not have and the nearest, IdentityError where another provider runs than was asked for.
        """
        return _Loaded(self)


def _runtime(teacher: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f"teacher {teacher!r} is an ONNX model, which needs onnxruntime here, and it cannot be "
            f"imported ({error}). Install it: pip install 'stillroom[onnx]', or onnxruntime-gpu"
        ) from error
    return onnxruntime


class _Loaded:
    """A session, and how rows become its inputs."""

    def __init__(self, teacher: OnnxTeacher) -> None:
        self._teacher, self._who = teacher, f"teacher {teacher.name!r}"
        self._assets = {"assets": asset_paths(teacher.assets)} if teacher.assets else {}
        file = OnnxFile(teacher.model)
        wanted = sorted(set(teacher.outputs.values()) - {""})
        session = self._opened(file, [])
        known = [output.name for output in session.get_outputs()]
        if inner := [name for name in wanted if name not in known]:
            for name in inner:
                if name not in file.tensors:
                    offered = nearest(name, {*known, *file.tensors})
                    raise UnknownSignalError(
                        f"{self._who}: no tensor {name!r} in {file.path}; {offered}"
                    )
            session = self._opened(file, inner)
        self._session = session
        self._names = {s: t or known[0] for s, t in teacher.outputs.items()}
        self._inputs = {i.name: i for i in session.get_inputs()}
        firsts = [i.shape[0] for i in self._inputs.values() if i.shape]
        self._fixed = next((n for n in firsts if isinstance(n, int)), None)
        self._batched = {
            output.name: bool(output.shape) and output.shape[0] in firsts
            for output in session.get_outputs()
        }
        if teacher.ragged and self._fixed not in (None, 1):
            raise SignalError(
                f"{self._who} takes {self._fixed} rows at a time; rows of different lengths need a "
                "model that takes one, or any number"
            )

    def _opened(self, file: OnnxFile, inner: list[str]) -> Any:
        runtime, teacher = _runtime(self._teacher.name), self._teacher
        options = runtime.SessionOptions()
        level = (
            "DISABLE_ALL" if teacher.optimise == "none" else f"ENABLE_{teacher.optimise.upper()}"
        )
        options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, f"ORT_{level}")
        options.intra_op_num_threads = teacher.threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3  # what goes wrong is raised
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model: Any = str(file.path)
        if inner:
            model = file.giving(inner)
            # Of a model that is given as bytes, onnxruntime does not know where its weights lie.
            folder = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(folder, str(file.path.parent.absolute()))
        provider = teacher._provider()
        if provider not in runtime.get_available_providers():
            raise self._elsewhere(provider, "this onnxruntime was built without it")
        try:
            session = runtime.InferenceSession(model, options, providers=[provider])
        except Exception as error:  # onnxruntime raises a dozen kinds that share no base
            raise FormatError(f"{self._who}: {file.path} cannot be loaded: {error}") from error
        if (runs := session.get_providers()[0]) != provider:
            raise self._elsewhere(provider, f"onnxruntime fell back to {runs}")
        return session

    def _elsewhere(self, provider: str, why: str) -> IdentityError:
        return IdentityError(
            f"{self._who} was to run on {provider}, and cannot here: {why}. Name a provider= that all "
            "workers have, or install onnxruntime-gpu with the libraries that it needs"
        )

    def __call__(self, batch: Batch) -> dict[str, Values]:
        rows = len(next(iter(batch.values())))
        feeds = self._arguments(batch, rows)
        wanted = list(dict.fromkeys(self._names.values()))
        step = 1 if self._teacher.ragged else self._fixed or max(rows, 1)
        found: dict[str, list[Any]] = {name: [] for name in wanted}
        for start in range(0, rows, step):
            count = min(step, rows - start)
            given = {n: self._cut(n, v, start, count) for n, v in feeds.items()}
            for name, output in zip(wanted, self._run(wanted, given, batch), strict=True):
                whole = self._fixed in (None, 1) or len(output) != self._fixed
                found[name].append(output if whole else output[:count])
        return {signal: self._joined(signal, found[t]) for signal, t in self._names.items()}

    def _run(self, wanted: list[str], given: Mapping[str, Any], batch: Batch) -> list[Any]:
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            outputs: list[Any] = self._session.run(wanted, given)
        except InvalidArgument as error:
            raise SignalError(
                f"{self._who} cannot take what it is given ({column_shapes(batch)}): {error}"
            ) from error
        return outputs

    def _cut(self, name: str, value: NDArray[Any], start: int, count: int) -> NDArray[Any]:
        if value.ndim == 0:
            return value
        piece = value[start : start + count]
        if self._fixed and count < self._fixed:
            piece = np.concatenate([piece, np.repeat(piece[-1:], self._fixed - count, axis=0)])
        return np.ascontiguousarray(piece)

    def _joined(self, signal: str, pieces: list[Any]) -> Any:
        tensor = self._names[signal]
        if signal in self._teacher.ragged:
            return [piece[0] if self._batched[tensor] else piece for piece in pieces]
        if any(isinstance(piece, list) for piece in pieces):
            return [item for piece in pieces for item in piece]
        if self._fixed == 1 and not self._batched[tensor]:
            pieces = [piece[None] for piece in pieces]
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return joined.tolist() if joined.dtype == object else joined

    def _arguments(self, batch: Batch, rows: int) -> dict[str, NDArray[Any]]:
        teacher, names = self._teacher, list(self._inputs)
        columns = {name: batch[name] for name in teacher.inputs}
        given: Any
        if teacher.prepare is not None:
            given = teacher.prepare(**columns, **self._assets)
            if not isinstance(given, Mapping):
                given = given if isinstance(given, tuple) else (given,)
        elif teacher.feeds:
            given = {teacher.feeds.get(name, name): column for name, column in columns.items()}
        else:
            given = tuple(columns.values())
        if not isinstance(given, Mapping):
            if len(given) != len(names):
                raise SignalError(
                    f"{self._who}: the model takes {len(names)} inputs ({', '.join(names)}), "
                    f"{len(given)} were given; map columns to them with feeds="
                )
            given = dict(zip(names, given, strict=True))
        for name in given:
            if name not in names:
                raise SignalError(f"{self._who}: no input {name!r}; {nearest(name, names)}")
        return {name: self._as_input(name, value, rows) for name, value in given.items()}

    def _as_input(self, name: str, value: Any, rows: int) -> NDArray[Any]:
        """A column as the input's dtype: floats to floats, whole numbers to whole numbers that hold
        them; SignalError for anything else, which `prepare` has to decide."""
        kind = self._inputs[name].type
        if kind == "tensor(string)":
            array = np.asarray(value, object)
        else:
            array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            array = self._cast(name, array, kind)
        if array.ndim and len(array) != rows:
            raise SignalError(
                f"{self._who}: input {name!r} was given {len(array):,} rows of {rows:,}"
            )
        return array

    def _cast(self, name: str, array: NDArray[Any], kind: str) -> NDArray[Any]:
        dtype = np.dtype(_DTYPES.get(kind, array.dtype))
        if array.dtype == dtype:
            return array
        whole = array.dtype.kind in "iu" and dtype.kind in "iu"
        fits = whole and (
            array.size == 0
            or (array.min() >= np.iinfo(dtype).min and array.max() <= np.iinfo(dtype).max)
        )
        if not (fits or (array.dtype.kind == "f" and dtype.kind == "f")):
            raise SignalError(
                f"{self._who}: input {name!r} takes {kind}, found {array.dtype}"
                f"{' with numbers outside its range' if whole else ''}; convert it in prepare="
            )
        return array.astype(dtype)
