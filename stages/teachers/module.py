"""An nn.Module as a teacher: its output and any inner layer, by forward hook, in one pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from stillroom.stages.data.rows import Batch
from stillroom.stages.teachers.arithmetic import Matmul, arithmetic
from stillroom.stages.teachers.assets import Assets, asset_digests, asset_paths
from stillroom.stages.teachers.layers import LayerTaps
from stillroom.stages.teachers.places import expanded, has_patterns
from stillroom.stages.teachers.suspects import suspects
from stillroom.stages.teachers.teacher import Answer
from stillroom.stages.teachers.weights import Weights, file_weights, load_state, tensor_weights
from stillroom.storage.code import code_identity
from stillroom.storage.errors import SignalError, UnknownSignalError, nearest
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModuleTeacher:
    """A torch module whose answers are cached.

    `layers` maps a signal to the module it is read from, by torch's own name ("" is the whole
    module); `name:key` picks an entry of a dict, tuple or output object, `name:input` is what that
    module is given. The module is put in eval mode and runs in inference mode.

    A pattern is a signal for each module that matches: `{"attn": "blocks.*.attn"}` is attn-0, attn-1, ...,
    `{"hidden-{}": "blocks.*"}` hidden-0, ...; `last(blocks.*)` is the last of them, `last` alone what
    the classifier is given. `attention(name)`, `query(name)`, `key(name)`, `value(name)` are read inside
    an attention module: weights (n, heads, tokens, tokens), the others (n, heads, tokens, head_dim).

    Logits over a large vocabulary are stored as the hidden state that they are made from, whatever
    the architecture: `layers={"logits": "lm_head:input"}, encodings={"logits": "head(lm_head)"}`.
    """

    name: str
    """Names the teacher's segments."""
    module: nn.Module | Callable[[], nn.Module]
    """The module, or a module-level function (or partial) that builds it."""
    weights: Weights | None = None
    """A state dict to load (.safetensors, or what torch.save wrote), also one in several files: their
    list, folder or index. None keeps the built ones."""
    inputs: Sequence[str] = ("image",)
    """Columns of the data set, passed as tensors in this order."""
    layers: Mapping[str, str] = field(default_factory=lambda: {"logits": ""})
    """Module name, or pattern of names, by signal."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal, or by the name of a pattern for all its signals; raw where none is named."""
    prepare: Callable[..., Any] | None = None
    """columns by name -> the module's argument, a tuple or a dict of them (preprocessing). Where there
    are assets it gets them as `assets=`: paths and bytes by role."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Below float32 the module runs under autocast."""
    device: str = "auto"
    """"auto" takes a GPU where the worker has one. Not part of the identity."""
    libraries: Sequence[str] = ()
    """Installed packages beside torch that compute its numbers (such as a tokenizer's): their
    versions are part of the identity."""
    threads: int = 1
    """CPU threads inside one worker; fixed, because it can change the last bits of a sum."""
    assets: Assets = field(default_factory=dict)
    """Files beside the weights that decide the numbers, by role (tokenizer, chat_template, ...): their
    bytes are part of the identity, where they lie is not. Constants in `prepare` need none: they are
    part of its code."""
    channels_last: bool = False
    """Weights and inputs of four axes lie in memory with channels last, which is faster for
    convolutions: other kernels, other last bits, so another identity."""
    compiled: str = ""
    """A backend of torch.compile, such as "inductor"; empty: as it is. Another identity, as fused
    operations round otherwise. Batches of other sizes are compiled again."""
    matmul: Matmul = "highest"
    """What float32 matrix products may be computed with (torch.set_float32_matmul_precision): "high"
    and "medium" are TensorFloat-32 and bfloat16 where the device has them. Another identity."""
    cudnn_tf32: bool = True
    """Whether cuDNN's convolutions may be TensorFloat-32, as torch's are. False: another identity.
    Whatever is set elsewhere in the process, the teacher runs with these two."""

    def asks(self) -> Mapping[str, Ask]:
        """Every signal, with its layer as the source.

        Patterns take the module's names: it is then built, on no device where that can be done.
        """
        layers = self._layers()
        known = {*layers, *self.layers}
        for name in self.encodings:
            if name not in known:
                raise SignalError(
                    f"encoding for {name!r}, which teacher {self.name!r} does not give"
                )
        coded = {n: self.encodings.get(asked, "raw") for n, (_, asked) in layers.items()}
        return {n: Ask(self.encodings.get(n, coded[n]), place) for n, (place, _) in layers.items()}

    def _layers(self, module: nn.Module | None = None) -> dict[str, tuple[str, str]]:
        """{signal: (place, name in `layers`)}."""
        if not has_patterns(self.layers):
            return {name: (place, name) for name, place in self.layers.items()}
        return expanded(module or self._outline(), self.layers, f"teacher {self.name!r}")

    def _outline(self) -> nn.Module:
        """The module for its names alone."""
        import torch

        if isinstance(self.module, torch.nn.Module):
            return self.module
        try:
            with torch.device("meta"):
                return self._built()
        except Exception:
            return self._built()  # a builder that computes with its weights

    def identity(self) -> dict[str, Any]:
        """Weights tensor by tensor, code, preprocessing, assets, precision and torch's version."""
        import importlib.metadata

        # Left out where there are none: teachers that were identified before keep their identity.
        assets = {"assets": asset_digests(self.assets)} if self.assets else {}
        return {
            **assets,
            **self._options(),
            "kind": "module",
            "weights": self._weights(),
            "code": self._code(),
            "prepare": None if self.prepare is None else code_identity(self.prepare),
            "inputs": list(self.inputs),
            "precision": self.precision,
            "libraries": {n: importlib.metadata.version(n) for n in self.libraries}
            | {"torch": importlib.metadata.version("torch").split("+")[0]},
        }

    def _options(self) -> dict[str, Any]:
        """Those that are not as they were before there were any."""
        plain = {"channels_last": False, "compiled": "", "matmul": "highest", "cudnn_tf32": True}
        mine = {name: getattr(self, name) for name in plain}
        return {name: value for name, value in mine.items() if value != plain[name]}

    def _weights(self) -> dict[str, str]:
        if self.weights is not None:
            return file_weights(self.weights)
        return tensor_weights(self._built().state_dict())

    def _code(self) -> Any:
        if isinstance(self.module, type) or not hasattr(self.module, "state_dict"):
            return code_identity(self.module)  # a builder: its code is known without torch
        from torch import nn

        assert isinstance(self.module, nn.Module)
        kinds = sorted({type(m) for m in self.module.modules()}, key=lambda k: k.__qualname__)
        return {
            "structure": repr(self.module),
            "kinds": [code_identity(k) for k in kinds],
            "settings": {name: _settings(m) for name, m in self.module.named_modules()},
        }

    def _built(self) -> nn.Module:
        import torch
        from torch import nn

        if isinstance(self.module, nn.Module):
            return self.module
        # Under one seed: a builder that draws its weights draws those of the identity everywhere.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.module()

    def load(self) -> Answer:
        """Build the module, load the weights, place it and set the hooks."""
        import torch

        module = self._built()
        if module is self.module and (self.channels_last or self.compiled):
            module = copy.deepcopy(module)  # the caller's own stays as it is
        if self.weights is not None:
            module.load_state_dict(load_state(self.weights))
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        module = module.to(device).eval()
        if self.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _Loaded(self, module, torch.device(device))


class _Loaded:
    """A module on its device with its hooks set."""

    def __init__(self, teacher: ModuleTeacher, module: nn.Module, device: Any) -> None:
        import torch

        self._teacher, self._module, self._device = teacher, module, device
        self._assets = {"assets": asset_paths(teacher.assets)} if teacher.assets else {}
        places = {name: place for name, (place, _) in teacher._layers(module).items()}
        compiled = partial(torch.compile, backend=teacher.compiled) if teacher.compiled else None
        self._taps = LayerTaps(module, places, f"teacher {teacher.name!r}", compiled)

    def __call__(self, batch: Batch) -> dict[str, Values]:
        import torch

        with torch.inference_mode(), self._as_set():
            outputs = self._taps.run(*self._arguments(batch))
            return {name: _to_array(tensor) for name, tensor in outputs.items()}

    @contextmanager
    def _as_set(self) -> Iterator[None]:
        """Threads and arithmetic that the teacher names."""
        import torch

        teacher = self._teacher
        narrow = teacher.precision != "float32"
        dtype = getattr(torch, teacher.precision) if narrow else None
        with (
            arithmetic(teacher.threads, teacher.matmul, teacher.cudnn_tf32),
            torch.autocast(self._device.type, dtype, narrow),
        ):
            yield

    def suspects(self, batch: Batch) -> list[str]:
        """What in it draws random numbers, or figures from the whole batch, in words."""
        import torch

        arguments, named = self._arguments(batch)
        with torch.inference_mode(), self._as_set():
            return suspects(self._module, lambda: self._module(*arguments, **named))

    def constants(self, name: str) -> dict[str, Any]:
        """weight (V, d) and, where it has one, bias (V,) of a linear layer or an embedding.

        As they are; bfloat16 as uint16. UnknownSignalError for a name that is no module's,
        SignalError for a module of another kind.
        """
        from torch import nn

        teacher = self._teacher
        modules = dict(self._module.named_modules(remove_duplicate=False))
        if name not in modules:
            known = nearest(name, [n for n in modules if n])
            raise UnknownSignalError(f"teacher {teacher.name!r} has no layer {name!r}; {known}")
        if not isinstance(modules[name], nn.Linear | nn.Embedding):
            raise SignalError(
                f"teacher {teacher.name!r}: {name!r} is a {type(modules[name]).__name__}; a head is a "
                "Linear layer, or the Embedding whose weight it shares"
            )
        given = {key: getattr(modules[name], key, None) for key in ("weight", "bias")}
        return {key: _bits(tensor) for key, tensor in given.items() if tensor is not None}

    def _arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        import torch

        def place(value: Any) -> Any:
            if not hasattr(value, "to"):
                return value
            value = value.to(self._device)
            if self._teacher.channels_last and getattr(value, "ndim", 0) == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            return value

        tensors = {n: torch.as_tensor(batch[n]) for n in batch if not isinstance(batch[n], list)}
        columns = {**batch, **tensors}
        if self._teacher.prepare is None:
            return tuple(place(columns[name]) for name in self._teacher.inputs), {}
        given = self._teacher.prepare(
            **{name: columns[name] for name in self._teacher.inputs}, **self._assets
        )
        if isinstance(given, Mapping):
            return (), {name: place(value) for name, value in given.items()}
        given = given if isinstance(given, tuple) else (given,)
        return tuple(place(value) for value in given), {}


def _settings(module: nn.Module) -> dict[str, Any]:
    """Plain attributes and buffers outside the state dict: they decide numbers as weights do."""
    kept = module._non_persistent_buffers_set
    buffers = {n: b for n, b in module.named_buffers(recurse=False) if n in kept}
    plain = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }
    return {**plain, **tensor_weights(buffers)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return (
        value is None
        or isinstance(value, str | int | bool)
        or (isinstance(value, float) and isfinite(value))
    )


def _bits(tensor: Any) -> Any:
    """A parameter as numpy has it; bfloat16, which numpy has not, as uint16."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view("uint16")
    return tensor.numpy()


def _to_array(tensor: Any) -> Values:
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()  # numpy has no bfloat16; float32 holds both half formats exactly
    array: Values = tensor.cpu().numpy()
    return array
