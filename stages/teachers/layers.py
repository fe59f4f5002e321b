"""Read what a module and its inner layers give, or are given, by name, in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillroom.storage.errors import UnknownSignalError, nearest

if TYPE_CHECKING:
    from torch import nn


INPUT = "input"
"""Behind a module's name: not what it gives but what it is given."""


class LayerTaps:
    """Forward hooks on named modules: `run` returns what each of them gave.

    A place is a module's name as torch spells it ("" is the whole module), with `:key` behind it
    where the output is a dict, a tuple or an object with attributes. `name:input` is what the module
    is given, its first argument: `lm_head:input` is the hidden state behind the last norm, whatever
    the architecture calls that.
    """

    def __init__(self, module: nn.Module, places: Mapping[str, str], owner: str) -> None:
        """UnknownSignalError names a module that is not there and the nearest."""
        self._module, self._owner = module, owner
        self._keys = {name: place.partition(":")[::2] for name, place in places.items()}
        modules = dict(module.named_modules(remove_duplicate=False))
        for layer, _ in self._keys.values():
            if layer not in modules:
                known = [name for name in modules if name]
                raise UnknownSignalError(f"{owner} has no layer {layer!r}; {nearest(layer, known)}")
        outputs = {layer for layer, key in self._keys.values() if key != INPUT and layer}
        inputs = {layer for layer, key in self._keys.values() if key == INPUT}
        self._tapped = {layer: modules[layer] for layer in sorted(outputs)}
        self._fed = {layer: modules[layer] for layer in sorted(inputs)}

    def run(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """One forward pass; {name: tensor} for every place."""
        given: dict[str, Any] = {}
        inputs: dict[str, Any] = {}

        def keep_input(layer: str) -> Any:
            def hook(module: nn.Module, arguments: Any, named: Any) -> None:
                inputs[layer] = _copied(next(iter([*arguments, *named.values()]), None))

            return hook

        def keep(layer: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                given[layer] = _copied(output)

            return hook

        # Set and removed around each pass: the module may be the caller's own, and stays as it was.
        hooks = [m.register_forward_hook(keep(layer)) for layer, m in self._tapped.items()]
        hooks += [
            m.register_forward_pre_hook(keep_input(layer), with_kwargs=True)
            for layer, m in self._fed.items()
        ]
        try:
            given[""] = self._module(*arguments, **named)
        finally:
            for hook in hooks:
                hook.remove()
        return {
            name: self._pick(inputs if key == INPUT else given, name, layer, key)
            for name, (layer, key) in self._keys.items()
        }

    def _pick(self, given: Mapping[str, Any], name: str, layer: str, key: str) -> Any:
        if layer not in given:
            raise UnknownSignalError(
                f"{self._owner}: layer {layer!r}, read for {name!r}, did not run in the forward pass"
            )
        output = given[layer]
        if key and key != INPUT:
            try:
                if isinstance(output, Mapping):
                    output = output[key]
                else:
                    output = output[int(key)] if key.isdigit() else getattr(output, key)
            except (KeyError, IndexError, AttributeError, TypeError):
                known = _places(output)
                raise UnknownSignalError(
                    f"{self._owner}: the output of layer {layer!r} has no {key!r}; "
                    f"{nearest(key, [str(k) for k in known])}"
                ) from None
        if not hasattr(output, "detach"):
            kind = type(output).__name__
            inside = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
            if key == INPUT:
                raise UnknownSignalError(
                    f"{self._owner}: layer {layer!r} is given a {kind}{inside} first, not a tensor; "
                    f"read {name!r} from another layer"
                )
            raise UnknownSignalError(
                f"{self._owner}: layer {layer!r} gives a {kind}{inside}, not a tensor; "
                f"pick one as '{layer}:key' for {name!r}"
            )
        return output


def _copied(output: Any) -> Any:
    """A layer's tensors as they are now: an in-place layer behind it would overwrite them."""
    if hasattr(output, "clone"):
        return output.clone()
    if isinstance(output, dict):
        return {key: _copied(value) for key, value in output.items()}
    if type(output) in (tuple, list):
        return [_copied(value) for value in output]
    return output


def _places(output: Any) -> list[Any]:
    """What can be picked from an output, for messages."""
    if isinstance(output, Mapping):
        return list(output)
    if isinstance(output, list | tuple):
        return list(range(len(output)))
    return [] if hasattr(output, "detach") else list(getattr(output, "__dict__", {}))
